"""Digits as a task of its own: pixels in another order."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from tests.testing.drive import seeded


@functools.cache
def task(seed: int) -> tuple[Tensor, Tensor]:
    """Digits whose pixels are in an order of the task's own."""
    data = load_digits()
    inputs = torch.tensor(data.data / 16, dtype=torch.float32)
    return inputs[:, torch.randperm(64, generator=seeded(seed))], torch.tensor(data.target)
