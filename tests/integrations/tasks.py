"""Two tasks of digits for real trainers: the same images, their pixels in another order."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sal_optim import SALAdamW
from tests.testing.drive import seeded

# Trainers import torchvision where it is installed, which fails where it is built for CUDA.
importlib.import_module("tests.integrations.shim.sitecustomize")
BATCH, LR = 64, 3e-3


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

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.layers = network(seed)

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layers(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows(seed: int) -> list[dict[str, Tensor]]:
    return [{"inputs": inputs, "labels": label} for inputs, label in task(seed)]


def fine_tune(
    model: WithLoss,
    seed: int,
    out: Path,
    optimizer: Any = SALAdamW,
    *,
    callbacks: Any = (),
    begin: Callable[[Any], Any] | None = None,
    **args: Any,
) -> Any:
    """By transformers' Trainer, with its default clipping, and a class or an optimizer as it is.

    Args:
        begin: what is done with the Trainer in the place of ``train()``.
    """
    transformers = pytest.importorskip("transformers")
    common = {"report_to": "none", "save_strategy": "no", "logging_steps": 10, "max_steps": 120}
    arguments = transformers.TrainingArguments(
        output_dir=str(out),
        learning_rate=LR,
        per_device_train_batch_size=BATCH,
        use_cpu=True,
        disable_tqdm=True,
        **{**common, **args},
    )
    made: dict[str, Any] = {"optimizer_cls_and_kwargs": (optimizer, {"lr": LR})}
    if optimizer is None:  # that of args
        made = {}
    elif not isinstance(optimizer, type):
        made = {"optimizers": optimizer if isinstance(optimizer, tuple) else (optimizer, None)}
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=rows(seed), callbacks=list(callbacks), **made
    )
    trainer.train() if begin is None else begin(trainer)
    return trainer
