"""Evidence of what the data seen so far rests on: how it is stored, gathered and read.

Pending evidence ``P`` is the sum, over the steps of the present regime, of squared gradients whose
mean over all scalars of the optimizer is 1 in each step. A consolidation turns it into evidence
``Omega``. Four granularities store them: per element, as row and column means, as one number a
tensor, or by directions. This file knows nothing of the gate, the threshold or any base optimizer.

State comes as lists of tensors by name, one entry a parameter.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from sal_optim import kronecker
from sal_optim.rounding import Number, add, wide

Tensors = dict[str, list[Tensor]]


# Within these bounds of the scale, squares of gradients that count for anything stay in the range
# of float32 before they are scaled.
LARGE = 1e12


def scaled_gradients(grads: list[Tensor], dtype: torch.dtype, scale: Number) -> list[Tensor]:
    """Gradients over the root of their mean square, new, as exact as sums of ``dtype`` need."""
    exact = wide(dtype)
    raised = [grad if grad.dtype == exact else grad.to(exact) for grad in grads]
    # Scaled before it is squared: g * g leaves the range of float32 for |g| < 1e-19.
    return list(torch._foreach_mul(raised, scale))


def _telling(grads: list[Tensor], dtype: torch.dtype, scale: Number) -> list[Tensor]:
    """The same for sums that last: infinite gradients have the scale 0, and enter as 0."""
    scaled = scaled_gradients(grads, dtype, scale)
    if isinstance(scale, Tensor):
        for values in scaled:
            values.nan_to_num_(0.0, 0.0, 0.0)
    return scaled


class Granularity(Protocol):
    """How the evidence of a tensor is stored."""

    # Whether a flat slice of a tensor can be handled by itself, with the same slice of its state.
    sliceable: bool

    def shapes(self, param: Tensor, rank: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state tensors of one real parameter; ``rank`` of its sides."""

    def gather(self, state: Tensors, grads: list[Tensor], scale: Number, at: Number) -> None:
        """Add the squares of ``scale`` times the gradients to the pending evidence.

        ``at``: where sums of low precision are rounded, see ``rounding.py``.
        """

    def evidence(self, state: Tensors, params: list[Tensor]) -> list[Tensor]:
        """Omega, each broadcastable to its parameter."""

    def dtype(self, state: Tensors) -> torch.dtype:
        """The dtype that the statistics are kept in."""


class Element:
    """One number an element: exact, and as large as the parameters."""

    sliceable = True

    def shapes(self, param: Tensor, rank: int) -> dict[str, tuple[int, ...]]:
        shape = tuple(param.shape)
        return {"pending": shape, "evidence": shape}

    def gather(self, state: Tensors, grads: list[Tensor], scale: Number, at: Number) -> None:
        sums = state["pending"]
        alike = all(grad.dtype == sums[0].dtype for grad in grads)
        if alike and not isinstance(scale, Tensor) and 1 / LARGE < scale < LARGE:
            torch._foreach_addcmul_(sums, grads, grads, scale * scale)
            return
        scaled = _telling(grads, sums[0].dtype, scale)
        if sums[0].dtype == scaled[0].dtype:
            torch._foreach_addcmul_(sums, scaled, scaled)
        else:
            for pending, square in zip(sums, torch._foreach_mul(scaled, scaled), strict=True):
                add(pending, square, at)

    def evidence(self, state: Tensors, params: list[Tensor]) -> list[Tensor]:
        return state["evidence"]

    def dtype(self, state: Tensors) -> torch.dtype:
        return state["pending"][0].dtype


class Factored:
    """Row and column means, combined as ``row * column / mean(row)``; vectors stay per element.

    The form of Adafactor's second moment (Shazeer and Stern 2018, arXiv 1804.04235, algorithm 1).
    A tensor of more than two dimensions counts as its first dimension by all the others.
    """

    sliceable = False
    _element = Element()

    def shapes(self, param: Tensor, rank: int) -> dict[str, tuple[int, ...]]:
        if param.dim() < 2:
            return self._element.shapes(param, rank)
        rows, columns = param.shape[0], param.shape[1:].numel()
        return {
            "pending_row": (rows,),
            "pending_column": (columns,),
            "evidence_row": (rows,),
            "evidence_column": (columns,),
        }

    def gather(self, state: Tensors, grads: list[Tensor], scale: Number, at: Number) -> None:
        if "pending" in state:
            return self._element.gather(state, grads, scale, at)
        scaled = _telling(grads, self.dtype(state), scale)
        for row, column, grad in zip(
            state["pending_row"], state["pending_column"], scaled, strict=True
        ):
            if grad.numel():
                squares = grad.reshape(grad.shape[0], -1).square()
                add(row, squares.mean(1), at)
                add(column, squares.mean(0), at)
        return None

    def evidence(self, state: Tensors, params: list[Tensor]) -> list[Tensor]:
        if "evidence" in state:
            return state["evidence"]
        return [
            torch.outer(row / row.mean().clamp_min(torch.finfo(row.dtype).tiny), column).view(
                param.shape
            )
            for row, column, param in zip(
                state["evidence_row"], state["evidence_column"], params, strict=True
            )
        ]

    def dtype(self, state: Tensors) -> torch.dtype:
        return state["pending" if "pending" in state else "pending_row"][0].dtype


class PerTensor:
    """One number a tensor: which layers matter, and no more."""

    sliceable = False

    def shapes(self, param: Tensor, rank: int) -> dict[str, tuple[int, ...]]:
        return {"pending": (), "evidence": ()}

    def gather(self, state: Tensors, grads: list[Tensor], scale: Number, at: Number) -> None:
        scaled = _telling(grads, self.dtype(state), scale)
        for pending, grad in zip(state["pending"], scaled, strict=True):
            if grad.numel():
                norm = torch.linalg.vector_norm(grad) / math.sqrt(grad.numel())
                add(pending, norm.square_(), at)

    def evidence(self, state: Tensors, params: list[Tensor]) -> list[Tensor]:
        return state["evidence"]

    def dtype(self, state: Tensors) -> torch.dtype:
        return state["pending"][0].dtype


class Kronecker(Factored):
    """Directions on both sides of a matrix for the pull, rows and columns for the gate.

    What is beyond rows and columns is in ``kronecker.py``; a step handles it by itself.
    """

    def shapes(self, param: Tensor, rank: int) -> dict[str, tuple[int, ...]]:
        found = super().shapes(param, rank)
        if param.dim() >= 2:
            found.update(kronecker.shapes(param.shape[0], param.shape[1:].numel(), rank))
        return found


GRANULARITIES: dict[str, Granularity] = {
    "element": Element(),
    "factored": Factored(),
    "tensor": PerTensor(),
    "kronecker": Kronecker(),
}
