"""Cases of state and of modes that users of optimizers meet, beside ``test_reported_cases.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sal_optim import SALSGD, CommunicationLayer, SALAdamW, SALLion, SALMuon

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
