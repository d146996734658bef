"""Evidence of what the data seen so far rests on: how it is stored, gathered and consolidated.

Pending evidence ``P`` is the sum, over the steps of the present regime, of squared gradients whose
mean over all scalars of the optimizer is 1 in each step. A consolidation turns it into evidence
``Omega``. Three granularities store them: per element, as row and column means, or as one number a
tensor. This file knows nothing of the gate, the threshold or any base optimizer.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]
TensorList = tuple[Tensor, ...] | list[Tensor]


class Granularity(Protocol):
    """How the evidence of one tensor is stored. All methods work in place on ``state``."""

    # Whether a flat slice of a tensor can be handled by itself, with the same slice of its state.
    sliceable: bool

    def shapes(self, param: Tensor) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state tensors, ``pending`` ones first, for one parameter."""

    def gather(self, states: Sequence[State], grads: TensorList, scale: float) -> None:
        """Add ``(scale * grad)**2`` to the pending evidence."""

    def evidence(self, state: State, like: Tensor) -> Tensor:
        """Omega, broadcastable to ``like``."""


class Element:
    """One number an element: exact, and as large as the parameters."""

    sliceable = True

    def shapes(self, param: Tensor) -> dict[str, tuple[int, ...]]:
        shape = tuple(param.shape)
        return {"pending": shape, "evidence": shape}

    def gather(self, states: Sequence[State], grads: TensorList, scale: float) -> None:
        # Scaled before it is squared: g * g leaves the range of float32 for |g| < 1e-19.
        scaled = torch._foreach_mul(grads, scale)
        torch._foreach_addcmul_([state["pending"] for state in states], scaled, scaled)

    def evidence(self, state: State, like: Tensor) -> Tensor:
        return state["evidence"]


class Factored:
    """Row and column means, combined as ``row * column / mean(row)``; vectors stay per element.

    The form of Adafactor's second moment (Shazeer and Stern 2018, arXiv 1804.04235, algorithm 1).
    A tensor of more than two dimensions counts as its first dimension by all the others.
    """

    sliceable = False
    _element = Element()

    def shapes(self, param: Tensor) -> dict[str, tuple[int, ...]]:
        if param.dim() < 2:
            return self._element.shapes(param)
        rows, columns = param.shape[0], param.shape[1:].numel()
        return {
            "pending_row": (rows,),
            "pending_column": (columns,),
            "evidence_row": (rows,),
            "evidence_column": (columns,),
        }

    def gather(self, states: Sequence[State], grads: TensorList, scale: float) -> None:
        for state, grad in zip(states, grads, strict=True):
            if "pending" in state:
                self._element.gather([state], [grad], scale)
            elif grad.numel():
                squares = grad.reshape(grad.shape[0], -1).mul(scale).square_()
                state["pending_row"].add_(squares.mean(1))
                state["pending_column"].add_(squares.mean(0))

    def evidence(self, state: State, like: Tensor) -> Tensor:
        if "evidence" in state:
            return state["evidence"]
        row, column = state["evidence_row"], state["evidence_column"]
        mean = row.mean().clamp_min(torch.finfo(row.dtype).tiny)
        return torch.outer(row / mean, column).view(like.shape)


class PerTensor:
    """One number a tensor: which layers matter, and no more."""

    sliceable = False

    def shapes(self, param: Tensor) -> dict[str, tuple[int, ...]]:
        return {"pending": (), "evidence": ()}

    def gather(self, states: Sequence[State], grads: TensorList, scale: float) -> None:
        for state, grad in zip(states, grads, strict=True):
            if grad.numel():
                norm = torch.linalg.vector_norm(grad, dtype=state["pending"].dtype)
                state["pending"].add_((norm * (scale / math.sqrt(grad.numel()))).square_())

    def evidence(self, state: State, like: Tensor) -> Tensor:
        return state["evidence"]


GRANULARITIES: dict[str, Granularity] = {
    "element": Element(),
    "factored": Factored(),
    "tensor": PerTensor(),
}
