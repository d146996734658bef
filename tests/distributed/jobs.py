"""What the processes do, on all ranks alike, or in one process without a group."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from sal_optim import SALOptimizer
from sal_optim.integrations.continual import Continual
from tests.distributed.models import Net, Parameters, give, mesh_of, placed, whole
from tests.testing.drive import Stream, consolidations, profile, stream
from tests.testing.rows import row_of

STEPS, CHANGES = 200, (60, 140)


@functools.cache
def gradients(steps: int = STEPS, changes: tuple[int, ...] = CHANGES) -> Stream:
    """Those of a run for all tests; drawing them takes as long as following them."""
    return stream(list(Parameters().parts), profile(steps, changes))


def make(name: str, params: Iterable[Tensor], **kwargs: Any) -> SALOptimizer:
    row = row_of(name)
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

    In float64: the network feeds rounding back into its gradients. Targets grow, so that each
    change is noticed, and stay small enough that the base optimizer settles.
    """
    model = placed(Net(), way)
    optimizer = make(name, model.parameters(), **kwargs)
    part = slice(None)
    if way in ("ddp", "fsdp"):
        part = slice(dist.get_rank(), None, dist.get_world_size())
    return outcome(optimizer, train(optimizer, model, part))


def train(optimizer: SALOptimizer, model: Callable[[Tensor], Tensor], part: slice) -> list[int]:
    """Train on a part of each batch; the steps that consolidated."""
    generator = torch.Generator().manual_seed(1)
    targets = [
        scale * torch.randn(5, 3, generator=generator, dtype=torch.float64)
        for scale in (0.1, 0.5, 2.0)
    ]
    found = []
    for step in range(STEPS):
        inputs = torch.randn(16, 5, generator=generator, dtype=torch.float64)
        wanted = inputs @ targets[sum(step >= change for change in CHANGES)]
        optimizer.zero_grad()
        (model(inputs[part]) - wanted[part]).square().mean().backward()
        count = consolidations(optimizer)
        optimizer.step()
        found += [step] if consolidations(optimizer) > count else []
    return found


def collectives(way: str, kwargs: dict[str, Any] | None = None) -> list[int]:
    """How many a step takes: a first one, one that is measured, one later, one that consolidates.

    And one after it whose slope is measured; and how many a look and a consolidation by hand take.
    """
    model = placed(Parameters(), way)
    params = list(model.parameters())
    optimizer = make("SALAdam", params, **(kwargs or {}))
    counts = []
    for index, grads in enumerate(gradients(66, ())):
        give(params, grads)
        before = consolidations(optimizer)
        with CommDebugMode() as mode:
            optimizer.step()
        if index in (0, 1, 30, 65) or consolidations(optimizer) > before:
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


def told() -> dict[str, Any]:
    """A loss that rises in the first process alone, told by a callback."""
    model = placed(Parameters(), "ddp")
    params = list(model.parameters())
    optimizer = make("SALAdam", params, consolidate_every=None)
    callback = Continual()
    callback.begin(optimizer, model, lambda data: data, lambda _: torch.zeros(()))
    draw, rank = torch.Generator().manual_seed(dist.get_rank()), dist.get_rank()
    for step, now in enumerate(gradients(80, ())):
        give(params, now)
        optimizer.step()
        level = 5.0 if step >= 60 and rank == 0 else 1.0
        callback.stepped(step, loss=level + 0.05 * float(torch.rand((), generator=draw)))
    return outcome(optimizer, [])


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


def hang(rank: int) -> None:
    """One rank waits for the others, who never come."""
    if dist.get_rank() == rank:
        dist.barrier()


def work(seconds: float) -> int:
    """Takes long, but does something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        math.sqrt(2.0)
    return dist.get_rank()


def fail(rank: int) -> None:
    """One rank fails, the others wait for it."""
    if dist.get_rank() == rank:
        raise ZeroDivisionError
    dist.barrier()
