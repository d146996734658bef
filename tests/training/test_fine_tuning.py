"""A model that arrives trained: observed, it keeps what it knows, and learns the new data too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sal_optim import SALAdam
from sal_optim.protection.clock import long_run

TRAIN = 1400


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Images, the same mirrored at the diagonal, labels."""
    data = load_digits()
    images = torch.tensor(data.data / 16, dtype=torch.float32)
    turned = images.view(-1, 8, 8).transpose(1, 2).reshape(-1, 64)
    return images, turned, torch.tensor(data.target)


def fit(model: nn.Module, optimizer: Any, inputs: Tensor, labels: Tensor, steps: int) -> None:
    draw = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        batch = torch.randint(0, TRAIN, (64,), generator=draw)
        optimizer.zero_grad()
        cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return (model(inputs[TRAIN:]).argmax(1) == labels[TRAIN:]).double().mean().item()


@pytest.mark.parametrize("settings", [{}, {"consolidate_every": None}])
def test_old_and_new_data(settings: dict[str, Any]) -> None:
    images, turned, labels = digits()
    torch.manual_seed(0)
    pretrained = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    fit(pretrained, torch.optim.Adam(pretrained.parameters()), images, labels, 400)
    found = []
    for protection in (0.0, 10.0):
        model = copy.deepcopy(pretrained)
        optimizer = SALAdam(model.parameters(), protection=protection, **settings)
        if protection:
            with optimizer.observe():
                fit(model, optimizer, images, labels, 20)
            optimizer.consolidate()
        fit(model, optimizer, turned, labels, 400)
        found.append((accuracy(model, images, labels), accuracy(model, turned, labels)))
    (old, new), (kept, learned) = found
    assert kept > old + 0.1
    assert learned > new - 0.1


@pytest.mark.parametrize("saved", [False, True])
def test_what_was_observed_counts_as_a_long_run(saved: bool) -> None:
    """Also where a checkpoint lies between the observation and what declares its end."""
    param = nn.Parameter(torch.randn(4, 4))
    optimizer = SALAdam([param], retention=0.9)
    param.grad = torch.randn(4, 4)
    with optimizer.observe():
        optimizer.step()
    if saved:
        state, optimizer = copy.deepcopy(optimizer.state_dict()), SALAdam([param], retention=0.9)
        optimizer.load_state_dict(state)
    optimizer.consolidate()
    assert optimizer.controller.state_of(param)["evidence_weight"] == long_run(0.9)
    for _ in range(60):
        param.grad = torch.randn(4, 4)
        optimizer.step()
    optimizer.consolidate()
    weight = optimizer.controller.state_of(param)["evidence_weight"]
    assert weight == pytest.approx(0.9 * long_run(0.9) + 1.0, rel=1e-6)
