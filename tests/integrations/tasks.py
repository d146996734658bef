"""Two tasks of digits for real trainers: the same images, their pixels in another order."""

from __future__ import annotations

import functools
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.testing.drive import seeded

BATCH = 64


@functools.cache
def task(seed: int) -> TensorDataset:
    data = load_digits()
    inputs = torch.tensor(data.data / 16, dtype=torch.float32)
    order = torch.randperm(64, generator=seeded(seed))
    return TensorDataset(inputs[:, order], torch.tensor(data.target))


def loader(seed: int) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(task(seed), BATCH)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@torch.no_grad()
def loss_on(model: nn.Module, seed: int) -> float:
    inputs, targets = task(seed).tensors
    return float(nn.functional.cross_entropy(model(inputs), targets))


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class WithLoss(nn.Module):
    """What transformers' Trainer takes: a module whose output has a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layers(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows(seed: int) -> list[dict[str, Tensor]]:
    return [{"inputs": inputs, "labels": label} for inputs, label in task(seed)]
