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
