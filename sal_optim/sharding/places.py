"""Where parts of a tensor lie in the whole: the part of this process, and its blocks.

It asks torch as ``torch.distributed.checkpoint`` does, so that uneven, empty and twice cut parts
are where that one saves them.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sal_optim.sharding.dtensor import Sharding, is_distributed, real_shape, whole
from sal_optim.sharding.stacked import layout_of, stacked_zeros


class Place(NamedTuple):
    """A box in a tensor."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """By which the whole is indexed."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))

    @property
    def numel(self) -> int:
        return math.prod(self.size)

    def shared(self, other: "Place") -> "Place | None":
        """The box that is in both; None where there is none."""
        pairs = list(zip(self.slices, other.slices, strict=True))
        start = tuple(max(a.start, b.start) for a, b in pairs)
        ends = (min(a.stop, b.stop) for a, b in pairs)
        size = tuple(max(0, end - first) for end, first in zip(ends, start, strict=True))
        return Place(start, size) if math.prod(size) else None

    def rows_and_columns(self, box: "Place") -> tuple[Tensor, Tensor]:
        """Where a box lies in this one, which counts as its first dimension by all the others."""
        return indices(
            tuple(b - a for a, b in zip(self.start, box.start, strict=True)), box.size, self.size
        )


def indices(
    start: tuple[int, ...],
    size: tuple[int, ...],
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """The rows, and the columns in one row, of a box in a tensor of a shape."""
    rows = torch.arange(size[0], device=device) + start[0]
    columns = torch.zeros(1, dtype=torch.long, device=device)
    for first, count, length in zip(start[1:], size[1:], shape[1:], strict=True):
        step = torch.arange(count, device=device) + first
        columns = (columns[:, None] * length + step).flatten()
    return rows, columns


def place_of(tensor: Tensor) -> Place:
    """Where this process's real part lies in the whole."""
    shape = real_shape(tensor)
    if not is_distributed(tensor):
        return Place((0,) * len(shape), shape)
    (chunk,) = tensor.__create_chunk_list__()  # type: ignore[attr-defined]
    more = ((0,), (2,)) if tensor.is_complex() else ((), ())
    return Place((*chunk.offsets, *more[0]), (*chunk.sizes, *more[1]))


def where_of(tensor: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows and columns of this process's part in the whole."""
    return indices(*place_of(tensor), real_shape(tensor), device)


def places_here(tensor: Tensor) -> list[Place]:
    """The blocks of this process, in their order; none where its part is empty."""
    own, layout = place_of(tensor), layout_of(tensor)
    if layout is None or not own.numel:
        return [own] if layout is None else []
    each, end = layout.block[0], own.start[0] + own.size[0]
    return [
        Place((first, *own.start[1:]), (min(each, end - first), *own.size[1:]))
        for first in range(own.start[0], end, each)
    ]


def places_of_all(tensor: Tensor) -> list[Place]:
    """The blocks of all processes in the order of stacked state; every process must call it.

    A process without a part has an empty one.
    """
    layout = layout_of(tensor)
    if layout is None or not layout.lead:
        return [place_of(tensor)]
    dims, depth = len(real_shape(tensor)), len(layout.lead)
    stack = stacked_zeros(tensor, (*layout.lead, 2 * dims), torch.int64)
    own: Tensor = stack.to_local().flatten(0, depth - 1)  # type: ignore[attr-defined]
    for index, place in enumerate(places_here(tensor)):
        own[index] = torch.tensor([*place.start, *place.size])
    found = whole(stack).flatten(0, depth - 1).tolist()
    return [Place(tuple(row[:dims]), tuple(row[dims:])) for row in found]


def whole_of(local: Tensor, like: Tensor) -> Tensor:
    """All parts of what is cut as a real parameter is; every process must call it."""
    if not is_distributed(like):
        return local
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    stride = torch.empty(like.shape, device="meta").stride()
    found: Tensor = DTensor.from_local(
        local, mesh, placements, run_check=False, shape=like.shape, stride=stride
    )
    return whole(found)


@contextlib.contextmanager
def one_writes(params: Iterable[Tensor]) -> Iterator[bool]:
    """Tells one of the processes that share parameters to write; the others wait at the end.

    Every process must enter it. It is true in every process where no parameter is distributed.

    Raises:
        RuntimeError: the process that writes has failed, and this is another one.
    """
    mesh = next((p.device_mesh for p in params if is_distributed(p)), None)  # type: ignore[attr-defined]
    if mesh is None:
        yield True
        return
    all_of_it = Sharding(mesh, tuple(range(mesh.ndim)))
    try:
        yield not any(mesh.get_coordinate())
    except BaseException:
        all_of_it.total(torch.ones(()))
        raise
    if float(all_of_it.total(torch.zeros(()))):
        raise RuntimeError("another process failed to write; its error says why")
