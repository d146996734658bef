"""The published SAL rule, as a baseline, from its formulas. Not the rule of this package.

Per tensor: stability s = 1 / (1 + Δw · g), with Δw the norm of the tensor's last weight change
and g the norm of its gradient; threshold tau = tau0 + alpha · sd/mean over the tensor's recent
gradient norms. Where s > tau the *gradient* is scaled by 1 - s, and the base optimizer steps on
that. The first step has no weight change yet and is left alone.

Adam divides such a scale out again, and SGD comes to a halt: a tensor that was slowed moves
less, so it counts as more stable still. That failure is measured, not fixed, here.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.methods.base import Method
from benchmarks.streams import Batch


class PublishedSAL(Method):
    """Scale each tensor's gradient by 1 - s where its stability s exceeds its threshold."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        tau0: float = 0.5,
        alpha: float = 0.1,
        window: int = 100,
    ) -> None:
        super().__init__(model, optimizer)
        self.tau0, self.alpha = tau0, alpha
        self.norms: list[deque[float]] = [deque(maxlen=window) for _ in self.params]
        self.before: list[Tensor] = []
        self.delta_w: list[float] | None = None

    @torch.no_grad()
    def before_step(self, batch: Batch) -> None:
        for index, p in enumerate(self.params):
            assert p.grad is not None
            g_norm = float(p.grad.norm())
            self.norms[index].append(g_norm)
            if self.delta_w is None:
                continue
            stability = 1 / (1 + self.delta_w[index] * g_norm)
            if stability > self.threshold(index):
                p.grad.mul_(1 - stability)
        self.before = [p.detach().clone() for p in self.params]

    def threshold(self, index: int) -> float:
        """tau0 + alpha · sd/mean over the recent gradient norms of one tensor."""
        norms = torch.tensor(list(self.norms[index]))
        mean = float(norms.mean())
        return self.tau0 + self.alpha * float(norms.std(correction=0)) / mean if mean else self.tau0

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        self.delta_w = [
            float((p - old).norm()) for p, old in zip(self.params, self.before, strict=True)
        ]
