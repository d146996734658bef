"""The norm of the gradient over all parameters of an optimizer: one scalar a step.

Distributed parameters hold a part of their gradient in each process; their squared norms are summed
over the processes of their mesh, all in one reduction a mesh.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sal_optim.distributed import Sharding
from sal_optim.pieces import Work


def squared_norms(tensors: list[Tensor]) -> Tensor:
    """Sum of squares over tensors of any device and floating dtype; a float32 or float64 scalar.

    Sums of low-precision values are taken in float32. 0 without any element.
    """
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if wide else torch.float32
    tensors = [tensor for tensor in tensors if tensor.numel()]
    if not tensors:
        return torch.zeros((), dtype=dtype)
    norms = torch._foreach_norm(tensors, 2, dtype=dtype)
    device = norms[0].device
    stacked = torch.stack([norm.to(device, non_blocking=True) for norm in norms])
    return torch.dot(stacked, stacked)


def gradient_norm(works: Sequence[Work]) -> tuple[float, int]:
    """The norm over all gradients, of all processes, and the number of their scalars."""
    parts: dict[Sharding | None, list[Tensor]] = {}
    for work in works:
        parts.setdefault(work.sharding, []).append(work.grad)
    squares = 0.0
    for where, grads in parts.items():
        part = squared_norms(grads)
        squares += (part if where is None else where.total(part)).item()
    return math.sqrt(squares), sum(work.total for work in works)
