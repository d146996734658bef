"""Whole programs that reviewers tried, beside ``test_reported_uses.py``."""

from __future__ import annotations

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
