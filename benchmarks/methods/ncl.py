"""Natural continual learning, told where tasks end: Kao et al. 2021 (arXiv 2106.08085).

The posterior over the weights W of a layer, (m, n) with the bias as last column, has mean μ and
precision Λ ≈ A ⊗ G. A step follows the gradient in the geometry of that posterior:
ΔW = -lr · p · [G⁻¹ ∇ A⁻¹ + (W - μ)], ∇ the gradient of the mean loss. At the start Λ = p I and
μ = 0, so that the first task is trained by the base optimizer with a weight decay of p. At a
boundary the Fisher factors of the task (kfac.py) are added to Λ, and μ becomes W.

A sum of two Kronecker products is replaced by the one of summed factors with the traces balanced,
B_A + C_A/π and B_G + π C_G, π² = tr(B_G) tr(C_A) / (tr(C_G) tr(B_A)).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.methods.base import Method
from benchmarks.methods.kfac import joined, kronecker_fisher, linear_layers
from benchmarks.streams import Batch

Factors = tuple[Tensor, Tensor]


class NCL(Method):
    """Gradients in the geometry of the past's posterior, and a pull to its mean."""

    told = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        prior: float = 1e-2,
        fisher_examples: int = 10_000,
    ) -> None:
        super().__init__(model, optimizer)
        self.prior, self.fisher_examples = prior, fisher_examples
        self.layers = linear_layers(model)
        self.means = [torch.zeros_like(joined(layer)) for layer in self.layers]
        side = prior**0.5
        self.factors = [
            (side * torch.eye(mean.shape[1]).to(mean), side * torch.eye(mean.shape[0]).to(mean))
            for mean in self.means
        ]
        self.inverses: list[Factors] = []

    @torch.no_grad()
    def before_step(self, batch: Batch) -> None:
        for place, layer in enumerate(self.layers):
            weight, bias = layer.weight.grad, layer.bias.grad if layer.bias is not None else None
            assert weight is not None
            grad = weight if bias is None else torch.cat([weight, bias[:, None]], 1)
            if self.inverses:
                a, g = self.inverses[place]
                grad = self.prior * (g @ grad @ a)
            grad = grad.add(joined(layer) - self.means[place], alpha=self.prior)
            weight.copy_(grad[:, : layer.in_features])
            if bias is not None:
                bias.copy_(grad[:, -1])

    def boundary(self, task: Batch) -> None:
        found = kronecker_fisher(self.model, task.first(self.fisher_examples))
        self.factors = [nearest_sum(old, new) for old, new in zip(self.factors, found, strict=True)]
        self.inverses = [(torch.linalg.inv(a), torch.linalg.inv(g)) for a, g in self.factors]
        self.means = [joined(layer) for layer in self.layers]
        self.optimizer.state.clear()


def nearest_sum(first: Factors, second: Factors) -> Factors:
    """Factors (A, G) whose product stands for the sum of two; exact where the second is 0."""
    (a, g), (more_a, more_g) = first, second
    product = more_a.trace() * more_g.trace()
    if product <= 0:
        return first
    scale = ((g.trace() * more_a.trace()) / (more_g.trace() * a.trace())).sqrt()
    return a + more_a / scale, g + scale * more_g
