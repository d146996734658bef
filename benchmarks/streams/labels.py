"""Label-permuted: the images stay, and each task gives them other labels.

Tasks contradict each other, so nothing old can be kept: what is measured is plasticity, how well
and how fast the last task is learned compared with the first (*online* and *learned*). The setting
of Elsayed and Mahmood 2024 (arXiv 2404.00781, label-permuted EMNIST).
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.streams.base import Batch, Stream, generator


class LabelPermuted(Stream):
    """The classes renamed anew for each task."""

    name = "label-permuted"
    summary = "the labels permuted anew for each task: plasticity, nothing can be kept"
    default_tasks = 20
    long = True

    def show(self, x: Tensor, y: Tensor, task: int) -> Batch:
        names = torch.randperm(self.data.classes, generator=generator("labels", self.seed, task))
        return Batch(x, names[y])
