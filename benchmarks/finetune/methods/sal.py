"""sal_optim's own: importance from sequences of one source or another, then protected training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import sal_optim
from benchmarks.finetune.methods.base import WEIGHT_DECAY, Loss, Method
from benchmarks.methods.of_torch import Muon

Protected = sal_optim.SALOptimizer | sal_optim.CommunicationLayer


class SALW(Method):
    """SALAdamW that observes sequences of the old text."""

    observes: ClassVar[str | None] = "old"
    fixed: ClassVar[dict[str, Any]] = {}

    def prepare(self, model: nn.Module, **options: Any) -> nn.Module:
        self.settings = {**options, **self.fixed}
        return model

    def make(self, lr: float) -> Optimizer:
        return sal_optim.SALAdamW(self.params, lr=lr, weight_decay=WEIGHT_DECAY, **self.settings)

    @property
    def protection(self) -> Protected:
        assert isinstance(self.optimizer, sal_optim.SALOptimizer)
        return self.optimizer

    def observe(self, batches: Sequence[Tensor], loss: Loss) -> None:
        with self.protection.observe():
            for batch in batches:
                self.optimizer.zero_grad()
                loss(self.model, batch).backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
        self.protection.consolidate()

    def states(self) -> list[dict[str, Any]]:
        """What is kept of each parameter, before the first step too."""
        return [self.protection.controller.state_of(p) for p in self.params]

    def figures(self) -> dict[str, float]:
        return self.protection.diagnostics()


class OwnSamples(SALW):
    """No old data: it observes what the pretrained model writes itself."""

    observes: ClassVar[str | None] = "own"


class NewText(SALW):
    """No old data: it observes the new text before it trains on it."""

    observes: ClassVar[str | None] = "new"


class Diagonal(SALW):
    """Importance by element; with the anchor, 12 bytes a parameter."""

    fixed: ClassVar[dict[str, Any]] = {"importance": "diagonal"}


class Uniform(Diagonal):
    """No old data: every weight is as important, in the unit of the new text's gradient."""

    observes: ClassVar[str | None] = "new"

    def observe(self, batches: Sequence[Tensor], loss: Loss) -> None:
        super().observe(batches, loss)
        for state in self.states():
            state["evidence"].fill_(1.0)


class Shuffled(SALW):
    """Control: the importance of the old text, each tensor's in another order."""

    def observe(self, batches: Sequence[Tensor], loss: Loss) -> None:
        super().observe(batches, loss)
        draw = torch.Generator().manual_seed(0)
        for state in self.states():
            for name in ("evidence", "left_values", "right_values"):
                if name in state:
                    # The last value of a side is that of no direction.
                    values = state[name][: -1 if name != "evidence" else None]
                    order = torch.randperm(values.numel(), generator=draw)
                    values.copy_(values.flatten()[order].view_as(values))


class Factored(SALW):
    """Importance of rows and columns; with the anchor, 4.2 bytes a parameter."""

    fixed: ClassVar[dict[str, Any]] = {"importance": "factored"}


class GateAlone(SALW):
    """Factored and without an anchor: 0.2 bytes a parameter."""

    fixed: ClassVar[dict[str, Any]] = {"importance": "factored", "pull": 0.0}


class SALL(SALW):
    """SALLion."""

    def make(self, lr: float) -> Optimizer:
        return sal_optim.SALLion(self.params, lr=lr, **self.settings)


class MuonLayer(SALW):
    """A CommunicationLayer around torch.optim.Muon."""

    def make(self, lr: float) -> Optimizer:
        made = Muon(self.params, lr)
        self.layer = sal_optim.CommunicationLayer(made, **self.settings)
        return made

    @property
    def protection(self) -> Protected:
        return self.layer
