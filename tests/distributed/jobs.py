"""What the processes do. Every function runs on all ranks alike, or in one process without a group.

A model is placed on the group in one of several ways; whatever the way, a run must be the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from sal_optim import SALOptimizer
from tests.drive import Stream, consolidations, profile, stream
from tests.rows import ROWS

STEPS, CHANGES = 200, (60, 140)
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


@functools.cache
def gradients(steps: int = STEPS, changes: tuple[int, ...] = CHANGES) -> Stream:
    """Those of a run for all tests; drawing them takes as long as following them."""
    return stream(list(Parameters().parts), profile(steps, changes))


def make(name: str, params: Iterable[Tensor], **kwargs: Any) -> SALOptimizer:
    row = next(row for row in ROWS if row.name == name)
    return row(params, **kwargs)


def outcome(optimizer: SALOptimizer, found: list[int]) -> dict[str, Any]:
    """All that processes must agree on, put together from their parts."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return {
        "found": list(found),
        "threshold": dict(optimizer.param_groups[0]["threshold"]),
        "params": [whole(param) for param in params],
        "state": [
            {
                name: whole(value) if isinstance(value, Tensor) else value
                for name, value in optimizer.state[param].items()
            }
            for param in params
        ],
    }


def drawn(
    way: str, name: str, kwargs: dict[str, Any], steps: tuple[int, int] = (0, STEPS)
) -> dict[str, Any]:
    """A run over drawn gradients with two changes of regime."""
    model = placed(Parameters(), way)
    params = list(model.parameters())
    optimizer = make(name, params, **kwargs)
    found = follow(optimizer, params, steps)
    return outcome(optimizer, found)


def follow(optimizer: SALOptimizer, params: Sequence[Tensor], steps: tuple[int, int]) -> list[int]:
    """Steps through the drawn gradients; those that consolidated."""
    found = []
    for index in range(*steps):
        count = consolidations(optimizer)
        give(params, gradients()[index])
        optimizer.step()
        found += [index] if consolidations(optimizer) > count else []
    return found


def trained(way: str, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A run of a network over three regimes, each process with its part of each batch.

    In float64: the network feeds rounding back into its gradients.
    """
    model = placed(Net(), way)
    optimizer = make(name, model.parameters(), **kwargs)
    generator = torch.Generator().manual_seed(1)
    targets = [
        10.0**k * torch.randn(5, 3, generator=generator, dtype=torch.float64) for k in range(3)
    ]
    found = []
    for step in range(STEPS):
        inputs = torch.randn(16, 5, generator=generator, dtype=torch.float64)
        wanted = inputs @ targets[sum(step >= change for change in CHANGES)]
        if way in ("ddp", "fsdp"):
            part = slice(dist.get_rank(), None, dist.get_world_size())
            inputs, wanted = inputs[part], wanted[part]
        optimizer.zero_grad()
        (model(inputs) - wanted).square().mean().backward()
        count = consolidations(optimizer)
        optimizer.step()
        found += [step] if consolidations(optimizer) > count else []
    return outcome(optimizer, found)


def collectives(way: str) -> list[int]:
    """How many a step takes, a first one, one later, one that consolidates; and one by hand."""
    model = placed(Parameters(), way)
    params = list(model.parameters())
    optimizer = make("SALAdam", params)
    counts = []
    for index, grads in enumerate(gradients(64, (60,))):
        give(params, grads)
        before = consolidations(optimizer)
        with CommDebugMode() as mode:
            optimizer.step()
        if index in (0, 30) or consolidations(optimizer) > before:
            counts.append(mode.get_total_counts())
    with CommDebugMode() as mode:
        optimizer.diagnostics()
        optimizer.consolidate()
        optimizer.stability(params[0])
    return [*counts, mode.get_total_counts()]


def diagnostics_on_one_rank() -> tuple[float, dict[str, float]]:
    """Were it to speak to others, this would hang."""
    model = placed(Parameters(), "fsdp")
    params = list(model.parameters())
    optimizer = make("SALAdam", params)
    follow(optimizer, params, (0, 75))
    report = optimizer.diagnostics() if dist.get_rank() == 0 else {}
    share = [optimizer.diagnostics()[name] for name in ("threshold", "surprise", "consolidations")]
    dist.barrier()
    return share, report


def bad_gradient(value: float) -> list[dict[str, Any]]:
    """A non-finite number in one process's part alone."""
    model = placed(Parameters(), "fsdp")
    params = list(model.parameters())
    optimizer = make("SALAdam", params)
    follow(optimizer, params, (0, 75))
    before = outcome(optimizer, [])
    give(params, gradients()[0])
    if dist.get_rank() == dist.get_world_size() - 1:
        grad = params[0].grad
        assert isinstance(grad, DTensor)
        grad.to_local().view(-1)[0] = value
    optimizer.step()
    return [before, outcome(optimizer, [])]


def refusals() -> dict[str, str]:
    """The errors for what is not supported, by case."""
    mesh = mesh_of()
    sharded = placed(Parameters(), "fsdp")
    partial = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()]))
    cases = {
        "factored": lambda: make("SALAdam", sharded.parameters(), granularity="factored"),
        "tensor": lambda: make("SALAdam", sharded.parameters(), granularity="tensor"),
        "partial": lambda: make("SALAdam", [partial], granularity="tensor"),
        "plain state": lambda: _load_plain(sharded),
        "sharded state": lambda: _load_sharded(sharded),
        "factored state": lambda: _load_factored(sharded),
    }
    errors = {}
    for name, case in cases.items():
        with contextlib.suppress(ZeroDivisionError):
            try:
                case()
                errors[name] = "none"
            except ValueError as error:
                errors[name] = str(error)
    later = make("SALAdam", [nn.Parameter(torch.ones(2))], granularity="factored")
    try:
        later.add_param_group({"params": list(sharded.parameters())})
        errors["later"] = "none"
    except ValueError as error:
        errors["later"] = str(error)
    errors["groups"] = str(len(later.param_groups))
    return errors


def _stepped(params: Iterable[Tensor], **kwargs: Any) -> SALOptimizer:
    params = list(params)
    optimizer = make("SALAdam", params, **kwargs)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer


def _load_plain(sharded: nn.Module) -> None:
    state = _stepped(Parameters().parameters()).state_dict()
    make("SALAdam", sharded.parameters()).load_state_dict(state)


def _load_sharded(sharded: nn.Module) -> None:
    state = _stepped(sharded.parameters()).state_dict()
    make("SALAdam", Parameters().parameters()).load_state_dict(state)


def _load_factored(sharded: nn.Module) -> None:
    state = _stepped(Parameters().parameters(), granularity="factored").state_dict()
    make("SALAdam", sharded.parameters()).load_state_dict(state)


def replicated_factored(granularity: str) -> dict[str, Any]:
    """Replicated parameters may have any granularity."""
    model = placed(Parameters(), "ddp")
    params = list(model.parameters())
    optimizer = make("SALAdam", params, granularity=granularity)
    return outcome(optimizer, follow(optimizer, params, (0, 80)))


def partial_gradients() -> tuple[list[Tensor], list[Tensor]]:
    """Tensor parallelism leaves gradients as summands over processes."""
    mesh, world = mesh_of(), dist.get_world_size()
    params = [
        nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [placement]))
        for placement in (Replicate(), Shard(0))
    ]
    plain = [nn.Parameter(torch.ones(4, 3)) for _ in params]
    ours, theirs = make("SALAdam", params), make("SALAdam", plain)
    for grads in stream(plain, [1.0] * 5):
        for param, twin, grad in zip(params, plain, grads, strict=True):
            param.grad = DTensor.from_local(grad / world, mesh, [Partial()])
            twin.grad = grad
        before = [param.grad.to_local().clone() for param in params]
        ours.step()
        theirs.step()
        for param, grad in zip(params, before, strict=True):
            assert torch.equal(param.grad.to_local(), grad), "the gradient is left alone"
    return [whole(param) for param in params], [whole(param) for param in plain]


def save(way: str, name: str, folder: str, at: int) -> dict[str, Any]:
    """A run that saves halfway; its end."""
    model = placed(Parameters(), way)
    params = list(model.parameters())
    optimizer = make(name, params)
    found = follow(optimizer, params, (0, at))
    state = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    dcp.save(state, checkpoint_id=folder)
    halfway = outcome(optimizer, found)
    found += follow(optimizer, params, (at, STEPS))
    return {"halfway": halfway, "end": outcome(optimizer, found)}


def resume(way: str, name: str, folder: str, at: int) -> dict[str, Any]:
    """The rest of that run, from its files."""
    model = placed(Parameters(), way)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    params = list(model.parameters())
    optimizer = make(name, params)
    state = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    dcp.load(state, checkpoint_id=folder, no_dist=way == "single")
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    halfway = outcome(optimizer, [])
    found = follow(optimizer, params, (at, STEPS))
    return {"halfway": halfway, "end": outcome(optimizer, found)}


def full_state(name: str) -> dict[str, Any]:
    """Through one whole state dict, as for a file of one process."""
    model = placed(Parameters(), "fsdp")
    params = list(model.parameters())
    optimizer = make(name, params)
    follow(optimizer, params, (0, 80))
    state = get_optimizer_state_dict(
        model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    fresh = make(name, params)
    fresh.zero_grad()  # torch makes the state to load into only where there is no gradient
    # Rank 0 alone has the whole.
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, fresh, state, options=options)
    return {"before": outcome(optimizer, []), "after": outcome(fresh, [])}


def hang(rank: int) -> None:
    """One rank waits for the others, who never come."""
    if dist.get_rank() == rank:
        dist.barrier()
