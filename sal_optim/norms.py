"""The norm of the gradient over all parameters of an optimizer: one scalar a step.

Distributed parameters hold a part of their gradient in each process; their squared norms are summed
over the processes of their mesh, all in one reduction a mesh.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sal_optim.pieces import Work


def squared_norms(tensors: list[Tensor]) -> Tensor:
    """Sum of squares over tensors of any device and floating dtype; a float32 or float64 scalar.

    Sums of low-precision values are taken in float32.
    """
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if wide else torch.float32
    norms = torch._foreach_norm(tensors, 2, dtype=dtype)
    device = norms[0].device
    stacked = torch.stack([norm.to(device, non_blocking=True) for norm in norms])
    return torch.dot(stacked, stacked)


def gradient_norm(works: Sequence[Work]) -> tuple[float, int]:
    """The norm over all gradients and the number of their scalars; (0.0, 0) without any."""
    grads = [work.grad for work in works if work.grad.numel()]
    if not grads:
        return 0.0, 0
    return math.sqrt(squared_norms(grads).item()), sum(grad.numel() for grad in grads)
