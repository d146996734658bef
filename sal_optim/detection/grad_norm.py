"""Norms of lists of tensors, of all processes: one call of torch, one reduction a device mesh.

Sharded tensors hold a part in each process. Their squares are summed over the processes of their
mesh, all of a mesh in one vector.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sal_optim.sharding.dtensor import Sharding, totals


def norms(tensors: Sequence[Tensor], shardings: Sequence[Sharding | None]) -> list[Tensor]:
    """The norm of each tensor over all its processes: 0-dim, float32 or float64.

    Args:
        tensors: local parts, of any device and floating dtype.
        shardings: where the rest of each is; None if all of it is here.
    """
    if not tensors:
        return []
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if wide else torch.float32
    found = list(torch._foreach_norm(list(tensors), 2, dtype=dtype))
    cut = [index for index, where in enumerate(shardings) if where is not None]
    squares = totals([found[i].square() for i in cut], [shardings[i] for i in cut])
    for index, square in zip(cut, squares, strict=True):
        found[index] = square.sqrt()
    return found


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape and of any devices, stacked on the device of the last."""
    device = parts[-1].device
    return torch.stack(
        [p if p.device == device else p.to(device, non_blocking=True) for p in parts]
    )


def to_host(value: Tensor) -> tuple[Tensor, Any]:
    """A copy on the host that nobody waits for, and the event of its arrival."""
    if value.device.type != "cuda":
        return value.to("cpu", non_blocking=True).clone(), None
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    host.copy_(value, non_blocking=True)
    arrives = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrives.record(torch.cuda.current_stream(value.device))
    return host, arrives
