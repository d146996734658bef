"""The norm of the gradient over all parameters of an optimizer: one scalar a step.

Distributed parameters hold a part of their gradient in each process; their squared norms are summed
over the processes of their mesh, all in one reduction a mesh.
"""

import math
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from sal_optim.distributed import Sharding
from sal_optim.pieces import Work

# Elements of a row of a large tensor on a CPU, where torch takes the norm of a whole tensor in one
# thread, of rows in all of them.
ROW = 1 << 14
# Elements from which that pays for its calls.
LARGE = 1 << 19


def squared_norms(tensors: list[Tensor]) -> Tensor:
    """Sum of squares over tensors of any device and floating dtype; a float32 or float64 scalar.

    Sums of low-precision values are taken in float32. 0 without any element.
    """
    rows, whole = _norms(tensors)
    norms = [*rows, torch.stack(_beside(whole))] if whole else rows
    if not norms:
        return torch.zeros((), dtype=_dtype(tensors))
    joined = torch.cat(_beside(norms)) if len(norms) > 1 else norms[0]
    return torch.dot(joined, joined)


def _squares_here(tensors: list[Tensor]) -> float:
    """The same for tensors on a CPU, where numbers are read at once: the fewest operations."""
    rows, whole = _norms(tensors)
    norms = [float(norm) for norm in whole]
    return sum(float(torch.dot(row, row)) for row in rows) + sum(norm * norm for norm in norms)


def _norms(tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Norms of rows of large tensors on a CPU, a vector each, and of all that is left, numbers."""
    dtype = _dtype(tensors)
    rows: list[Tensor] = []
    whole: list[Tensor] = []
    for tensor in tensors:
        size = tensor.numel()
        if size >= LARGE and tensor.is_cpu and tensor.is_contiguous():
            cut, rest = tensor.view(-1).split_with_sizes([size - size % ROW, size % ROW])
            rows.append(torch.linalg.vector_norm(cut.view(-1, ROW), dim=1, dtype=dtype))
            if rest.numel():
                whole.append(rest)
        elif size:
            whole.append(tensor)
    return rows, list(torch._foreach_norm(whole, 2, dtype=dtype)) if whole else []


def _dtype(tensors: list[Tensor]) -> torch.dtype:
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def _beside(parts: Sequence[Tensor]) -> list[Tensor]:
    """All on the device of the last."""
    device = parts[-1].device
    return [p if p.device == device else p.to(device, non_blocking=True) for p in parts]


def gradient_norm(works: Sequence[Work]) -> tuple[float, int]:
    """The norm over all gradients, of all processes, and the number of their scalars."""
    squares, size = gradient_squares(works)
    return math.sqrt(squares), size


@overload
def gradient_squares(works: Sequence[Work]) -> tuple[float, int]: ...


@overload
def gradient_squares(works: Sequence[Work], *, wait: bool) -> tuple[Tensor | float, int]: ...


def gradient_squares(works: Sequence[Work], *, wait: bool = True) -> tuple[Tensor | float, int]:
    """The sum of squares over all gradients, and the number of their scalars.

    Without a wait it is a 0-dim tensor where gradients are, unless there are none.
    """
    parts: dict[Sharding | None, list[Work]] = {}
    served: dict[Any, list[Work]] = {}
    for work in works:
        parts.setdefault(work.sharding, []).append(work)
        if work.library is not None and work.squares is None:
            served.setdefault(work.library, []).append(work)
    for library, members in served.items():
        library.squares(members)
    squares: Tensor | float = 0.0
    for where, members in parts.items():
        known = [work.squares for work in members if work.squares is not None]
        grads = [work.grad for work in members if work.squares is None]
        here = not grads or (wait and all(grad.is_cpu for grad in grads))
        if where is None and here:
            squares += sum(known) + _squares_here(grads)
            continue
        total = squared_norms(grads)
        if known:
            total = total + sum(known)
        if where is not None:
            total = where.total(total)
        if wait:
            squares += total.item()
        else:
            where_it_is = squares.device if isinstance(squares, Tensor) else total.device
            squares = squares + total.to(where_it_is)
    return squares, sum(work.total for work in works)
