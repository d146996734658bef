"""Uses that reviewers tried, beside ``test_reported_cases.py`` and ``test_reported_states.py``."""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from sal_optim import SALSGD, CommunicationLayer, SALAdam, SALAdamW, SALLion, SALMuon, report
from sal_optim.importance import IMPORTANCE
from sal_optim.importance.kronecker import MOST_TABLES
from sal_optim.importance.low_rank import projection
from sal_optim.protection import gradients, judge

FAMILY = [SALAdam, SALAdamW, SALSGD, SALLion, SALMuon]


def train(optimizer: Any, model: nn.Module, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()


def consolidated(cls: Any, **kwargs: Any) -> tuple[nn.Linear, Any]:
    torch.manual_seed(0)
    model = nn.Linear(8, 8, bias=False)
    optimizer = cls(model.parameters(), **{"consolidate_every": None, **kwargs})
    train(optimizer, model, 20)
    optimizer.consolidate()
    train(optimizer, model, 3)
    assert optimizer.stability(model.weight).max() > 0.0
    return model, optimizer


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_element_that_is_not_finite_stays_one(
    bad: float, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in torch's optimizers; damping by direction would spread it over the matrix."""
    model, optimizer = consolidated(SALLion)
    if ahead:  # as on an accelerator
        for module in (judge, gradients):
            monkeypatch.setattr(module, "on_host", lambda _: False)
    optimizer.zero_grad()
    model(torch.randn(16, 8)).square().mean().backward()
    assert model.weight.grad is not None
    model.weight.grad[0, 0] = bad
    optimizer.step()
    momentum = optimizer.state[model.weight]["exp_avg"]
    assert int((~momentum.isfinite()).sum()) == 1
    before = model.weight.detach().clone()
    train(optimizer, model, 1)
    assert (model.weight != before).sum() > 60


@pytest.mark.parametrize("layered", [False, True])
def test_settings_of_another_optimizers_groups_share_no_detector(layered: bool) -> None:
    model = nn.Linear(8, 8, bias=False)
    optimizer: Any = torch.optim.Adam(model.parameters()) if layered else None
    optimizer = optimizer or SALAdam(model.parameters(), consolidate_every=None)
    first = CommunicationLayer(optimizer, consolidate_every=None) if layered else optimizer
    train(optimizer, model, 20)
    first.consolidate()
    train(optimizer, model, 3)
    known = first.stability(model.weight)
    other = nn.Linear(8, 8, bias=False)
    groups = [{**g, "params": list(other.parameters())} for g in optimizer.param_groups]
    second = type(optimizer)(groups)
    if layered:
        CommunicationLayer(second)
    with pytest.warns(UserWarning, match="begins anew"):
        train(second, other, 3)
    assert torch.equal(first.stability(model.weight), known)
    assert first.diagnostics()["consolidations"] == 1.0
    taken = optimizer.param_groups.pop()  # the detector goes with its group
    optimizer.add_param_group(taken)
    assert first.diagnostics()["consolidations"] == 1.0


@pytest.mark.parametrize("cls", FAMILY)
def test_a_deleted_optimizer_frees_its_memory_at_once(cls: Any) -> None:
    model, optimizer = consolidated(cls)
    alive = weakref.ref(model.weight)
    gc.disable()
    try:
        del model, optimizer
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_in_the_dtype_of_the_gradients(momentum: float) -> None:
    """As torch's SGD keeps it, where ``grad_dtype`` allows other gradients."""
    param = nn.Parameter(torch.randn(8, 8, dtype=torch.bfloat16))
    if not hasattr(param, "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    param.grad_dtype = None
    optimizer = SALSGD([param], momentum=momentum)
    for _ in range(80):
        param.grad = torch.randn(8, 8)
        optimizer.step()
    assert optimizer.stability(param).max() > 0.0


def test_a_group_that_is_added_has_the_settings_that_all_share() -> None:
    model, optimizer = consolidated(SALAdamW, alpha=3.0)
    fresh = SALAdamW(model.parameters())
    fresh.load_state_dict(optimizer.state_dict())
    head = nn.Linear(8, 2)
    fresh.add_param_group({"params": list(head.parameters())})
    assert fresh.param_groups[1]["consolidate_every"] is None
    assert fresh.param_groups[1]["alpha"] == 3.0
    with pytest.raises(ValueError, match="consolidate_every"):
        fresh.add_param_group({"params": [nn.Parameter(torch.ones(2))], "consolidate_every": 7})


def test_warnings_name_the_line_of_the_user() -> None:
    model, optimizer = consolidated(SALAdam)
    fresh = SALAdam(model.parameters(), consolidate_every=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with fresh.observe():
            pass
        fresh.restore(1.0)
        optimizer.state.clear()
        train(optimizer, model, 1)
        for group in fresh.param_groups:
            group["lr"] = 0.0
        train(fresh, model, 40)
    assert len(told) == 4
    assert {one.filename for one in told} == {__file__}


def test_a_report_on_the_meta_device(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(8, 4, device="meta")
    optimizer = SALAdamW(model.parameters())
    model(torch.randn(2, 8, device="meta")).sum().backward()
    optimizer.step()
    report(optimizer, model)
    assert "No consolidation yet" in capsys.readouterr().out


@pytest.mark.parametrize("protection", [1e35, 1e39, 1.7e308])
@pytest.mark.parametrize("kind", ["kronecker", "diagonal", "factored"])
@pytest.mark.parametrize("cls", FAMILY)
def test_a_protection_beyond_float32_keeps_weights_finite(
    cls: Any, kind: str, protection: float
) -> None:
    model, optimizer = consolidated(cls, importance=kind, protection=protection)
    train(optimizer, model, 20)
    assert model.weight.isfinite().all()
    assert all(math.isfinite(value) for value in optimizer.diagnostics().values())
    assert optimizer.stability(model.weight).isfinite().all()


def test_a_protection_beyond_float32_around_another_optimizer() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layer = CommunicationLayer(optimizer, protection=1e39, consolidate_every=None)
    train(optimizer, model, 20)
    layer.consolidate()
    train(optimizer, model, 20)
    assert model.weight.isfinite().all()
    assert layer.stability(model.weight).max() > 0.5


@pytest.mark.parametrize("kind", ["diagonal", "factored"])
def test_elements_whose_gradient_is_masked_stay(kind: str) -> None:
    """By direction, the default, a masked element has a part in directions that move; and a
    penalty draws it to its anchor."""
    model, optimizer = consolidated(SALAdamW, importance=kind, pull=0.0, weight_decay=0.0)
    mask = torch.rand(8, 8) < 0.3
    for state in optimizer.state.values():
        state["exp_avg"].mul_(mask)
    before = model.weight.detach().clone()
    optimizer.consolidate()
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        assert model.weight.grad is not None
        model.weight.grad.mul_(mask)
        optimizer.step()
    assert torch.equal(model.weight[~mask], before[~mask])
    assert (model.weight != before)[mask].all()


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_a_layer_around_a_maximizing_optimizer_draws_to_the_anchor(cls: Any) -> None:
    """The penalty pushed away from it."""
    found = []
    for maximize in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(8, 8, bias=False)
        optimizer = cls(model.parameters(), lr=1e-2, maximize=maximize)
        layer = CommunicationLayer(optimizer)
        for step in range(150):
            optimizer.zero_grad()
            target = 1.0 if step > 75 else 0.0
            loss = (model(torch.randn(16, 8)) - target).square().mean()
            (-loss if maximize else loss).backward()
            optimizer.step()
            if step == 75:
                layer.consolidate()
        found.append(model.weight.detach())
    torch.testing.assert_close(found[1], found[0])


def test_data_sets_in_turn_are_all_protected() -> None:
    """Gathering and penalty were on every fourth step, which missed each second data set."""
    torch.manual_seed(0)
    body, heads = nn.Linear(8, 8), [nn.Linear(8, 4) for _ in range(4)]
    optimizer = SALAdam([p for m in (body, *heads) for p in m.parameters()], lr=1e-3)
    for step in range(600):
        optimizer.zero_grad()
        heads[step % 4](body(torch.randn(16, 8))).square().mean().backward()
        optimizer.step()
    weights = [optimizer.state[head.weight]["evidence_weight"] for head in heads]
    assert min(weights) > 0.5 * max(weights) > 0.0


def test_a_schedule_of_protection_keeps_no_more_tables() -> None:
    _, optimizer = consolidated(SALAdam)
    for step in range(50):
        optimizer.param_groups[0]["protection"] = 10.0 + step
        for param, state in optimizer.state.items():
            state["exp_avg"].zero_()
            param.grad = torch.randn_like(param)
        optimizer.step()
    param, state = next(iter(optimizer.state.items()))
    kept = IMPORTANCE["kronecker"]._tables[state["left_values"]]
    assert len(kept[0][1]) <= MOST_TABLES


class Counting:
    """A mixin such as users write."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return super().step(closure)  # type: ignore[misc]


@pytest.mark.parametrize("cls", FAMILY)
def test_a_mixin_before_an_optimizer(cls: Any) -> None:
    model, optimizer = consolidated(type("Mine", (Counting, cls), {}))
    assert optimizer.steps == 23
    other, expected = consolidated(cls)
    assert torch.equal(model.weight, other.weight)
    assert expected.diagnostics() == optimizer.diagnostics()


@pytest.mark.parametrize("pull", [1.2, 50.0, 1000.0])
def test_a_strong_pull_with_momentum_does_not_swing_up(pull: float) -> None:
    """A pull that momentum carries on went past the anchor, further each time."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8, bias=False)
    optimizer = SALSGD(model.parameters(), lr=0.02, momentum=0.9, pull=pull)
    for _ in range(300):
        optimizer.zero_grad()
        (model(torch.randn(16, 8)) - torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
    optimizer.consolidate()
    for _ in range(300):
        optimizer.zero_grad()
        (model(torch.randn(16, 8)) - 3.0).square().mean().backward()
        optimizer.step()
    assert model.weight.abs().max() < 10.0


@pytest.mark.parametrize(
    ("name", "value"),
    [("protection", -1.0), ("protection", math.nan), ("pull", math.nan), ("retention", 2.0),
     ("importance", "best"), ("stats_beta", 1.5), ("rank", 0), ("consolidate_every", "often")],
)  # fmt: skip
def test_settings_that_are_edited_between_steps_are_checked(name: str, value: Any) -> None:
    model, optimizer = consolidated(SALAdamW)
    before, total = model.weight.detach().clone(), optimizer.param_groups[0]["threshold"]["total"]
    kept, optimizer.param_groups[0][name] = optimizer.param_groups[0][name], value
    with pytest.raises(ValueError, match=name):
        train(optimizer, model, 1)
    assert torch.equal(model.weight, before)
    assert optimizer.param_groups[0]["threshold"]["total"] == total
    optimizer.param_groups[0][name] = kept
    train(optimizer, model, 1)
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("kinds", [("kronecker", "diagonal"), ("diagonal", "factored")])
def test_another_kind_of_importance_in_the_midst_of_a_run_is_refused(
    kinds: tuple[str, str],
) -> None:
    model, optimizer = consolidated(SALAdamW, importance=kinds[0])
    optimizer.param_groups[0]["importance"] = kinds[1]
    with pytest.raises(ValueError, match=r"missing.*delete its entry of optimizer\.state"):
        train(optimizer, model, 1)


def test_diagnostics_after_growing_are_of_the_larger_parameter() -> None:
    model, optimizer = consolidated(SALAdam, importance="diagonal")
    before = optimizer.diagnostics()["mean_gate"]
    larger = nn.Parameter(torch.cat([model.weight.detach(), torch.randn(792, 8)]))
    optimizer.grow(model.weight, larger)
    assert optimizer.diagnostics()["mean_gate"] > max(0.98, before)


def test_a_sketch_does_not_depend_on_the_default_dtype() -> None:
    projection.cache_clear()
    expected = projection(100, 8, torch.float32, torch.device("cpu"))
    projection.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        found = projection(100, 8, torch.float32, torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
        projection.cache_clear()
    assert torch.equal(found, expected)
