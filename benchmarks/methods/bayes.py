"""Bayesian learning by a mean and a deviation for each weight, untold: BGD and MESU.

BGD (Zeno et al. 2018, arXiv 1803.10123, algorithm 1): with w = μ + σε, ε ~ N(0, 1), and g the
gradient of the batch's summed loss at w, averaged over samples of ε,

    μ ← μ - η σ² E[g]          σ ← σ √(1 + (σ E[gε] / 2)²) - σ² E[gε] / 2

MESU (Bonnet et al. 2025, arXiv 2504.13569) forgets back toward the prior N(0, σ₀²) over a window of
N updates, and takes the first order in σ:

    μ ← μ - σ² E[g] - σ² μ / (N σ₀²)      σ ← σ - σ² E[gε] / 2 + σ (σ₀² - σ²) / (2 N σ₀²)

The deviations stand in for learning rates; `lr` is η, for MESU a factor on E[g] and E[gε] alike.
Accuracies are those of the network at μ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from benchmarks.methods.base import Method
from benchmarks.streams import Batch, masked


class BGD(Optimizer):
    """Moves μ (the parameters) and σ (state "std") by the means in state "grad" and "grad_eps"."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr, "window": 0.0, "prior_std": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                self._move(group, p, state["std"], state["grad"], state["grad_eps"])
        return None

    def _move(
        self, group: dict[str, float], mean: Tensor, std: Tensor, grad: Tensor, grad_eps: Tensor
    ) -> None:
        mean.sub_(std.square() * grad, alpha=group["lr"])
        half = grad_eps * std / 2
        std.mul_((1 + half.square()).sqrt() - half)


class MESU(BGD):
    """BGD that forgets."""

    def _move(
        self, group: dict[str, float], mean: Tensor, std: Tensor, grad: Tensor, grad_eps: Tensor
    ) -> None:
        lr, prior, square = group["lr"], group["prior_std"] ** 2, std.square()
        share = 1 / (group["window"] * prior)
        mean.sub_(square * (lr * grad + share * mean))
        change = -lr * square * grad_eps / 2 + std * (prior - square) * share / 2
        # A first-order step may pass 0; the deviation stays positive, and moves by half at most.
        std.copy_(torch.clamp(std + change, min=std / 2))


class Sampled(Method):
    """Gives the optimizer its means over samples of the weights."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        std: float = 0.05,
        samples: int = 10,
        window: float = 1e5,
    ) -> None:
        super().__init__(model, optimizer)
        self.samples = samples
        for group in optimizer.param_groups:
            group.update(window=window, prior_std=std)
        for p in self.params:
            self.optimizer.state[p] = {
                "std": torch.full_like(p, std),
                "grad": torch.zeros_like(p),
                "grad_eps": torch.zeros_like(p),
            }

    def before_step(self, batch: Batch) -> None:
        """The gradient at μ that the runner brought is not used: g belongs to sampled weights."""
        states = [self.optimizer.state[p] for p in self.params]
        means = [p.detach().clone() for p in self.params]
        for state in states:
            state["grad"].zero_()
            state["grad_eps"].zero_()
        for _ in range(self.samples):
            noises = [torch.randn_like(p) for p in self.params]
            with torch.no_grad():
                for p, mean, state, eps in zip(self.params, means, states, noises, strict=True):
                    p.copy_(mean + state["std"] * eps)
            logits = masked(self.model(batch.x), batch.mask)
            loss = cross_entropy(logits, batch.y, reduction="sum") / self.samples
            for state, eps, g in zip(
                states, noises, torch.autograd.grad(loss, self.params), strict=True
            ):
                state["grad"].add_(g)
                state["grad_eps"].addcmul_(g, eps)
        with torch.no_grad():
            for p, mean in zip(self.params, means, strict=True):
                p.copy_(mean)
