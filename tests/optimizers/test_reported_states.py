"""Cases of state and of modes that users of optimizers meet, beside ``test_reported_cases.py``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sal_optim import (
    SALSGD,
    CommunicationLayer,
    SALAdamW,
    SALLion,
    SALMuon,
    load_importance,
    save_importance,
)

FAMILY = [SALAdamW, SALSGD, SALLion, SALMuon]


def train(optimizer: Any, model: nn.Module, steps: int, width: int = 8) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, width)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("cls", [*FAMILY, torch.optim.AdamW])
def test_a_step_inside_autocast_is_the_step_outside(cls: Any) -> None:
    ends = []
    for inside in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(80, 70), nn.ReLU(), nn.Linear(70, 4))
        optimizer: Any = cls(model.parameters(), lr=1e-3)
        protection = optimizer if cls in FAMILY else CommunicationLayer(optimizer)
        for index in range(100):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(torch.randn(16, 80)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
                optimizer.step()
                if index == 70:
                    protection.consolidate()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            protection.restore(1.0)
            ends.append((model[0].weight.detach(), protection.stability(model[0].weight)))
    # Muon's own products are in bfloat16, in either case.
    near = {"rtol": 0.0, "atol": 0.0 if cls is not SALMuon else 1e-2}
    torch.testing.assert_close(ends[0], ends[1], **near)


class Heads(nn.Module):
    """A body and two heads, of which a forward uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.used = "one"

    def forward(self, inputs: Any) -> Any:
        return getattr(self, self.used)(self.body(inputs))


@pytest.mark.parametrize("cls", [*FAMILY, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD])
def test_observed_before_its_first_step(cls: Any) -> None:
    """A head, or a frozen layer, that is first stepped later than the others; resumed amid that."""
    model = Heads()
    optimizer: Any = cls(model.parameters(), lr=1e-3)
    protection = optimizer if cls in FAMILY else CommunicationLayer(optimizer)
    with protection.observe():
        train(optimizer, model, 8)
    protection.consolidate()
    held = protection.stability(model.one.weight)
    assert held.max() > 0.0
    for used in ("observed", "other", "one"):
        if used != "observed":
            model.used = used
            train(optimizer, model, 2)
        saved = optimizer.state_dict()
        optimizer = cls(model.parameters(), lr=1e-3)
        protection = optimizer if cls in FAMILY else CommunicationLayer(optimizer)
        optimizer.load_state_dict(saved)
        torch.testing.assert_close(protection.stability(model.one.weight), held, rtol=0, atol=0)
    assert protection.diagnostics()["consolidations"] == 1


@pytest.mark.parametrize("cls", FAMILY)
def test_moments_that_are_deleted_begin_anew(cls: Any) -> None:
    """As docs/guarantees.md advises after a run has diverged."""
    model = nn.Linear(8, 4)
    optimizer = cls(model.parameters(), lr=1e-3)
    train(optimizer, model, 70)
    held = optimizer.stability(model.weight)
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            state.pop(name, None)
    train(optimizer, model, 2)
    torch.testing.assert_close(optimizer.stability(model.weight), held, rtol=0, atol=0)


@pytest.mark.parametrize("cls", FAMILY)
def test_a_group_removed_before_its_first_step_is_not_saved(cls: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    optimizer = cls([{"params": part.parameters()} for part in model])
    with optimizer.observe():
        train(optimizer, model, 3)
    del optimizer.param_groups[1]
    assert sorted(optimizer.state_dict()["state"]) == [0, 1]
    assert not optimizer.state


def test_observe_within_observe_moves_nothing() -> None:
    model = nn.Linear(8, 4)
    optimizer = SALAdamW(model.parameters())
    before = model.weight.clone()
    with optimizer.observe():
        with optimizer.observe():
            train(optimizer, model, 4)
        train(optimizer, model, 4)
    torch.testing.assert_close(model.weight, before, rtol=0, atol=0)
    train(optimizer, model, 1)
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("layered", [False, True])
def test_observing_no_gradients_is_told(layered: bool) -> None:
    model = nn.Linear(8, 4)
    optimizer: Any = torch.optim.SGD(model.parameters()) if layered else SALSGD(model.parameters())
    protection = CommunicationLayer(optimizer) if layered else optimizer
    with warnings.catch_warnings(record=True) as caught, protection.observe():
        warnings.simplefilter("always")
        model(torch.randn(4, 8)).sum()
        optimizer.step()
    assert ["gathered nothing" in str(told.message) for told in caught] == [True]
    optimizer.param_groups[0]["protection"] = 0.0
    with warnings.catch_warnings(), protection.observe():
        warnings.simplefilter("error")
        train(optimizer, model, 2)


def test_restore_without_an_anchor_is_told() -> None:
    model = nn.Linear(8, 4)
    optimizer = SALAdamW(model.parameters(), pull=0.0)
    train(optimizer, model, 70)
    optimizer.param_groups[0]["pull"] = 1.2
    with pytest.warns(UserWarning, match="an anchor is first kept"):
        optimizer.restore(1.0)


def test_gradients_of_another_dtype_than_their_parameters() -> None:
    """As torch's SGD takes them, where ``grad_dtype`` allows them."""
    param = nn.Parameter(torch.randn(8, 8, dtype=torch.bfloat16))
    if not hasattr(param, "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    param.grad_dtype = None
    optimizer = SALSGD([param])
    for index in range(80):
        param.grad = torch.randn(8, 8) if index % 2 else torch.randn(8, 8).T
        optimizer.step()
        assert param.grad.dtype == torch.float32
    assert optimizer.stability(param).max() > 0.0


def test_a_clock_of_one_step_warns_of_nothing() -> None:
    model = nn.Linear(8, 4)
    optimizer = SALAdamW(model.parameters(), consolidate_every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(optimizer, model, 60)
        for index in range(60):
            optimizer.zero_grad()
            (model(torch.randn(16, 8)).square().mean() * (1 if index % 7 else 50)).backward()
            optimizer.step()


def test_names_that_several_models_share(tmp_path: Path) -> None:
    """An actor and a critic in one optimizer, by ``named_parameters()`` of each."""
    models = nn.ModuleDict({"actor": nn.Linear(8, 4), "critic": nn.Linear(8, 4)})
    named = [pair for model in models.values() for pair in model.named_parameters()]
    optimizer = SALAdamW(named)
    for model in models.values():
        train(optimizer, model, 70)
    with pytest.raises(ValueError, match="several parameters 'weight'"):
        save_importance(optimizer, tmp_path / "importance.safetensors")
    save_importance(optimizer, tmp_path / "importance.safetensors", models)
    other = SALAdamW(named)
    assert len(load_importance(other, tmp_path / "importance.safetensors", models).loaded) == 4
    with pytest.raises(ValueError, match="different number of parameter groups"):
        SALAdamW([{"params": named[:2]}, {"params": named[2:]}]).load_state_dict(
            optimizer.state_dict()
        )


class Wrapped(nn.Module):
    """A backbone that is called module, and what is not in it."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 4)

    def forward(self, inputs: Any) -> Any:
        return self.head(self.module(inputs))


def test_statistics_and_names_in_other_groups_and_wrappers() -> None:
    models = Wrapped(), Wrapped()
    named = [list(model.named_parameters()) for model in models]
    first = SALAdamW([{"params": named[0][:4]}, {"params": named[0][4:]}])
    train(first, models[0], 70)
    first.consolidate(model=torch.compile(models[0], backend="eager"))
    second = SALAdamW(named[1])
    second.load_state_dict(first.state_dict())
    second.restore(1e30, model=models[1])
    mean = models[0].module[1].running_mean
    torch.testing.assert_close(models[1].module[1].running_mean, mean, rtol=0, atol=0)


def test_what_was_told_is_checked_in_a_checkpoint() -> None:
    model = nn.Linear(8, 4)
    optimizer = SALAdamW(model.parameters())
    for _ in range(3):
        optimizer.tell(loss=1.0)
        train(optimizer, model, 1)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["threshold"]["loss_mean"] = "x"
    with pytest.raises(ValueError, match="loss_mean"):
        SALAdamW(model.parameters()).load_state_dict(saved)
    del saved["param_groups"][0]["threshold"]["loss_mean"]
    other = SALAdamW(model.parameters())
    other.load_state_dict(saved)
    other.tell(loss=1.0)


def test_a_layer_in_the_place_of_another() -> None:
    model = nn.Linear(8, 4)
    optimizer = torch.optim.AdamW(
        [{"params": [model.weight]}, {"params": [model.bias], "protection": 2.0}]
    )
    layer = CommunicationLayer(optimizer, protection=8.0)
    train(optimizer, model, 70)
    held = layer.controller.importance(model.weight)[0]
    layer.remove()
    layer.remove()
    other = CommunicationLayer(optimizer, protection=0.5)
    train(optimizer, model, 1)
    assert [group["protection"] for group in optimizer.param_groups] == [0.5, 2.0]
    torch.testing.assert_close(other.controller.importance(model.weight)[0], held, rtol=0, atol=0)


def test_sparse_gradients_of_a_layer_are_refused_by_its_name() -> None:
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    CommunicationLayer(optimizer)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="CommunicationLayer does not support sparse"):
        optimizer.step()


@pytest.mark.parametrize("cls", FAMILY)
def test_a_setting_that_all_groups_share_changed_in_one(cls: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    groups = [{"params": part.parameters()} for part in model]
    optimizer = cls(groups, lr=1e-3)
    train(optimizer, model, 2)
    before = [param.detach().clone() for param in model.parameters()]
    optimizer.param_groups[1]["consolidate_every"] = 50
    with pytest.raises(ValueError, match="consolidate_every value: 50 in one param group"):
        train(optimizer, model, 1)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    optimizer.param_groups[0]["consolidate_every"] = 50
    train(optimizer, model, 1)


@pytest.mark.parametrize("cls", FAMILY)
def test_loading_inside_of_observe_is_refused(cls: Any) -> None:
    model = nn.Linear(8, 4)
    optimizer = cls(model.parameters(), lr=1e-3)
    saved, before = optimizer.state_dict(), model.weight.detach().clone()
    with optimizer.observe():
        with pytest.raises(RuntimeError, match="inside of observe"):
            optimizer.load_state_dict(saved)
        train(optimizer, model, 4)
    assert torch.equal(before, model.weight)
    optimizer.load_state_dict(saved)
