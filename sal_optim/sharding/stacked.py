"""State of a sharded matrix that is no part of a whole: each process's own, stacked into a DTensor.

The importance of a block of rows (or columns) is of that block alone. Its tensors are given leading
dimensions that count blocks, and these are cut over processes. ``torch.distributed.checkpoint``
then saves, gathers and loads them as it does any other DTensor.
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sal_optim.sharding.dtensor import is_distributed, real_shape

# Where each process's rows are whole multiples of this, blocks have as many, and results do not
# depend on the number of processes. All other parts are one block a process.
BLOCK_ROWS = 256


class Layout(NamedTuple):
    """How a sharded tensor is cut into blocks."""

    lead: tuple[int, ...]  # blocks, for each dimension of the mesh that cuts the tensor
    block: tuple[int, ...]  # the shape of the largest block

    @property
    def suffix(self) -> str:
        """Of the names of stacked state: a checkpoint of another layout has none of these names."""
        return f"_of_{'x'.join(map(str, self.lead))}" if self.lead else ""

    @property
    def code(self) -> float:
        """One number for all of ``lead``; 0 for what is not cut."""
        return float(sum(count << (20 * index) for index, count in enumerate(self.lead)))


def layout_of(tensor: Tensor) -> Layout | None:
    """The blocks of a DTensor, real; None of any other tensor."""
    if not is_distributed(tensor):
        return None
    return layout_for(real_shape(tensor), *_mesh_of(tensor))


@lru_cache(maxsize=1024)
def layout_for(
    shape: tuple[int, ...], sizes: tuple[int, ...], dims: tuple[int | None, ...]
) -> Layout:
    """The blocks of a tensor of a shape, on a mesh of sizes.

    ``dims`` are the tensor's dimensions that those of the mesh cut; None: it holds copies.
    """
    parts = _parts(len(shape), sizes, dims)
    block = tuple(-(-size // count) for size, count in zip(shape, parts, strict=True))
    lead = tuple(size for size, dim in zip(sizes, dims, strict=True) if dim is not None)
    by_rows = [dim for dim in dims if dim is not None] == [0]
    if by_rows and block[0] and block[0] % BLOCK_ROWS == 0:
        return Layout((-(-shape[0] // BLOCK_ROWS),), (BLOCK_ROWS, *block[1:]))
    return Layout(lead, block)


def stacked_placements(tensor: Tensor) -> tuple[Any, ...]:
    """How stacked state of a DTensor is cut: by its leading dimensions, in the mesh's order."""
    from torch.distributed.tensor import Replicate, Shard

    lead, placements = itertools.count(), tensor.placements  # type: ignore[attr-defined]
    return tuple(Shard(next(lead)) if hasattr(p, "dim") else Replicate() for p in placements)


def stacked_zeros(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A DTensor of zeros on the processes of another, cut by its leading dimensions.

    On the device of that one's local part, which is the host where parameters are offloaded.
    """
    mesh, placements = tensor.device_mesh, stacked_placements(tensor)  # type: ignore[attr-defined]
    here = list(shape)
    for index, placement in enumerate(placements):
        if hasattr(placement, "dim"):
            count, rank = mesh.size(index), mesh.get_local_rank(index)
            each = -(-shape[placement.dim] // count)
            here[placement.dim] = max(0, min(each, shape[placement.dim] - each * rank))
    return _zeros(tensor, placements, shape, here, dtype)


def row_zeros(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros, one for each row of a tensor, and in a row for each part that processes have of it.

    Cut as the tensor is, so that the numbers of a process's rows are on that process.
    """
    rows = (1,) * (tensor.dim() - 1)
    if not is_distributed(tensor):
        return tensor.new_zeros((len(tensor), *rows), dtype=dtype)
    here = (len(tensor.to_local()), *rows)  # type: ignore[attr-defined]
    return _zeros(tensor, tensor.placements, row_shape(tensor), here, dtype)  # type: ignore[attr-defined]


def row_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape of :func:`row_zeros` over all processes."""
    if not is_distributed(tensor):
        return (len(tensor), *(1,) * (tensor.dim() - 1))
    return (len(tensor), *_parts(tensor.dim(), *_mesh_of(tensor))[1:])


def _mesh_of(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """Of each dimension of a DTensor's mesh its size, and which dimension it cuts, or None."""
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    return tuple(mesh.shape), tuple(p.dim if hasattr(p, "dim") else None for p in placements)


def _parts(depth: int, sizes: tuple[int, ...], dims: tuple[int | None, ...]) -> list[int]:
    """How many parts each dimension of a tensor is cut into."""
    pairs = list(zip(sizes, dims, strict=True))
    return [math.prod(size for size, dim in pairs if dim == index) for index in range(depth)]


def _zeros(
    tensor: Tensor,
    placements: Sequence[Any],
    shape: tuple[int, ...],
    here: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    local = tensor.to_local().new_zeros(here, dtype=dtype)  # type: ignore[attr-defined]
    stride = torch.empty(shape, device="meta").stride()
    meta = TensorMeta(torch.Size(shape), stride, dtype)
    spec = DTensorSpec(tensor.device_mesh, tuple(placements), tensor_meta=meta)  # type: ignore[attr-defined]
    found: Tensor = DTensor(local, spec, requires_grad=False)  # type: ignore[no-untyped-call]
    return found
