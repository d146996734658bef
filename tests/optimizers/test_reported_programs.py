"""Whole programs that reviewers tried, beside ``test_reported_uses.py``."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sal_optim import (
    SALSGD,
    CommunicationLayer,
    SALAdam,
    SALAdamW,
    SALLion,
    SALMuon,
    load_importance,
    save_importance,
)
from sal_optim.monitoring.report import rows, summary

FAMILY = [SALAdam, SALAdamW, SALSGD, SALLion, SALMuon]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))


def train(optimizer: Any, model: nn.Module, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()


def assert_alike(one: nn.Module, other: nn.Module) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("cls", [*FAMILY, torch.optim.AdamW])
def test_a_run_whose_steps_are_under_inference_mode(cls: Any) -> None:
    """Begun so, protected state has no versions by which a consolidation is noticed."""
    models = []
    for inside in (False, True):
        torch.manual_seed(0)
        model = network()
        optimizer: Any = cls(model.parameters(), lr=1e-3)
        protection = optimizer if cls in FAMILY else CommunicationLayer(optimizer)
        for index in range(90):
            optimizer.zero_grad()
            model(torch.randn(16, 8)).square().mean().backward()
            with torch.inference_mode(inside):
                optimizer.step()
                if index in (40, 60):
                    protection.consolidate()
        with torch.inference_mode(inside):
            protection.restore(1.0)
            assert protection.diagnostics()["drift"] < 1.0
        models.append(model)
    assert_alike(*models)


class Averaging:
    """A mixin that keeps a mean of the weights in the state, from before the first step on."""

    param_groups: Any
    state: Any

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        params = [param for group in self.param_groups for param in group["params"]]
        for param in params:
            self.state[param].setdefault("mean", param.clone())
        loss = super().step(closure)  # type: ignore[misc]
        for param in params:
            self.state[param]["mean"].lerp_(param, 0.1)
        return loss


@pytest.mark.parametrize("cls", FAMILY)
def test_state_that_a_subclass_begins_before_the_first_step(cls: Any) -> None:
    """As Schedule-Free's wrapper does; Adam takes a state that is there for its own."""
    models = []
    for own in (cls, type("Mine", (Averaging, cls), {})):
        torch.manual_seed(0)
        model = network()
        model[0].requires_grad_(False)
        optimizer = own(model.parameters(), lr=1e-3)
        train(optimizer, model, 5)
        models.append(model)
    assert_alike(*models)
    for param in model.parameters():
        assert torch.equal(optimizer.state[param]["mean"], param) is not param.requires_grad
    copied = copy.deepcopy(optimizer)
    frozen = copied.param_groups[0]["params"][0]
    assert torch.equal(copied.state[frozen]["mean"], frozen)


def test_a_parameter_that_is_added_beside_the_names(tmp_path: Path) -> None:
    model = network()
    optimizer = SALAdamW(model.named_parameters(), lr=1e-3)
    train(optimizer, model, 5)
    model.append(nn.Linear(4, 4))
    optimizer.param_groups[0]["params"] += model[3].parameters()
    train(optimizer, model, 5)
    optimizer.consolidate()
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="has 4 names of 6 parameters, so model must be"):
        save_importance(optimizer, tmp_path / "importance.safetensors")
    save_importance(optimizer, tmp_path / "importance.safetensors", model)
    other = SALAdamW(model.parameters())
    assert len(load_importance(other, tmp_path / "importance.safetensors", model).loaded) == 6


def test_a_state_of_a_layer_that_is_kept_in_memory() -> None:
    """As a search for a learning rate keeps one: what was watched later is not in it."""
    model = network()
    layer = CommunicationLayer(torch.optim.AdamW(model.parameters(), lr=1e-3))
    layer.diagnostics()  # as a writer does when it is made
    fresh = layer.optimizer.state_dict()
    train(layer.optimizer, model, 70)
    kept = layer.optimizer.state_dict()
    counts = [dict(kept["param_groups"][0]["threshold"]), kept["state"][0]["pending_steps"]]
    train(layer.optimizer, model, 10)
    assert counts == [kept["param_groups"][0]["threshold"], kept["state"][0]["pending_steps"]]
    layer.optimizer.load_state_dict(fresh)
    assert layer.diagnostics()["consolidations"] == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(layer.optimizer, model, 70)
    assert layer.diagnostics()["consolidations"] == 1.0


@pytest.mark.parametrize("cls", FAMILY)
def test_models_that_are_trained_in_threads(cls: Any) -> None:
    """Kinds of importance are shared by all optimizers, and keep tables by tensor."""
    models = [network() for _ in range(4)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    batches = torch.randn(90, 16, 8)

    def run(model: nn.Module) -> None:
        optimizer = cls(model.parameters(), lr=1e-3, consolidate_every=20)
        for batch in batches:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

    run(models[0])
    threads = [threading.Thread(target=run, args=(model,)) for model in models[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model in models[1:]:
        assert_alike(model, models[0])


@pytest.mark.parametrize("cls", [*FAMILY, torch.optim.AdamW, torch.optim.SGD])
def test_what_is_called_in_a_hook_of_the_step(cls: Any) -> None:
    model = network()
    optimizer: Any = cls(model.parameters(), lr=1e-3)
    protection = optimizer if cls in FAMILY else CommunicationLayer(optimizer)
    kept: list[dict[str, Any]] = []

    def grow() -> None:
        old, new = model[2], nn.Linear(6, 5)
        for name, param in old.named_parameters():
            with torch.no_grad():
                getattr(new, name)[: len(param)] = param
            protection.grow(param, getattr(new, name))
        model[2] = new

    acts = iter(
        [
            protection.consolidate,
            lambda: kept.append(copy.deepcopy(optimizer.state_dict())),
            lambda: protection.restore(1.0),
            lambda: optimizer.load_state_dict(kept[0]),
            grow,
        ]
    )
    train(optimizer, model, 20)
    handle = optimizer.register_step_post_hook(lambda *_: next(acts)())
    train(optimizer, model, 5)
    handle.remove()
    assert protection.diagnostics()["consolidations"] == 1.0
    assert protection.stability(model[2].weight)[:4].max() > 0.0
    train(optimizer, model, 5)
    assert all(param.isfinite().all() for param in model.parameters())


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("rate", [-1e-19, -1e-6])
def test_a_rate_just_below_0_is_no_leap(rate: float, layered: bool) -> None:
    """A schedule that goes on past its end leaves one."""
    torch.manual_seed(0)
    model = network()
    given = {"lr": 5e-2, "momentum": 0.9}
    optimizer: Any = (torch.optim.SGD if layered else SALSGD)(model.parameters(), **given)
    protection = CommunicationLayer(optimizer) if layered else optimizer
    train(optimizer, model, 100)
    protection.consolidate()
    train(optimizer, model, 10)
    before = copy.deepcopy(model)
    optimizer.param_groups[0]["lr"] = rate
    train(optimizer, model, 8)
    for mine, theirs in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-4)
        assert float(optimizer.state[mine]["momentum_buffer"].abs().max()) < 10.0


@pytest.mark.parametrize("cls", [SALAdamW, SALSGD])
def test_an_optimizer_of_lazy_parameters_can_be_copied_and_shown(cls: Any) -> None:
    model = nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 4))
    optimizer = cls(model.named_parameters(), lr=1e-2)
    known = copy.deepcopy(optimizer).diagnostics()
    assert known == pickle.loads(pickle.dumps(optimizer)).diagnostics() == optimizer.diagnostics()
    assert [row.size for row in rows(optimizer, model)] == [0, 0, 24, 4]
    assert "No consolidation yet" in summary(optimizer, rows(optimizer, model))
    with pytest.raises(ValueError, match="uninitialized"):
        optimizer.stability(model[0].weight)
    train(optimizer, model, 2)
    assert [row.size for row in rows(optimizer, model)] == [48, 6, 24, 4]


def test_a_group_that_was_appended_has_the_defaults() -> None:
    model, other = network(), nn.Linear(4, 4)
    optimizer = SALAdamW(model.parameters(), protection=7.0)
    optimizer.param_groups.append(torch.optim.AdamW(other.parameters()).param_groups[0])
    train(optimizer, nn.Sequential(model, other), 70)
    assert optimizer.param_groups[1]["protection"] == 7.0
    assert float(optimizer.stability(other.weight).max()) > 0.0


def test_importance_is_loaded_under_inference_mode(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "importance.safetensors"
    first = SALAdamW(model.named_parameters())
    train(first, model, 8)
    first.consolidate()
    save_importance(first, path)
    second = SALAdamW(model.named_parameters())
    with torch.inference_mode():
        load_importance(second, path)
    train(second, model, 10)
    second.consolidate()
    assert second.diagnostics()["consolidations"] == 2.0


def test_repr_is_as_long_as_torchs() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Linear(64, 4))
    optimizer = SALAdamW(model.parameters())
    train(optimizer, model, 2)
    optimizer.consolidate(model=model)
    shown = repr(optimizer)
    assert "protection: 10" in shown
    assert "lr: 0.001" in shown
    assert len(shown) < 2 * len(repr(torch.optim.AdamW(model.parameters())))


def test_sgd_without_protection_goes_on_after_a_cast() -> None:
    """As torch.optim's does."""
    ends = []
    for cls, settings in ((torch.optim.SGD, {}), (SALSGD, {"protection": 0.0})):
        torch.manual_seed(0)
        model = nn.Linear(8, 4)
        optimizer: Any = cls(model.parameters(), lr=0.1, momentum=0.9, **settings)
        train(optimizer, model, 2)
        model.double()
        optimizer.zero_grad()
        model(torch.ones(2, 8, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        ends.append(model)
    assert_alike(*ends)
