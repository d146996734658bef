"""What a stream is: tasks one after another, each a deterministic sequence of batches.

A stream is a function of (data, seed, tasks, steps, batch, order) and nothing else: no global
random state, no memory of what was asked before. So every method with the same seed sees the
same batches in the same order, and any batch can be asked for at any time.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from benchmarks.data.sets import Dataset

Part = Literal["train", "test"]
Order = Literal["natural", "shuffled"]
ORDERS: tuple[Order, ...] = ("natural", "shuffled")


@dataclass(frozen=True)
class Batch:
    """Inputs, labels, and which outputs exist for them (None: all of them)."""

    x: Tensor
    y: Tensor
    mask: Tensor | None = None

    def first(self, count: int) -> Batch:
        """The first `count` examples."""
        mask = self.mask[:count] if self.mask is not None and self.mask.dim() > 1 else self.mask
        return Batch(self.x[:count], self.y[:count], mask)

    @classmethod
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        """All examples of `parts`; masks, if there are any, one for each example."""
        masks = [part.mask.expand(len(part.x), -1) for part in parts if part.mask is not None]
        return cls(
            torch.cat([part.x for part in parts]),
            torch.cat([part.y for part in parts]),
            torch.cat(masks) if masks else None,
        )


def generator(*parts: int | str) -> torch.Generator:
    """A random generator that depends on `parts` alone, and differs for any other parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Stream(ABC):
    """Base of all streams. A subclass says which examples a task has and how it shows them."""

    name: ClassVar[str]
    summary: ClassVar[str]
    default_tasks: ClassVar[int]
    default_order: ClassVar[Order] = "natural"
    # Whether the number of tasks is the point, and a small data set does not reduce it.
    long: ClassVar[bool] = False

    def __init__(
        self,
        data: Dataset,
        *,
        seed: int,
        tasks: int | None = None,
        steps: int = 200,
        batch: int = 128,
        order: Order | None = None,
    ) -> None:
        self.data = data
        self.seed = seed
        self.tasks = tasks or self.default_tasks
        self.steps = steps
        self.batch_size = batch
        self.order: Order = order or self.default_order
        self._drawn: dict[tuple[int, int], Tensor] = {}

    @property
    def outputs(self) -> int:
        """Outputs of the network."""
        return self.data.classes

    def members(self, part: Part, task: int) -> Tensor:
        """Indices of the examples of a task; all of them unless a subclass says otherwise."""
        labels = self.data.train_y if part == "train" else self.data.test_y
        return torch.arange(len(labels))

    @abstractmethod
    def show(self, x: Tensor, y: Tensor, task: int) -> Batch:
        """Raw examples as `task` presents them."""

    def batch(self, task: int, step: int) -> Batch:
        """The training batch of one step, 0 <= step < steps."""
        return self._take(task, task, step)

    def joint(self, task: int, step: int) -> Batch:
        """A batch of examples of all tasks up to `task`, each task as likely as any other."""
        source = generator("joint", self.seed, task, step)
        which = torch.randint(task + 1, (self.batch_size,), generator=source)
        parts = []
        for earlier in sorted(set(which.tolist())):
            members = self.members("train", earlier)
            count = int((which == earlier).sum())
            rows = members[torch.randint(len(members), (count,), generator=source)]
            parts.append(self.show(self.data.train_x[rows], self.data.train_y[rows], earlier))
        return Batch.joined(parts)

    def train(self, task: int) -> Batch:
        """All training examples of a task: what a method that is told boundaries may look at."""
        chosen = self.members("train", task)
        return self.show(self.data.train_x[chosen], self.data.train_y[chosen], task)

    def test(self, task: int) -> Batch:
        """The test set of a task."""
        chosen = self.members("test", task)
        return self.show(self.data.test_x[chosen], self.data.test_y[chosen], task)

    def changes(self) -> list[tuple[int, int]]:
        """First and last global step of each change of task (equal where it is sharp)."""
        return [(task * self.steps, task * self.steps) for task in range(1, self.tasks)]

    def _take(self, task: int, slot: int, step: int) -> Batch:
        """Examples of `task`, drawn from the sequence that belongs to (task, slot)."""
        rows = self._draw(task, slot)[step * self.batch_size : (step + 1) * self.batch_size]
        return self.show(self.data.train_x.index_select(0, rows), self.data.train_y[rows], task)

    def _draw(self, task: int, slot: int) -> Tensor:
        """Indices for all steps: one shuffled epoch after another, without a short batch."""
        key = (task, slot)
        if key not in self._drawn:
            source = generator("batches", self.seed, task, slot)
            members, need = self.members("train", task), self.steps * self.batch_size
            epochs = [
                members[torch.randperm(len(members), generator=source)]
                for _ in range(-(-need // len(members)))
            ]
            # Only the neighbouring tasks are in use at a time: long streams stay small.
            if len(self._drawn) > 4:
                self._drawn.clear()
            self._drawn[key] = torch.cat(epochs)[:need]
        return self._drawn[key]


def masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits with the classes outside `mask` (classes, or batch x classes) shut out."""
    return logits if mask is None else logits.masked_fill(~mask, float("-inf"))
