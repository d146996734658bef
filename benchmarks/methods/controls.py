"""Controls that could prove SAL wrong: if one does as well, its mechanism is not what helps.

Twins train a second network by SALAdam itself on the same batches and take one number a step from
it; the network that is measured is plain Adam's, its update scaled by that number:

- uniform: SAL's mean gate. All weights slow down as SAL slows them on average.
- matched: such that ‖Δw‖ is SAL's. The learning rate that SAL amounts to.

Shuffled is SALAdam, but its evidence sits on the wrong elements: after each consolidation the
evidence of each tensor is permuted, by one permutation for the whole run. Gates and pulls have
SAL's distribution, tensor by tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from benchmarks.methods.base import Method
from benchmarks.methods.sal import SAL, build
from benchmarks.streams import Batch, masked


def distance(now: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """‖now - before‖ over all tensors."""
    return float(sum((a - b).square().sum() for a, b in zip(now, before, strict=True)) ** 0.5)


class Twin(Method):
    """Adam, its update scaled by a number that a SALAdam beside it supplies."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, **options: Any) -> None:
        super().__init__(model, optimizer)
        lr = optimizer.param_groups[0]["lr"]
        self.twin = build(copy.deepcopy(model), "adam", lr, **options)
        self.before: list[Tensor] = []
        self.twin_before: list[Tensor] = []

    def before_step(self, batch: Batch) -> None:
        twin = self.twin
        logits = masked(twin.model(batch.x), batch.mask)
        twin.optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(logits, batch.y))
        self.before = [p.detach().clone() for p in self.params]
        self.twin_before = [p.detach().clone() for p in twin.params]
        twin.optimizer.step()

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        scale = self.scale()
        for p, old in zip(self.params, self.before, strict=True):
            p.copy_(torch.lerp(old, p, scale))

    def scale(self) -> float:
        """What the update is multiplied by."""
        raise NotImplementedError


class Uniform(Twin):
    """Every element's update times SAL's mean gate."""

    def scale(self) -> float:
        return self.twin.diagnostics()["mean_gate"]


class Matched(Twin):
    """The update as long as SAL's."""

    def scale(self) -> float:
        own = distance(self.params, self.before)
        return distance(self.twin.params, self.twin_before) / own if own else 0.0


class Shuffled(SAL):
    """SAL with its evidence on the wrong elements."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.places = [torch.randperm(p.numel()) for p in self.params]
        self.truth = [torch.zeros_like(p) for p in self.params]
        self.shown = [torch.zeros_like(p) for p in self.params]
        self.seen = 0.0

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        threshold = self.optimizer.param_groups[0]["threshold"]
        if threshold["consolidations"] == self.seen:
            return
        self.seen = threshold["consolidations"]
        retention = self.optimizer.param_groups[0]["retention"] * threshold["room"]
        for p, places, truth, shown in zip(
            self.params, self.places, self.truth, self.shown, strict=True
        ):
            evidence = self.optimizer.state[p]["evidence"]
            # The consolidation added to what was shown; what it added belongs to the truth.
            truth.mul_(retention).add_(evidence - retention * shown)
            shown.copy_(truth.flatten()[places].view_as(truth))
            evidence.copy_(shown)
