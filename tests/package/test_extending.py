"""What a newcomer adds in one file works: the examples of CONTRIBUTING.md, as they stand there."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim import SALSGD, CommunicationLayer, SALAdam, SALAdamW, SALOptimizer
from sal_optim.importance import IMPORTANCE
from sal_optim.optimizer import PROTECTION_SETTINGS
from tests.package.test_docs import blocks, run
from tests.testing.drive import (
    CLOCK,
    assert_equal,
    assert_near,
    assert_same_state,
    clone_params,
    consolidations,
    drive,
    make_params,
    profile,
    reload,
    snapshot,
    step_with,
    stream,
)

SHAPES = ((6, 5), (5,), (3, 2, 4), (0, 2))
Make = Callable[..., SALOptimizer]


def example(name: str) -> Any:
    """The class of that name in CONTRIBUTING.md."""
    (block,) = [found for found in blocks("CONTRIBUTING.md") if f"class {name}(" in found.code]
    namespace: dict[str, Any] = {"__name__": "example"}
    run(block, namespace)
    return namespace[name]


@pytest.fixture
def rowwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's kind has a name, by the one line that CONTRIBUTING.md tells."""
    monkeypatch.setitem(IMPORTANCE, "rowwise", example("Rowwise")())


def check_base(make: Make, peer: Callable[..., torch.optim.Optimizer]) -> None:
    """Unprotected it is its base bit for bit, and with protection until a consolidation."""
    for protection, steps in ((0.0, 100), (10.0, CLOCK)):
        params, twin = make_params(SHAPES), make_params(SHAPES)
        optimizer, base = make(params, protection=protection), peer(twin)
        for now in stream(params, profile(steps)):
            step_with(optimizer, params, now)
            step_with(base, twin, now)
        assert_equal(params, twin)


def check_protection(make: Make) -> None:
    """It consolidates, the path is another one then, and a run resumes exactly."""
    params, twin = make_params(SHAPES), make_params(SHAPES)
    optimizer, plain = make(params), make(twin, protection=0)
    grads = stream(params, profile(110, (80,)))
    drive(plain, twin, grads)
    drive(optimizer, params, grads)
    assert consolidations(optimizer) >= 2
    filled = [(p, q) for p, q in zip(params, twin, strict=True) if p.numel()]
    assert not any(torch.equal(p, q) for p, q in filled)
    assert all(0 < float(optimizer.stability(p).max()) < 1 for p, _ in filled)
    new = clone_params(params)
    resumed = make(new, lr=0.5)
    resumed.load_state_dict(reload(optimizer.state_dict()))
    for now in stream(params, profile(70), seed=3):
        step_with(optimizer, params, now)
        step_with(resumed, new, now)
    assert consolidations(resumed) >= 3
    assert_equal(params, new)
    assert_same_state(snapshot(optimizer), snapshot(resumed))
    optimizer.restore(1e30)
    assert_near([params[0]], [optimizer.state[params[0]]["anchor"]])


def test_a_base_optimizer() -> None:
    kind = example("SALAdamax")
    check_base(kind, torch.optim.Adamax)
    check_protection(kind)
    with pytest.raises(ValueError, match="Invalid protection value: -1"):
        kind(make_params(), protection=-1)


@pytest.mark.parametrize("base", ["SALAdamax", SALAdamW, SALSGD], ids=str)
def test_a_kind_of_importance(rowwise: None, base: Any) -> None:
    cls = example(base) if isinstance(base, str) else base

    def make(params: list[Tensor], **settings: Any) -> SALOptimizer:
        made: SALOptimizer = cls(params, importance="rowwise", **settings)
        return made

    check_protection(make)
    params = make_params(SHAPES)
    optimizer = make(params)
    drive(optimizer, params, stream(params, profile(CLOCK + 5)))
    assert consolidations(optimizer) == 1
    state = optimizer.state[params[0]]
    assert state["evidence"].shape == (6, 1)
    stability = optimizer.stability(params[0])
    assert torch.equal(stability, stability[:, :1].expand(6, 5))
    assert len(stability.unique()) == 6


def test_importance_of_a_new_kind_comes_before_the_first_step(rowwise: None) -> None:
    """As a copy and a checkpoint have it, while the base has no state."""
    params = make_params(SHAPES)
    optimizer = SALAdamW(params, importance="rowwise")
    with optimizer.observe():
        drive(optimizer, params, stream(params, profile(8)))
    optimizer.consolidate()
    new = clone_params(params)
    resumed = SALAdamW(new, importance="rowwise")
    resumed.load_state_dict(reload(optimizer.state_dict()))
    for now in stream(params, profile(5), seed=3):
        step_with(optimizer, params, now)
        step_with(resumed, new, now)
    assert_equal(params, new)
    assert "exp_avg" in resumed.state[new[0]]
    assert resumed.stability(new[0]).max() > 0


def test_a_new_kind_in_the_layer(rowwise: None) -> None:
    params = make_params(SHAPES)
    optimizer = torch.optim.RMSprop(params)
    layer = CommunicationLayer(optimizer, importance="rowwise")
    drive(optimizer, params, stream(params, profile(CLOCK + 5)))
    assert consolidations(optimizer) == 1
    assert layer.stability(params[0]).max() > 0


def test_without_its_line_a_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="Invalid importance value: 'rowwise'"):
        SALAdamW(make_params(), importance="rowwise")  # type: ignore[arg-type]


class WithNumber(SALOptimizer, torch.optim.NAdam):
    """A base whose state has a number beside step."""

    _moments = ("exp_avg", "exp_avg_sq")
    _numbers = ("step", "mu_product")

    def __init__(self, params: Any, lr: float = 2e-3) -> None:
        settings = inspect.signature(SALAdam).parameters
        shared = {name: settings[name].default for name in PROTECTION_SETTINGS}
        super().__init__(params, {"lr": lr, **shared, "protection": 0.0})


def test_a_number_of_the_base_begins_anew_with_its_moments() -> None:
    ends = []
    for cls in (torch.optim.NAdam, WithNumber):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 6)
        optimizer: Any = cls(model.parameters())
        for step in range(12):
            optimizer.zero_grad()
            model(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
            if step == 4:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            if step == 8:
                optimizer.state.clear()
                if cls is WithNumber:  # what is left of a state without its moments
                    optimizer.state[model.weight]["mu_product"] = torch.tensor(1e-30)
        ends.append(model.weight.detach())
    assert torch.equal(*ends)
