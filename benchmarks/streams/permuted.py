"""Permuted: every task shows the same images with its own fixed shuffle of the pixels.

The first task is shuffled as well, so that no task is easier than another. Long is the same stream
with a hundred tasks; the fuzzy ones are without sharp boundaries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.streams.base import Batch, Stream, generator


class Permuted(Stream):
    """Input permutations; the labels keep their meaning."""

    name = "permuted"
    summary = "the pixels shuffled anew for each task"
    default_tasks = 10

    def show(self, x: Tensor, y: Tensor, task: int) -> Batch:
        pixels = torch.randperm(
            self.data.features, generator=generator("permutation", self.seed, task)
        )
        return Batch(x.index_select(1, pixels), y)


class Long(Permuted):
    """Permuted, a hundred tasks: does a method still learn at the end, and what does it hold?"""

    name = "long"
    summary = "permuted with 100 tasks: plasticity and capacity"
    default_tasks = 100
    long = True


class Fuzzy(Permuted):
    """Permuted, but over the second half of each task's steps the next task is mixed in.

    The share of the next task rises linearly from 0 to 1 (exclusive) and is met exactly, up to
    rounding, in every batch. The last task has no next one and stays pure.
    """

    name = "fuzzy"
    summary = "permuted, the next task mixed in linearly over the second half of each"

    def share(self, task: int, step: int) -> float:
        """The share of the next task at this step."""
        start = self.steps // 2
        if task == self.tasks - 1 or step < start:
            return 0.0
        return (step - start) / (self.steps - start)

    def mixed(self, task: int, step: int) -> int:
        """How many examples of the batch come from the next task."""
        return round(self.batch_size * self.share(task, step))

    def batch(self, task: int, step: int) -> Batch:
        now = super().batch(task, step)
        count = self.mixed(task, step)
        if count == 0:
            return now
        coming = self._take(task + 1, task, step)
        keep = self.batch_size - count
        return Batch(
            torch.cat([now.x[:keep], coming.x[:count]]), torch.cat([now.y[:keep], coming.y[:count]])
        )

    def changes(self) -> list[tuple[int, int]]:
        return [
            ((task - 1) * self.steps + self.steps // 2, task * self.steps)
            for task in range(1, self.tasks)
        ]


class FuzzyRandom(Fuzzy):
    """Fuzzy by whole batches: each is the next task's with a probability that rises linearly.

    The two tasks alternate at random, so that a method that reacts to every change of the data
    reacts many times.
    """

    name = "fuzzy-random"
    summary = "permuted, whole batches of the next task interleaved at random, ever more of them"

    def mixed(self, task: int, step: int) -> int:
        draw = torch.rand(1, generator=generator("interleave", self.seed, task, step)).item()
        return self.batch_size if draw < self.share(task, step) else 0
