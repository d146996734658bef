"""The common form of many methods: one quadratic penalty, strength/2 · Σ Ω (w - w*)².

What Ω is, and when w* moves, is each method's own. L2 is the plainest: Ω = 1.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.methods.base import Method
from benchmarks.streams import Batch


class Quadratic(Method):
    """A penalty by `importance` around `anchor`; its gradient is added before each step."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, strength: float) -> None:
        super().__init__(model, optimizer)
        self.strength = strength
        self.importance = [torch.zeros_like(p) for p in self.params]
        self.anchor = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def before_step(self, batch: Batch) -> None:
        for p, importance, anchor in zip(self.params, self.importance, self.anchor, strict=True):
            assert p.grad is not None
            p.grad.addcmul_(importance, p - anchor, value=self.strength)

    @torch.no_grad()
    def recentre(self) -> None:
        """The anchor becomes the weights of now."""
        for anchor, p in zip(self.anchor, self.params, strict=True):
            anchor.copy_(p)


class L2(Quadratic):
    """Every weight is held alike to where it was at the last boundary.

    The control of Kirkpatrick et al. 2017 (figure 2A); with one anchor as in Hsu et al. 2018
    (arXiv 1810.12488), whose figures for split MNIST are the published ones.
    """

    told = True

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, strength: float = 0.1) -> None:
        super().__init__(model, optimizer, strength=strength)

    def boundary(self, task: Batch) -> None:
        for importance in self.importance:
            importance.fill_(1.0)
        self.recentre()
