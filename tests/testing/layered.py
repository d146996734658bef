"""What must hold of a layer around any optimizer: used by its own tests and by third parties'."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sal_optim import CommunicationLayer
from tests.testing.drive import assert_equal, seeded

Settings = dict[str, Any]
Build = Callable[[list[Tensor]], Optimizer]
BATCH = 64


def problem(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network with matrices only (Muon takes no others), and a task of three classes."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 4, bias=False))
    generator = seeded(seed)
    inputs = torch.randn(BATCH, 8, generator=generator)
    return model, inputs, (inputs @ torch.randn(8, 4, generator=generator)).argmax(1)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    inputs: Tensor,
    targets: Tensor,
    steps: int,
    *,
    closure: bool = False,
    create_graph: bool = False,
) -> list[float]:
    """Train, by a closure or without; returns the losses."""
    losses = []

    def evaluate() -> Any:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward(create_graph=create_graph)  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        return loss

    for _ in range(steps):
        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
    return losses


def check_layer(build: Build, steps: int = 45, layer: Settings | None = None, **how: bool) -> None:
    """Same as the optimizer until a consolidation, forgets less after it, resumes exactly.

    Args:
        build: makes the optimizer.
        steps: of the first regime.
        layer: settings of the layer.
        how: arguments of :func:`train`.

    Raises:
        AssertionError: one of these does not hold.
    """
    settings: Settings = {"protection": 100.0, "alpha": 1e6, **(layer or {})}
    free, inputs, targets = problem()
    bound, _, _ = problem()
    plain, optimizer = build(list(free.parameters())), build(list(bound.parameters()))
    around = CommunicationLayer(optimizer, **settings)
    torch.manual_seed(1)
    losses = train(free, plain, inputs, targets, steps, **how)
    torch.manual_seed(1)
    assert train(bound, optimizer, inputs, targets, steps, **how) == losses
    assert_equal(list(bound.parameters()), list(free.parameters()), "before a consolidation:")
    assert min(losses) < losses[0], "it trains"

    around.consolidate()
    assert around.diagnostics()["consolidations"] == 1
    ends = [param.detach().clone() for param in bound.parameters()]
    learned = _loss(bound, inputs, targets)
    shuffled = targets[torch.randperm(len(targets), generator=seeded(3))]
    train(free, plain, inputs, shuffled, 20, **how)
    train(bound, optimizer, inputs, shuffled, 10, **how)
    copy, fresh = _resumed(build, settings, bound, optimizer)
    for model, one in ((bound, optimizer), (copy, fresh)):
        torch.manual_seed(2)
        train(model, one, inputs, shuffled, 10, **how)
    assert_equal(list(copy.parameters()), list(bound.parameters()), "resumed:")
    assert any(not torch.equal(p, e) for p, e in zip(bound.parameters(), ends, strict=True))
    lost, kept = (_loss(model, inputs, targets) - learned for model in (free, bound))
    # What is still learning the first task, or hardly moves, forgets nothing.
    most = 0.8 * lost if lost > 0.02 else 0.02
    if lost > 1e3:  # the optimizer diverges by itself, as L-BFGS does on labels at random
        return
    assert kept < most, f"the first task's loss rose by {kept:.3g}, not {lost:.3g}"


@torch.no_grad()
def _loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    return float(nn.functional.cross_entropy(model(inputs), targets))


def _resumed(
    build: Build, settings: Settings, model: nn.Module, optimizer: Optimizer
) -> tuple[nn.Module, Optimizer]:
    """A copy of a run, through a file, in a layer that was built before loading."""
    copy, _, _ = problem(seed=5)
    copy.load_state_dict(model.state_dict())
    fresh = build(list(copy.parameters()))
    layer = CommunicationLayer(fresh, **settings)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=False))
    assert layer.diagnostics()["consolidations"] == 1
    return copy, fresh
