"""Memory aware synapses (Aljundi et al. 2018, arXiv 1711.09601), told where tasks end.

Importance is how much the network's output moves with a weight, without labels: Ω is the mean over
examples of |∂‖F(x)‖² / ∂w| (eq. 3, with the squared norm of section 4.1), summed over tasks. The
penalty is λ · Σ Ω (w - w*)² (eq. 4); λ is `strength`, w* the weights at the last boundary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.methods.per_example import mean_power
from benchmarks.methods.quadratic import Quadratic
from benchmarks.streams import Batch


class MAS(Quadratic):
    """A quadratic penalty by the sensitivity of the outputs."""

    told = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        strength: float = 1.0,
        examples: int = 10_000,
    ) -> None:
        super().__init__(model, optimizer, strength=2 * strength)  # the penalty has no half
        self.examples = examples

    def boundary(self, task: Batch) -> None:
        now = sensitivity(self.model, task.first(self.examples))
        for importance, found in zip(self.importance, now, strict=True):
            importance.add_(found)
        self.recentre()


def sensitivity(model: nn.Module, examples: Batch) -> list[Tensor]:
    """Mean over examples of |∂ Σ_c logit_c² / ∂w|; logits outside the mask do not count."""

    def heads(logits: Tensor) -> tuple[Tensor, Tensor]:
        squares = torch.where(logits.isfinite(), logits, torch.zeros_like(logits)).square()
        total = squares.sum(1, keepdim=True)
        return total, torch.ones_like(total)

    return mean_power(model, examples, heads, power=1)
