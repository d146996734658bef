"""Sums in two-byte floats that go on growing: each addition is rounded up or down in turn.

A bfloat16 sum of numbers near 1, each rounded to the nearest, stops for ever at 256. Rounded up as
often as the lost part says, it stays right on average. What decides is a sequence, not chance, so
that a run can be repeated and resumed bit for bit, and all paths and processes agree.
"""

import torch
from torch import Tensor

Number = float | Tensor
# A strength of more changes nothing either, and leaves the range of float32.
MOST = 1e30


def on_host(value: Tensor) -> bool:
    """Whether reading a number of a tensor waits for no device."""
    return value.is_cpu


# The fractional parts of its multiples fill [0, 1) evenly, whatever stretch of them is taken.
GOLDEN = 0.6180339887498949


def dither(count: float) -> float:
    """The ``count``-th place in [0, 1) at which to round."""
    return count * GOLDEN % 1.0


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in for values that are kept in ``dtype``."""
    return torch.float32 if dtype.itemsize == 2 else dtype


def add(total: Tensor, value: Tensor, at: float, *, keep: float = 1.0, weight: float = 1.0) -> None:
    """``total = keep * total + weight * value``, in place; ``at`` from :func:`dither`."""
    dtype = wide(total.dtype)
    if dtype == total.dtype:
        total.mul_(keep).add_(value, alpha=weight)
        return
    exact = total.to(dtype).mul_(keep).add_(value.to(dtype), alpha=weight)
    if total.dtype == torch.bfloat16:
        # bfloat16 is the upper half of float32: carry what the lower half and `at` make together.
        bits = exact.view(torch.int32)
        bits.add_(int(at * 65536.0))
        bits.bitwise_and_(-65536)
    total.copy_(exact)
