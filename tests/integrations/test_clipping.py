"""Two data sets in transformers' Trainer as it is: its clipping takes nothing of the protection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sal_optim import SALAdamW
from sal_optim.integrations import register
from tests.integrations.tasks import LR, WithLoss, fine_tune, loss_on

SEEDS, STEPS = (0, 1), 300


pytest.importorskip("transformers")


def test_the_default_clips(tmp_path: Path) -> None:
    package = pytest.importorskip("transformers")
    assert package.TrainingArguments(output_dir=str(tmp_path)).max_grad_norm == 1.0


def by_callback(model: WithLoss, out: Path, **args: Any) -> None:
    from sal_optim.integrations.transformers import SALCallback

    file = out / "importance.safetensors"
    fine_tune(model, 1, out, callbacks=[SALCallback(importance_to=file)], **args)
    fine_tune(model, 2, out, callbacks=[SALCallback(importance_from=file)], **args)


def by_optim_args(model: WithLoss, out: Path, **args: Any) -> None:
    from sal_optim.integrations.transformers import SALCallback

    register()
    file = out / "importance.safetensors"
    fine_tune(model, 1, out, callbacks=[SALCallback(importance_to=file)], **args)
    settings = {"optim": "saladamw", "optim_args": f"importance_from={file}"}
    fine_tune(model, 2, out, None, **settings, **args)


def by_one_optimizer(model: WithLoss, out: Path, **args: Any) -> None:
    """Nothing says that the data changes."""
    optimizer = SALAdamW(model.parameters(), lr=LR)
    for seed in (1, 2):
        fine_tune(model, seed, out, optimizer, **args)


def by_adamw(model: WithLoss, out: Path, **args: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    for seed in (1, 2):
        fine_tune(model, seed, out, optimizer, **args)


def old_loss(train: Callable[..., None], out: Path, **args: Any) -> float:
    """The loss of the first data set after the second, a mean over seeds."""
    losses = []
    for seed in SEEDS:
        model = WithLoss(seed)
        train(model, out, max_steps=STEPS, **args)
        losses.append(loss_on(model.layers, 1))
    return sum(losses) / len(losses)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """AdamW's, clipped and not."""
    out = tmp_path_factory.mktemp("adamw")
    return [old_loss(by_adamw, out), old_loss(by_adamw, out, max_grad_norm=0.0)]


@pytest.mark.parametrize("train", [by_callback, by_optim_args, by_one_optimizer])
def test_clipping_takes_nothing_away(
    train: Callable[..., None], base: list[float], tmp_path: Path
) -> None:
    clipped, free = old_loss(train, tmp_path), old_loss(train, tmp_path, max_grad_norm=0.0)
    # By which share the old loss falls, less than AdamW's.
    falls = [1.0 - clipped / base[0], 1.0 - free / base[1]]
    assert falls[0] > 0.9 * falls[1]
    assert clipped < 0.5 * base[0]
