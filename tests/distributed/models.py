"""Models, and the ways to place them on a group of processes: however it is, a run is the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

# On four processes: an even cut, an uneven one, empty parts, and an empty tensor.
SHAPES = ((8, 3), (7, 2), (5,), (1, 4), (2, 3, 2), (1,), (0, 3))


class Parameters(nn.Module):
    """Parameters of awkward shapes, for drawn gradients."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.parts = nn.ParameterList(
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for shape in SHAPES
        )


class Net(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        self.double()


def mesh_of(*sizes: int, names: tuple[str, ...] | None = None) -> DeviceMesh:
    return init_device_mesh("cpu", sizes or (dist.get_world_size(),), mesh_dim_names=names)


def placed(model: nn.Module, way: str) -> nn.Module:
    """The model on the group: in one of the ways of torch, or as it is."""
    if way == "single":
        return model
    if way == "ddp":
        return DistributedDataParallel(model)
    if way == "fsdp":
        fully_shard(model, mesh=mesh_of())
    elif way == "mixed":
        assert isinstance(model, Parameters)
        mesh = mesh_of()
        for index in (0, 2, 5):
            _distribute(model, index, mesh, [Shard(0)])
        _distribute(model, 3, mesh, [Replicate()])
    elif way == "columns":
        assert isinstance(model, Parameters)
        mesh = mesh_of()
        for index, param in enumerate(model.parts):
            _distribute(model, index, mesh, [Shard(param.dim() - 1)])
    elif way == "hybrid":
        fully_shard(model, mesh=mesh_of(2, dist.get_world_size() // 2, names=("copies", "parts")))
    elif way == "tensor-parallel":
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(model, mesh_of(), plan)
    elif way == "fsdp-and-tensor-parallel":
        mesh = mesh_of(2, dist.get_world_size() // 2, names=("data", "tensor"))
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(model, mesh["tensor"], plan)
        fully_shard(model, mesh=mesh["data"])
    else:
        raise ValueError(way)
    return model


def _distribute(model: Parameters, index: int, mesh: DeviceMesh, placements: list[Any]) -> None:
    model.parts[index] = nn.Parameter(
        distribute_tensor(model.parts[index].detach(), mesh, placements)
    )


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def give(params: Sequence[Tensor], grads: Iterable[Tensor]) -> None:
    """Each process's part of these gradients."""
    for param, grad in zip(params, grads, strict=True):
        if isinstance(param, DTensor):
            # None: every process has the whole, and takes its part without asking.
            param.grad = distribute_tensor(
                grad.clone(), param.device_mesh, param.placements, src_data_rank=None
            )
        else:
            param.grad = grad.clone()
