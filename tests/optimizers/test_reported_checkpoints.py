"""Checkpoints and state that users and wrappers put together: nothing is lost in silence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim import (
    SALSGD,
    CommunicationLayer,
    SALAdamW,
    SALLion,
    load_importance,
    save_importance,
)
from sal_optim.monitoring.status import protection_line
from tests.optimizers.test_reported_states import FAMILY, train


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def protected(cls: Any, model: nn.Module, **settings: Any) -> tuple[Any, Any]:
    """The optimizer, and what protects it."""
    optimizer = cls(model.parameters(), lr=1e-3, **settings)
    return optimizer, optimizer if cls in FAMILY else CommunicationLayer(optimizer)


@pytest.mark.parametrize("cls", [*FAMILY, torch.optim.AdamW])
def test_groups_of_a_new_optimizer_in_an_old_checkpoint(cls: Any) -> None:
    """As one does to go on at another rate: importance comes along, the detector does not."""
    model = network()
    optimizer, protection = protected(cls, model)
    train(optimizer, model, 100)
    protection.consolidate()
    known = protection.diagnostics()["mean_gate"]
    assert known < 1.0
    other, protection = protected(cls, model)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"] = other.state_dict()["param_groups"]
    other.load_state_dict(saved)
    train(other, model, 1)
    assert protection.diagnostics()["mean_gate"] == pytest.approx(known, rel=0.05)
    assert "by 1 consolidations" in protection_line(other)


def test_groups_that_are_put_together_anew() -> None:
    model = network()
    optimizer, _ = protected(SALAdamW, model)
    train(optimizer, model, 100)
    optimizer.consolidate()
    optimizer.param_groups.clear()
    optimizer.add_param_group({"params": list(model.parameters())})
    train(optimizer, model, 1)
    assert optimizer.diagnostics()["mean_gate"] < 1.0


def test_what_was_told_in_a_distributed_checkpoint(tmp_path: Path) -> None:
    """It loads what a new optimizer has already, and no more."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model = network()
    optimizer = SALAdamW(model.parameters())
    for step in range(50):
        optimizer.tell(loss=1.0 + 0.01 * (step % 3))
        train(optimizer, model, 1)
    checkpoint.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=tmp_path)
    model.zero_grad()  # torch begins no state beside gradients
    other = SALAdamW(model.parameters())
    loaded = get_optimizer_state_dict(model, other)
    checkpoint.load(loaded, checkpoint_id=tmp_path)
    set_optimizer_state_dict(model, other, loaded)
    assert other.controller.detector == optimizer.controller.detector
    for _ in range(3):
        other.tell(loss=50.0)
        train(other, model, 1)
    assert other.diagnostics()["changes"] == 1.0


def observed(model: nn.Module) -> SALAdamW:
    optimizer = SALAdamW(model.parameters())
    with optimizer.observe():
        train(optimizer, model, 8)
    optimizer.consolidate()
    return optimizer


def test_state_that_a_wrapper_puts_beside_what_was_observed() -> None:
    model = network()
    optimizer = observed(model)
    known = optimizer.diagnostics()["mean_gate"]
    assert known < 1.0
    for param in model.parameters():
        optimizer.state[param]["slow"] = param.detach().clone()
    saved = optimizer.state_dict()
    assert all({"slow", "anchor"} <= own.keys() for own in saved["state"].values())
    assert all([*own] == ["slow"] for own in optimizer.state.values())
    copied = copy.deepcopy(optimizer)
    for one in (optimizer, copied):
        params = [param for group in one.param_groups for param in group["params"]]
        for param in params:
            param.grad = torch.ones_like(param)
        one.step()
        assert one.diagnostics()["mean_gate"] == pytest.approx(known, rel=0.05)
        assert all("slow" in one.state[param] for param in params)


def test_a_wrapper_beside_a_layer_that_has_observed() -> None:
    model = network()
    optimizer, layer = protected(torch.optim.AdamW, model)
    with layer.observe():
        train(optimizer, model, 8)
    for param in model.parameters():
        optimizer.state[param]["slow"] = param.detach().clone()
    saved = optimizer.state_dict()
    assert all({"slow", "left_basis"} <= own.keys() for own in list(saved["state"].values())[::2])


def test_one_group_in_groups_with_and_without_decay() -> None:
    model = network()
    one = SALAdamW(model.named_parameters(), lr=1e-2, weight_decay=0.1)
    train(one, model, 3)
    decayed = [(n, p) for n, p in model.named_parameters() if p.dim() > 1]
    others = [(n, p) for n, p in model.named_parameters() if p.dim() == 1]
    two = SALAdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=1e-4,
    )
    two.load_state_dict(one.state_dict())
    assert [group["weight_decay"] for group in two.param_groups] == [0.05, 0.0]
    assert [group["lr"] for group in two.param_groups] == [1e-2, 1e-2], "as with torch"


def test_statistics_of_a_model_whose_only_child_is_called_module() -> None:
    """As that of DataParallel is: a name was taken off twice, once where it was kept."""
    inner = nn.Module()
    inner.module = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    inner.forward = inner.module.forward
    model = nn.DataParallel(inner)
    optimizer = SALAdamW(model.parameters())
    train(optimizer, model, 3)
    optimizer.consolidate(model=model)
    mean = inner.module[1].running_mean.clone()
    train(optimizer, model, 3)
    optimizer.restore(1.0, model=model)
    torch.testing.assert_close(inner.module[1].running_mean, mean, rtol=0, atol=0)


class Wrapped(nn.Module):
    """As Lightning's Fabric wraps a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module = module


def test_a_model_in_fabrics_wrapper(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    optimizer = SALAdamW(model.parameters())
    train(optimizer, model, 2)
    optimizer.consolidate(model=Wrapped(model))
    optimizer.restore(1.0, model=model)
    save_importance(optimizer, tmp_path / "a.safetensors", Wrapped(model))
    found = load_importance(SALAdamW(model.parameters()), tmp_path / "a.safetensors", model)
    assert len(found.loaded) == 4


def test_parameters_of_a_loss_beside_the_models(tmp_path: Path) -> None:
    """Their names are those that the optimizer has; without any it is refused."""
    model, head = network(), nn.ParameterDict({"scale": torch.ones(4)})
    named = [*model.named_parameters(), ("loss.scale", head["scale"])]

    def run(optimizer: Any) -> None:
        model(torch.randn(16, 8)).mul(head["scale"]).square().mean().backward()
        optimizer.step()
        optimizer.consolidate()
        save_importance(optimizer, tmp_path / "a.safetensors", model)

    run(SALAdamW(named))
    assert "loss.scale" in load_importance(SALAdamW(named), tmp_path / "a.safetensors").loaded
    with pytest.raises(ValueError, match="without 1 of the optimizer's 5 parameters"):
        run(SALAdamW([param for _, param in named]))


@pytest.mark.parametrize("importance", ["kronecker", "diagonal", "factored"])
@pytest.mark.parametrize(("cls", "own"), [(SALAdamW, {"eps": 1e-3}), (SALSGD, {}), (SALLion, {})])
def test_float16_weights_with_a_small_head(
    cls: Any, own: dict[str, float], importance: str
) -> None:
    """Its importance leaves the range of float16: a mean of 1 over all, and all in one element."""
    torch.manual_seed(0)
    params = [torch.randn(500, 500).half().requires_grad_(), torch.zeros(1).half().requires_grad_()]
    optimizer = cls(params, lr=1e-3, importance=importance, **own)

    def gradients() -> list[Tensor]:
        return [(1e-3 * torch.randn(500, 500)).half(), torch.randn(1).half()]

    for _ in range(70):
        for param, grad in zip(params, gradients(), strict=True):
            param.grad = grad
        optimizer.step()
    assert optimizer.diagnostics()["consolidations"] == 1.0
    assert optimizer.stability(params[1]).item() > 0.99
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    assert all(t.isfinite().all() for t in (*params, *tensors) if isinstance(t, Tensor))


def test_tiny_gradients_beside_a_float64_parameter() -> None:
    params = [torch.ones(20, 20), torch.ones(3, dtype=torch.float64)]
    params = [param.requires_grad_() for param in params]
    optimizer = SALAdamW(params)
    for _ in range(5):
        for param in params:
            param.grad = torch.full_like(param, 1e-40)
        optimizer.step()
    optimizer.consolidate()
    assert all(param.isfinite().all() for param in params)
