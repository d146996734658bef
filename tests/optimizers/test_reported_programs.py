"""Whole programs that reviewers tried, beside ``test_reported_uses.py``."""

from __future__ import annotations

import copy
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
