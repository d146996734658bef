"""Synaptic intelligence (Zenke et al. 2017), told where tasks end.

Along the way each weight collects ω, the fall of the loss that its own movement brought about;
at a task's end Ω grows by ω / (Δ² + ξ), with Δ the weight's way over the task. The penalty is
c · Σ Ω (w - w*)², w* the weights at the last boundary; c is `strength`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.methods.base import Method
from benchmarks.streams import Batch

DEFAULT_STRENGTH = 1.0


class SI(Method):
    """Path-integral importance, and a quadratic penalty by it."""

    told = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        strength: float = DEFAULT_STRENGTH,
        xi: float = 0.1,
    ) -> None:
        super().__init__(model, optimizer)
        self.strength, self.xi = strength, xi
        self.path = [torch.zeros_like(p) for p in self.params]
        self.importance = [torch.zeros_like(p) for p in self.params]
        self.anchor = [p.detach().clone() for p in self.params]
        self.before: list[Tensor] = []
        self.task_grad: list[Tensor] = []

    @torch.no_grad()
    def before_step(self, batch: Batch) -> None:
        self.before, self.task_grad = [], []
        for p, importance, anchor in zip(self.params, self.importance, self.anchor, strict=True):
            assert p.grad is not None
            self.before.append(p.detach().clone())
            # The path counts the fall of the task's own loss, so without the penalty's gradient.
            self.task_grad.append(p.grad.clone())
            p.grad.addcmul_(importance, p - anchor, value=2 * self.strength)

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        for path, grad, p, old in zip(
            self.path, self.task_grad, self.params, self.before, strict=True
        ):
            path.addcmul_(grad, p - old, value=-1)

    @torch.no_grad()
    def boundary(self, task: Batch) -> None:
        for path, importance, anchor, p in zip(
            self.path, self.importance, self.anchor, self.params, strict=True
        ):
            way = (p - anchor).square_().add_(self.xi)
            # A negative importance would reward moving away without bound.
            importance.add_(path / way).clamp_(min=0)
            path.zero_()
            anchor.copy_(p)
