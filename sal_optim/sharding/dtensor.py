"""Parameters spread over processes: what of them is here, and sums over all processes.

Elementwise work needs no communication: it runs on local parts. What needs all parts are vectors of
sums, reduced for each device mesh. Distributed tensors are known by their attributes alone, so that
this file does not import ``torch.distributed.tensor``, which takes long. It knows nothing of
optimizers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter


class Sharding(NamedTuple):
    """The processes that hold the parts of a tensor: a device mesh and the dimensions it cuts."""

    mesh: Any  # torch.distributed.device_mesh.DeviceMesh
    dims: tuple[int, ...]

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over these processes; one reduction for each dimension."""
        from torch.distributed import all_reduce

        value = value.to(self.mesh.device_type)
        for dim in self.dims:
            all_reduce(value, group=self.mesh.get_group(dim))
        return value


def totals(values: Sequence[Tensor], shardings: Sequence[Sharding | None]) -> list[Tensor]:
    """Each tensor summed over the processes of its sharding; one reduction for those of a mesh.

    Args:
        values: of one shape and dtype where they share a sharding.
        shardings: one a tensor; None if it is whole.
    """
    found = list(values)
    meshes: dict[Sharding, list[int]] = {}
    for index, where in enumerate(shardings):
        if where is not None:
            meshes.setdefault(where, []).append(index)
    for where, indices in meshes.items():
        summed = where.total(torch.stack([found[index] for index in indices]))
        for index, total in zip(indices, summed.unbind(), strict=True):
            found[index] = total
    return found


# Asking these for an attribute that they lack takes longer than many a small tensor's update.
PLAIN = (Parameter, Tensor)


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``."""
    if type(tensor) in PLAIN:
        return False
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def sharding(tensor: Tensor) -> Sharding | None:
    """Where the other parts of a tensor are; None if all of it is here.

    Raises:
        ValueError: its processes hold summands, not parts.
    """
    if not is_distributed(tensor):
        return None
    placements = tensor.placements  # type: ignore[attr-defined]
    if any(placement.is_partial() for placement in placements):
        raise ValueError(
            f"Invalid params value: a DTensor placed {placements}; parameters must be sharded or "
            "replicated, not partial"
        )
    dims = (index for index, placement in enumerate(placements) if not placement.is_replicate())
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    cut = tuple(dim for dim in dims if mesh.size(dim) > 1)
    return Sharding(mesh, cut) if cut else None


def aligned(grad: Tensor, param: Tensor) -> Tensor:
    """The gradient, cut over processes as its parameter is.

    Tensor parallelism may leave it as summands; making it whole takes communication, which every
    process does alike.

    Raises:
        ValueError: one of the two is a ``DTensor`` and the other is not.
    """
    if is_distributed(grad) != is_distributed(param):
        kinds = type(grad).__name__, type(param).__name__
        raise ValueError(f"Invalid grad value: a {kinds[0]} for a {kinds[1]}; both must be DTensor")
    if is_distributed(param) and grad.placements != param.placements:  # type: ignore[attr-defined]
        mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
        return grad.redistribute(mesh, placements)  # type: ignore[attr-defined, no-any-return]
    return grad


def whole(tensor: Tensor) -> Tensor:
    """All parts of a tensor, on every process: itself, where it is not distributed."""
    if not is_distributed(tensor):
        return tensor
    found: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return found


def put_whole(tensor: Tensor, value: Tensor) -> None:
    """Write what :func:`whole` gave, and was changed since, back to this process's part."""
    if value is tensor:
        return
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    same = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
    tensor.copy_(same.redistribute(mesh, placements))


def plain(tensor: Tensor) -> Tensor:
    """This process's part as a real tensor that shares memory with it."""
    part: Tensor = tensor.to_local() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]
    return torch.view_as_real(part) if part.is_complex() else part


def real_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape of the whole; a complex tensor has a last dimension of 2."""
    return (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)
