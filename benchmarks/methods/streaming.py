"""Told methods made untold: they consolidate every N steps, whatever the data do.

The natural baseline for a method that is told nothing. What a boundary hands over, all examples of
a task, is replaced by the examples of the last steps; a Fisher around a moving anchor is what
Huszár 2018 (arXiv 1712.03847) calls the online Laplace approximation. AR1 slows weights instead of
pulling them: Δw is scaled by 1 - F/F_max (Maltoni and Lomonaco 2019, arXiv 1806.08568; the learning
rate modulated by importance, Lomonaco et al. 2020, arXiv 1912.01100).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.methods.ewc import OnlineEWC
from benchmarks.methods.si import SI
from benchmarks.streams import Batch

EVERY = 200


class Recent:
    """The examples of the last steps, `most` at most, as one batch."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.batches: list[Batch] = []

    def add(self, batch: Batch) -> None:
        self.batches.append(batch)
        while sum(len(b.x) for b in self.batches[1:]) >= self.most:
            self.batches.pop(0)

    def take(self) -> Batch:
        """All of them; empties the store."""
        taken, self.batches = self.batches, []
        return Batch.joined(taken)


class StreamingEWC(OnlineEWC):
    """Online EWC, every N steps, its Fisher over the examples of the last of them."""

    told = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        strength: float = 100.0,
        decay: float = 0.9,
        every: int = EVERY,
        fisher_examples: int = 1000,
    ) -> None:
        super().__init__(
            model, optimizer, strength=strength, decay=decay, fisher_examples=fisher_examples
        )
        self.every, self.steps, self.recent = every, 0, Recent(fisher_examples)

    def after_step(self, batch: Batch) -> None:
        super().after_step(batch)
        self.recent.add(batch)
        self.steps += 1
        if self.steps % self.every == 0:
            self.boundary(self.recent.take())


class StreamingSI(SI):
    """Synaptic intelligence, every N steps."""

    told = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        strength: float = 1.0,
        xi: float = 0.1,
        every: int = EVERY,
    ) -> None:
        super().__init__(model, optimizer, strength=strength, xi=xi)
        self.every, self.steps = every, 0

    def after_step(self, batch: Batch) -> None:
        super().after_step(batch)
        self.steps += 1
        if self.steps % self.every == 0:
            self.boundary(batch)


class AR1(StreamingSI):
    """No pull: each weight's step is scaled by 1 - F/F_max, F synaptic intelligence's."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        max_importance: float = 1e-3,
        xi: float = 1e-7,
        every: int = EVERY,
    ) -> None:
        super().__init__(model, optimizer, strength=0.0, xi=xi, every=every)
        self.max_importance = max_importance

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        for p, old, importance in zip(self.params, self.before, self.importance, strict=True):
            slowed = importance.clamp(max=self.max_importance).div_(self.max_importance)
            p.lerp_(old, slowed)
        super().after_step(batch)
