"""Elastic weight consolidation, told where tasks end, and its online form.

EWC (Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3): after each task the exact diagonal of the
Fisher information at the final weights is added up: per example, and in expectation over the
model's own predictions (not the labels, and not the square of a batch's mean gradient, which is off
by orders of magnitude). The penalty is the sum over past tasks t of λ/2 · F_t (w - w_t)²; λ is
`strength`.

Online EWC (Schwarz et al. 2018, arXiv 1805.06370, eq. 9): one Fisher F ← γF + F_t and one anchor,
the weights at the last boundary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.methods.base import Method
from benchmarks.methods.per_example import mean_power
from benchmarks.methods.quadratic import Quadratic
from benchmarks.streams import Batch

DEFAULT_STRENGTH = 100.0


class EWC(Method):
    """Quadratic penalties toward the weights at the end of each past task."""

    told = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        strength: float = DEFAULT_STRENGTH,
        fisher_examples: int = 10_000,
    ) -> None:
        super().__init__(model, optimizer)
        self.strength, self.fisher_examples = strength, fisher_examples
        # The sum of all penalties is again quadratic: Σ F_t and Σ F_t w_t hold its gradient.
        self.fisher = [torch.zeros_like(p) for p in self.params]
        self.pulled = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def before_step(self, batch: Batch) -> None:
        for p, fisher, pulled in zip(self.params, self.fisher, self.pulled, strict=True):
            assert p.grad is not None
            p.grad.add_(fisher * p - pulled, alpha=self.strength)

    def boundary(self, task: Batch) -> None:
        now = diagonal_fisher(self.model, task.first(self.fisher_examples))
        with torch.no_grad():
            for p, f, total, pulled in zip(self.params, now, self.fisher, self.pulled, strict=True):
                total.add_(f)
                pulled.addcmul_(f, p)


class OnlineEWC(Quadratic):
    """One penalty: a decaying Fisher around the weights at the last boundary."""

    told = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        strength: float = DEFAULT_STRENGTH,
        decay: float = 1.0,
        fisher_examples: int = 10_000,
    ) -> None:
        super().__init__(model, optimizer, strength=strength)
        self.decay, self.fisher_examples = decay, fisher_examples

    def boundary(self, task: Batch) -> None:
        now = diagonal_fisher(self.model, task.first(self.fisher_examples))
        for importance, fisher in zip(self.importance, now, strict=True):
            importance.mul_(self.decay).add_(fisher)
        self.recentre()


def diagonal_fisher(model: nn.Module, examples: Batch) -> list[Tensor]:
    """Mean over examples of Σ_c p_c · (∂ log p_c / ∂w)², in the order of model.parameters()."""

    def heads(logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits.log_softmax(1)
        return log_p, log_p.detach().exp()

    return mean_power(model, examples, heads, power=2)
