"""Evidence of what the data seen so far rests on: how it is stored, gathered and read.

Pending evidence ``P`` is the sum, over the steps of the present regime, of squared gradients whose
mean over all scalars of the optimizer is 1 in each step. A consolidation turns it into evidence
``Omega``. Four granularities store them: per element, as row and column means, as one number a
tensor, or by directions. This file knows nothing of the gate, the threshold or any base optimizer.

State comes as lists of tensors by name, one entry a parameter.
"""

import math
from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from sal_optim import kronecker
from sal_optim.utils.rounding import Number, add, wide

Tensors = dict[str, list[Tensor]]


# Elements of a slice of a large tensor on a CPU: float32 slices of a parameter, its gradient, state
# and temporaries stay within a few megabytes. Of the powers from 15 to 18, this one was the fastest
# or near it from 200 thousand to 4 million elements. A multiple of every vector width, so that
# slicing rounds nothing anew.
SLICE = 1 << 17
# The same where its elements share evidence, which is then none of what has to fit.
SHARED = 1 << 18
# Elements of what is done at once elsewhere, where each launch costs: bounds the temporaries of a
# step at three times this many values.
LIST = 1 << 24
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


def _telling_rows(
    grads: list[Tensor], dtype: torch.dtype, scale: Number
) -> Iterator[Iterable[Tensor]]:
    """The same as matrices of some rows, new; of a large gradient, one is made after the other."""
    most = SHARED if grads[0].is_cpu else LIST
    small = [grad for grad in grads if grad.numel() <= most]
    scaled = iter(_telling(small, dtype, scale) if small else ())
    for grad in grads:
        if grad.numel() <= most:
            yield [_rows(next(scaled))]
        else:
            parts = torch.split(_rows(grad), max(1, most * grad.shape[0] // grad.numel()))
            yield (_telling([part], dtype, scale)[0] for part in parts)


def _rows(tensor: Tensor) -> Tensor:
    """A matrix of the same elements, its rows those of the first dimension."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.reshape(-1, 1)


class Granularity(Protocol):
    """How the evidence of a tensor is stored."""

    # Whether evidence can be gathered from a slice of a tensor by itself, with the same slice of
    # its state. If not, it is gathered from whole tensors.
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
    """Row and column means, combined as ``row * column / mean(column)``; vectors stay per element.

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
        found = _telling_rows(grads, self.dtype(state), scale)
        for row, column, grad, parts in zip(
            state["pending_row"], state["pending_column"], grads, found, strict=True
        ):
            if grad.numel():
                squares = (part.square_() for part in parts)
                rows, columns = zip(*((part.mean(1), part.sum(0)) for part in squares), strict=True)
                add(row, torch.cat(rows) if len(rows) > 1 else rows[0], at)
                add(column, reduce(torch.add, columns), at, weight=1 / grad.shape[0])
        return None

    def evidence(self, state: Tensors, params: list[Tensor]) -> list[Tensor]:
        if "evidence" in state:
            return state["evidence"]
        # The mean of all is that of the columns too, which slices have whole.
        return [
            torch.outer(row, column / column.mean().clamp_min(torch.finfo(column.dtype).tiny)).view(
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
        found = _telling_rows(grads, self.dtype(state), scale)
        for pending, grad, parts in zip(state["pending"], grads, found, strict=True):
            if grad.numel():
                norms = [torch.linalg.vector_norm(part) for part in parts]
                norm = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]
                add(pending, (norm / math.sqrt(grad.numel())).square_(), at)

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
