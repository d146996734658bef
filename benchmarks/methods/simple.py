"""Small baselines that are one idea each: a decaying learning rate, joint training, options.

Learning-rate decay (Mirzadeh et al. 2020, arXiv 2006.06958, section 4): lr falls by a factor at
each boundary, which keeps later tasks near the minimum of earlier ones. Joint training is the upper
bound: every batch is drawn from all tasks up to the present one.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from benchmarks.methods.base import Method
from benchmarks.streams import Batch


class Decay(Method):
    """lr ← lr · factor at each boundary."""

    told = True

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, factor: float = 0.5) -> None:
        super().__init__(model, optimizer)
        self.factor = factor

    def boundary(self, task: Batch) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] *= self.factor


class Joint(Method):
    """A plain optimizer that the runner gives batches of all tasks so far."""

    told = True
    joint = True


class Configured(Method):
    """A plain optimizer whose settings are the method's options."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, **options: Any) -> None:
        super().__init__(model, optimizer)
        for group in optimizer.param_groups:
            group.update(options)
