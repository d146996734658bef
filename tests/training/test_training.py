"""Training of a small network on real digits: schedules and habits of training are no change.

And a change of the data is one: the last test shows that these runs are able to find something.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim import SALOptimizer
from sal_optim.protection.clock import LEAST
from tests.testing.drive import seeded
from tests.testing.rows import Row

LR = {"SALAdam": 3e-3, "SALAdamW": 3e-3, "SALLion": 1e-3, "SALSGD": 0.15}
STEPS = 240


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn brings the digits")
    data = datasets.load_digits()
    return torch.tensor(data.data / 16.0, dtype=torch.float32), torch.tensor(data.target)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def build(row: Row, model: nn.Module, **changes: Any) -> SALOptimizer:
    # Without a clock, so that the detector alone is seen.
    kwargs: dict[str, Any] = {
        "lr": LR.get(row.name, 0.07),
        "weight_decay": 0.0,
        "consolidate_every": None,
    }
    return row(model.parameters(), **{**kwargs, **changes})


def detected(optimizer: SALOptimizer) -> float:
    return float(optimizer.param_groups[0].get("threshold", {}).get("changes", 0.0))


def train(
    row: Row,
    scheduler: Any = None,
    *,
    steps: int = STEPS,
    batch: int = 32,
    accumulate: int = 1,
    clip: float | None = None,
    change_at: int | None = None,
    seed: int = 0,
    **changes: Any,
) -> tuple[list[int], float]:
    """Train; returns the steps at which a change was found, and the last losses' mean."""
    inputs, targets = digits()
    model = network(seed)
    optimizer = build(row, model, **changes)
    schedule = scheduler(optimizer) if scheduler else None
    generator = seeded(seed)
    order = torch.randperm(64, generator=generator)
    found, losses = [], []
    for step in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            chosen = torch.randint(len(inputs), (batch,), generator=generator)
            shown = inputs[chosen]
            if change_at is not None and step >= change_at:
                shown = shown[:, order]
            loss = nn.functional.cross_entropy(model(shown), targets[chosen])
            loss.backward()
        losses.append(loss.item())
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        before = detected(optimizer)
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if detected(optimizer) > before:
            found.append(step)
    return found, sum(losses[-20:]) / 20


schedulers = torch.optim.lr_scheduler
SCHEDULES: dict[str, Any] = {
    "none": None,
    "warm-up": lambda o: schedulers.LinearLR(o, start_factor=1e-3, total_iters=100),
    "step": lambda o: schedulers.StepLR(o, step_size=100, gamma=0.1),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, T_max=STEPS),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=100),
    "one cycle": lambda o: schedulers.OneCycleLR(
        o,
        max_lr=o.param_groups[0]["lr"],
        total_steps=STEPS,
        cycle_momentum=bool("betas" in o.defaults or o.defaults.get("momentum")),
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_no_change(row: Row, schedule: str) -> None:
    found, loss = train(row, SCHEDULES[schedule])
    assert found == []
    # Some of these train briefly or slowly; all train: ln(10) = 2.3 is where they begin.
    assert loss < 2.25


def test_accumulation_is_no_change(row: Row) -> None:
    found, loss = train(row, accumulate=4, batch=8, steps=120)
    assert found == []
    assert loss < 2


def test_tiny_batches_are_no_change(row: Row) -> None:
    """Batches of 4: the noisiest gradients that anyone trains with."""
    found, _ = train(row, batch=4, steps=300)
    assert found == []


def test_full_batches_are_no_change(row: Row) -> None:
    """Without noise the variance is small, and still nothing is found."""
    found, _ = train(row, batch=1797, steps=90)
    assert found == []


def test_clipping_is_no_change(row: Row) -> None:
    found, _ = train(row, clip=0.5, steps=150)
    assert found == []


def test_one_distribution_begins_as_the_base_does(row: Row) -> None:
    """Bit for bit until the clock first consolidates."""
    _, ours = train(row, steps=LEAST - 1, consolidate_every="auto")
    _, base = train(row, steps=LEAST - 1, protection=0.0)
    assert ours == base


def test_the_clock_lets_learning_go_on(row: Row) -> None:
    """After its first consolidation the loss falls further."""
    _, first = train(row, steps=LEAST, consolidate_every="auto")
    _, last = train(row, consolidate_every="auto")
    assert last < 0.8 * first


@pytest.mark.parametrize("seed", range(3))
def test_a_change_of_the_data_is_found(row: Row, seed: int) -> None:
    """Permuted pixels: found within 10 steps, once; else the tests above would say nothing."""
    found, _ = train(row, steps=330, change_at=300, seed=seed)
    assert len(found) == 1
    assert 300 <= found[0] < 310
