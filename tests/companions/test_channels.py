"""Channels: known multipliers of a small problem, slack, the scaffold, and bad budgets."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from sal_optim import SALSGD, SALAdam
from sal_optim.companions import Channels

pytest.importorskip("cooper")

# Minimise (x - 4)² + (y - 5)² subject to x² + y² <= 1 + y*² and y² <= y*², y* = 5/18. At x = 1,
# y = y* the conditions of Karush, Kuhn and Tucker give multipliers of 3 and 14.
Y = 5.0 / 18.0
BUDGETS = {"safety": 1.0 + Y * Y, "memory": Y * Y}


def problem(at: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    return torch.tensor(at, requires_grad=True)


def losses(point: Tensor) -> dict[str, Tensor]:
    x, y = point
    return {
        "task": (x - 4.0).square() + (y - 5.0).square(),
        "safety": x.square() + y.square(),
        "memory": y.square(),
    }


@pytest.mark.parametrize("primal", [torch.optim.SGD, torch.optim.Adam, SALAdam, SALSGD])
def test_known_multipliers_are_recovered(primal: Any) -> None:
    point = problem()
    channels = Channels(primal([point], lr=0.01), BUDGETS, scaffold=())
    for _ in range(800):
        found = channels.step(losses(point))
    assert point.tolist() == pytest.approx([1.0, Y], abs=0.01)
    assert channels.multipliers() == pytest.approx({"safety": 3.0, "memory": 14.0}, rel=0.01)
    assert abs(found["safety_excess"]) < 0.01
    assert found["memory_active"] == 1.0


def test_multipliers_fall_to_zero_when_there_is_slack() -> None:
    point = problem()
    channels = Channels(torch.optim.SGD([point], lr=0.02), {"safety": 1.0}, dual_lr=0.5)

    def steps() -> None:
        for _ in range(300):
            found = losses(point)
            channels.step({"task": found["task"], "safety": found["safety"]})

    steps()
    assert channels.multipliers()["safety"] > 3.0
    channels.set_budget("safety", 100.0)
    steps()
    assert channels.multipliers()["safety"] == 0.0
    assert point.tolist() == pytest.approx([4.0, 5.0], abs=0.01)


def test_memory_waits_for_safety() -> None:
    """A step in which safety is overstepped is as if there were no memory channel."""
    ends = []
    for budgets in (BUDGETS, {"safety": BUDGETS["safety"]}):
        point = problem((2.0, 2.0))
        channels = Channels(torch.optim.SGD([point], lr=0.01), budgets)
        found = {k: v for k, v in losses(point).items() if k == "task" or k in budgets}
        told = channels.step(found)
        ends.append(point.tolist())
        assert told["safety_excess"] > 0.0
    assert ends[0] == ends[1]
    point = problem((2.0, 2.0))
    channels = Channels(torch.optim.SGD([point], lr=0.01), BUDGETS)
    told = channels.step(losses(point))
    assert (told["safety_active"], told["memory_active"]) == (1.0, 0.0)
    assert told["memory_multiplier"] == 0.0 < told["safety_multiplier"]
    with torch.no_grad():
        point.copy_(torch.tensor([0.0, 0.5]))
    told = channels.step(losses(point))  # safety holds
    assert told["memory_active"] == 1.0
    assert told["memory_multiplier"] > 0.0
    point = problem((2.0, 2.0))
    channels = Channels(torch.optim.SGD([point], lr=0.01), BUDGETS, scaffold=[])
    assert channels.step(losses(point))["memory_active"] == 1.0


def test_priority_is_the_order_of_the_budgets() -> None:
    point = problem((2.0, 2.0))
    first = dict(reversed(BUDGETS.items()))
    channels = Channels(torch.optim.SGD([point], lr=0.01), first, scaffold=["memory"])
    assert channels.step(losses(point))["memory_active"] == 1.0  # nothing is before it


def test_the_gradient_is_that_of_the_augmented_lagrangian() -> None:
    point = problem((2.0, 1.0))
    channels = Channels(torch.optim.SGD([point], lr=0.0), {"safety": 1.0}, penalty=4.0, dual_lr=0.5)
    for multiplier in (0.0, 2.0):  # the excess is 4
        found = losses(point)
        channels.step({"task": found["task"], "safety": found["safety"]})
        slope = multiplier + 4.0 * 4.0
        expected = [-4.0 + slope * 4.0, -8.0 + slope * 2.0]
        assert point.grad is not None
        assert point.grad.tolist() == pytest.approx(expected)
    assert channels.multipliers() == {"safety": 4.0}


def test_channels_that_are_left_out_rest() -> None:
    point = problem((2.0, 2.0))
    channels = Channels(torch.optim.SGD([point], lr=0.01), BUDGETS)
    channels.step({"task": losses(point)["task"]})
    assert channels.multipliers() == {"safety": 0.0, "memory": 0.0}
    assert channels.diagnostics()["safety_active"] == 0.0
    told = channels.step({k: v for k, v in losses(point).items() if k != "safety"})
    assert told["memory_active"] == 1.0
    assert "safety_excess" not in told


def test_going_on_from_a_state() -> None:
    runs = []
    for reload in (False, True):
        point = problem()
        optimizer = torch.optim.SGD([point], lr=0.01)
        channels = Channels(optimizer, BUDGETS)
        for step in range(20):
            if reload and step == 10:
                state = channels.state_dict()
                channels = Channels(optimizer, BUDGETS)
                channels.load_state_dict(state)
            channels.step(losses(point))
        runs.append((point.tolist(), channels.multipliers()))
    assert runs[0] == runs[1]
    assert runs[0][1]["safety"] > 0.0
    other = Channels(optimizer, {"safety": 1.0})
    with pytest.raises(ValueError, match=r"state_dict.*'safety', 'memory'.*\['safety'\]"):
        other.load_state_dict(channels.state_dict())
    state, multipliers = channels.state_dict(), channels.multipliers()
    channels.step(losses(point))
    assert channels.multipliers() != multipliers
    for wrong, error, message in (
        (None, TypeError, r"state_dict.*NoneType.*what state_dict\(\) returned"),
        ({"budgets": BUDGETS}, ValueError, r"state_dict.*no 'problem'"),
        ({**state, "problem": {}}, ValueError, r"state_dict.*no 'multipliers'"),
        ({**state, "budgets": dict.fromkeys(BUDGETS, math.nan)}, ValueError, r"budgets.*nan"),
    ):
        with pytest.raises(error, match=message):
            channels.load_state_dict(wrong)  # type: ignore[arg-type]
    assert channels.multipliers() != multipliers
    channels.load_state_dict(state)  # a snapshot: later steps are not in it
    assert channels.multipliers() == multipliers
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"Channels can't be copied.*state_dict\(\)"):
            way(channels)


def test_autocast_and_double() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        point = problem((2.0, 2.0))
        channels = Channels(torch.optim.SGD([point], lr=0.01), BUDGETS)
        channels.step({name: loss.to(dtype) for name, loss in losses(point).items()})
        assert channels.multipliers()["safety"] > 0.0


def test_a_budget_that_cannot_be_met() -> None:
    point = problem()
    optimizer = torch.optim.SGD([point], lr=0.01)
    with pytest.raises(ValueError, match=r"budgets\['safety'\].*-1.*\[0, inf\)"):
        Channels(optimizer, {"safety": -1.0})
    Channels(optimizer, {"safety": -1.0}, lowest=None)
    channels = Channels(optimizer, {"safety": 1.0}, dual_lr=1.0, limit=20.0)

    def step() -> None:
        channels.step({"task": point.sum(), "safety": point.square().sum() + 3.0})

    while channels.multipliers()["safety"] < 20.0:
        step()
    before = point.tolist(), channels.multipliers()
    with pytest.raises(ValueError, match=r"budgets.*'safety'.*1.*multiplier of 2.*limit of 20"):
        step()
    assert (point.tolist(), channels.multipliers()) == before
    channels.set_budget("safety", 5.0)
    step()
    with pytest.raises(ValueError, match=r"budget.*-2.*\[0, inf\)"):
        channels.set_budget("safety", -2.0)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    point = problem()
    optimizer: Optimizer = torch.optim.SGD([point], lr=0.01)
    for budgets in ({}, {"task": 1.0}, {1: 1.0}):
        with pytest.raises(ValueError, match=r"budgets.*other than 'task'.*at least one"):
            Channels(optimizer, budgets)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"budgets.*1\.0.*dict"):
        Channels(optimizer, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"optimizer.*Tensor.*Optimizer"):
        Channels(point, BUDGETS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scaffold.*'action'.*'safety', 'memory'"):
        Channels(optimizer, BUDGETS, scaffold=["action"])
    with pytest.raises(TypeError, match=r"scaffold.*'memory'.*list"):
        Channels(optimizer, BUDGETS, scaffold="memory")
    with pytest.raises(ValueError, match=r"penalty.*0.*\(0, inf\)"):
        Channels(optimizer, BUDGETS, penalty=0.0)
    channels = Channels(optimizer, BUDGETS)
    with pytest.raises(ValueError, match=r"losses.*\['safety'\].*must have 'task'"):
        channels.step({"safety": point.sum()})
    with pytest.raises(ValueError, match=r"losses.*'other'.*nothing else"):
        channels.step({"task": point.sum(), "other": point.sum()})
    with pytest.raises(TypeError, match=r"losses.*'task' is a float"):
        channels.step({"task": 1.0})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"losses.*'task' is of shape \(2,\)"):
        channels.step({"task": point})
    with pytest.raises(ValueError, match=r"losses.*'task' is of shape \(\), torch.complex64"):
        channels.step({"task": point.sum() + 0j})
    before, point.grad = point.detach().clone(), torch.ones(2)
    with pytest.raises(ValueError, match=r"losses.*'safety' is 2.*without a graph"):
        channels.step({"task": point.sum(), "safety": torch.tensor(2.0)})
    assert torch.equal(point, before)
    assert point.grad.tolist() == [1.0, 1.0]
    with pytest.raises(TypeError, match=r"optimizer.*LBFGS.*without a closure"):
        Channels(torch.optim.LBFGS([point]), BUDGETS)
    with pytest.raises(ValueError, match=r"losses.*'task' is nan"):
        channels.step({"task": point.sum() * float("nan")})
    with pytest.raises(ValueError, match=r"channel.*'other'.*'safety', 'memory'"):
        channels.set_budget("other", 1.0)

    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("sal_optim.utils.lazy_import.importlib.import_module", absent)
    with pytest.raises(ImportError, match=r"needs the package cooper.*sal_optim\[channels\]"):
        Channels(optimizer, BUDGETS)
