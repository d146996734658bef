"""Loops that several experiments share: through a stream of tasks, and on batches of one set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.metrics import scores
from benchmarks.streams import Stream

Extra = Callable[[], Tensor]
SCORES = {
    "average": scores.average,
    "worst": scores.worst,
    "learned": scores.learned,
    "forgetting": scores.forgetting,
}


def through(
    stream: Stream,
    model: nn.Module,
    optimizer: Any,
    extra: Extra | None = None,
    after_task: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Train a stream of tasks; the figures of its matrix of accuracies, as fractions.

    `extra` is a term of the loss, taken after the forward pass; `after_task` is called at the end
    of each task, before its gradients are dropped.
    """
    tests = [stream.test(task) for task in range(stream.tasks)]
    matrix = []
    for task in range(stream.tasks):
        for step in range(stream.steps):
            batch = stream.batch(task, step)
            optimizer.zero_grad()
            loss = cross_entropy(model(batch.x), batch.y)
            if extra is not None:
                loss = loss + extra()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if after_task is not None:
            after_task()
        matrix.append([accuracy(model, test.x, test.y) for test in tests])
    return {name: score(matrix) for name, score in SCORES.items()}


def descend(optimizer: Any, loss: Callable[[], Tensor], steps: int) -> None:
    """Steps on a loss that is taken anew for each."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    return float((model(x).argmax(1) == y).float().mean())
