"""Split: each task has two classes of its own, in the three scenarios people know.

split-task: many heads, so the logits are masked to the task's two classes. split-domain: two
outputs for all tasks, the label is the class's place within its pair. split-class: one output a
class and no mask, where every method without replay ends near one task's share.

The classes are paired in an order drawn from the seed; `--order natural` gives the published
protocol (0 and 1, 2 and 3, …) in every seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.data.errors import UserError
from benchmarks.data.sets import Dataset
from benchmarks.streams.base import Batch, Part, Stream, generator


class SplitClass(Stream):
    """Two classes a task, all outputs open (class-incremental)."""

    name = "split-class"
    summary = "two classes a task, one output a class, no mask"
    default_tasks = 5
    default_order = "shuffled"

    def __init__(self, data: Dataset, *, tasks: int | None = None, **settings: Any) -> None:
        most = data.classes // 2
        if tasks is not None and tasks > most:
            raise UserError(
                f"--tasks: {tasks} is out of range; "
                f"allowed for {self.name} on {data.name}: 1 to {most} (pairs of classes)"
            )
        super().__init__(data, tasks=tasks or most, **settings)

    def pair(self, task: int) -> Sequence[int]:
        """The two classes of a task."""
        classes = torch.arange(self.data.classes)
        if self.order == "shuffled":
            classes = classes[torch.randperm(len(classes), generator=generator("pairs", self.seed))]
        chosen: list[int] = classes[2 * task : 2 * task + 2].tolist()
        return chosen

    def members(self, part: Part, task: int) -> Tensor:
        labels = self.data.train_y if part == "train" else self.data.test_y
        return torch.isin(labels, torch.tensor(self.pair(task))).nonzero().squeeze(1)

    def show(self, x: Tensor, y: Tensor, task: int) -> Batch:
        return Batch(x, y)


class SplitTask(SplitClass):
    """Two classes a task, logits masked to them (task-incremental)."""

    name = "split-task"
    summary = "two classes a task, the logits masked to them"

    def show(self, x: Tensor, y: Tensor, task: int) -> Batch:
        mask = torch.zeros(self.outputs, dtype=torch.bool)
        mask[list(self.pair(task))] = True
        return Batch(x, y, mask)


class SplitDomain(SplitClass):
    """Two classes a task, the same two outputs for every pair (domain-incremental)."""

    name = "split-domain"
    summary = "two classes a task, the same two outputs for all pairs"

    @property
    def outputs(self) -> int:
        return 2

    def show(self, x: Tensor, y: Tensor, task: int) -> Batch:
        return Batch(x, (y == self.pair(task)[1]).long())
