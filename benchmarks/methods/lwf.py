"""Learning without forgetting (Li and Hoiem 2017, arXiv 1606.09282), told where tasks end.

The network as it was at the last boundary answers each new batch, and the present network is held
to those answers: cross-entropy between softened outputs (eqs. 2 and 3, temperature T = 2), times T²
so that its gradient keeps its size (Hinton et al. 2015). Each past task's head is distilled by
itself where tasks have heads; otherwise all classes seen so far are. `strength` is λ_o of fig. 3.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.methods.base import Method
from benchmarks.streams import Batch, masked


class LwF(Method):
    """Distillation from the network at the last boundary, on the data of the present."""

    told = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        strength: float = 1.0,
        temperature: float = 2.0,
    ) -> None:
        super().__init__(model, optimizer)
        self.strength, self.temperature = strength, temperature
        self.old: nn.Module | None = None
        self.heads: list[Tensor] = []

    def penalty(self, batch: Batch, logits: Tensor) -> Tensor | None:
        if self.old is None:
            return None
        with torch.no_grad():
            before = self.old(batch.x)
        losses = [self._distance(masked(before, h), masked(logits, h)) for h in self.heads]
        return self.strength * self.temperature**2 * torch.stack(losses).mean()

    def _distance(self, before: Tensor, now: Tensor) -> Tensor:
        p = (before / self.temperature).softmax(1)
        log_q = (now / self.temperature).log_softmax(1)
        return -torch.where(p > 0, p * log_q, torch.zeros_like(p)).sum(1).mean()

    @torch.no_grad()
    def boundary(self, task: Batch) -> None:
        self.old = copy.deepcopy(self.model).requires_grad_(False)
        if task.mask is not None:
            self.heads.append(task.mask)
            return
        outputs = self.old(task.x[:1]).shape[1]
        seen = torch.zeros(outputs, dtype=torch.bool)
        seen[task.y] = True
        # Without heads there is one, over all classes seen.
        self.heads = [seen | self.heads[0] if self.heads else seen]
