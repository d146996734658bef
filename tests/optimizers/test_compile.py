"""torch.compile around a step: the eager result, and nothing is compiled anew in each step.

The protection decides on the host, so that a compiled training step has a break before it. Graphs
are counted by the compiler's own counters; the backend runs them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from sal_optim import SALOptimizer
from tests.testing.drive import (
    assert_equal,
    assert_near,
    clone_params,
    consolidations,
    make_params,
    profile,
    seeded,
    stream,
)
from tests.testing.rows import CLASSES, KINDS, Row

STEPS, CHANGE = 80, 60
# Steps after which everything has been compiled that ever is.
WARM = 3


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture(autouse=True)
def _apart() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def compiled(function: Callable[..., Any], backend: str = "eager") -> Callable[..., Any]:
    found: Callable[..., Any] = torch.compile(function, backend=backend)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_a_compiled_step_is_the_step(row: Row, kind: str) -> None:
    """Across a change, a learning rate that falls and a protection that grows."""
    params = make_params()
    twins = clone_params(params)
    fast, slow = (row(ps, importance=kind, consolidate_every=None) for ps in (params, twins))
    step = compiled(fast.step)
    counts = []
    for index, now in enumerate(stream(params, profile(STEPS, (CHANGE,)))):
        for optimizer, mine, act in ((fast, params, step), (slow, twins, slow.step)):
            group = optimizer.param_groups[0]
            group["lr"] *= 0.99
            group["protection"] += 0.01 * (index + 1)
            for param, grad in zip(mine, now, strict=True):
                param.grad = grad.clone()
            act()
        counts.append(graphs())
    assert consolidations(fast) == consolidations(slow) == 1
    assert_equal(params, twins)
    assert counts[-1] == counts[WARM]


class Training:
    """A small network and its training step."""

    def __init__(self, row: Row) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
        self.optimizer: SALOptimizer = row(self.model.parameters(), consolidate_every=25)

    def step(self, inputs: Tensor, wanted: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = (self.model(inputs) - wanted).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_a_compiled_training_step_trains_as_eager(row: Row) -> None:
    """By aot_eager, which traces the backward pass, too."""
    fast, slow = Training(row), Training(row)
    step = compiled(fast.step, "aot_eager")
    generator, counts = seeded(1), []
    for _ in range(STEPS):
        batch = torch.randn(16, 6, generator=generator), torch.randn(16, 2, generator=generator)
        assert float(step(*batch)) == pytest.approx(float(slow.step(*batch)), rel=1e-4)
        counts.append(graphs())
    assert consolidations(fast.optimizer) == consolidations(slow.optimizer) == STEPS // 25
    assert_near(list(fast.model.parameters()), list(slow.model.parameters()), rtol=1e-3, atol=1e-4)
    assert counts[WARM] > 0, "something was compiled"
    assert counts[-1] == counts[WARM]


def test_the_compile_argument_is_deprecated(class_row: Row) -> None:
    params, twins = make_params(), make_params()
    with pytest.warns(FutureWarning, match="compile is deprecated"):
        one = class_row(params, compile=True)
    other = class_row(twins)
    for now in stream(params, profile(5)):
        for optimizer, mine in ((one, params), (other, twins)):
            for param, grad in zip(mine, now, strict=True):
                param.grad = grad.clone()
            optimizer.step()
    assert_equal(params, twins)
    assert graphs() == 0
