"""sal_optim's own: evidence from sequences of one source or another, then protected training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import sal_optim
from benchmarks.finetune.methods.base import WEIGHT_DECAY, Loss, Method
from benchmarks.methods.of_torch import Muon
from sal_optim.protection import Protection


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
    def protection(self) -> Protection:
        assert isinstance(self.optimizer, Protection)
        return self.optimizer

    def observe(self, batches: Sequence[Tensor], loss: Loss) -> None:
        with self.protection.observe():
            for batch in batches:
                self.optimizer.zero_grad()
                loss(self.model, batch).backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
        self.protection.consolidate()

    def figures(self) -> dict[str, float]:
        return self.protection.diagnostics()


class OwnSamples(SALW):
    """No old data: it observes what the pretrained model writes itself."""

    observes: ClassVar[str | None] = "own"


class NewText(SALW):
    """No old data: it observes the new text before it trains on it."""

    observes: ClassVar[str | None] = "new"


class Uniform(SALW):
    """No old data: every weight has the same evidence, in the unit of the new text's gradient."""

    observes: ClassVar[str | None] = "new"

    def observe(self, batches: Sequence[Tensor], loss: Loss) -> None:
        super().observe(batches, loss)
        for state in self.optimizer.state.values():
            state["evidence"].fill_(1.0)


class Shuffled(SALW):
    """Control: the evidence of the old text, each tensor's in another order."""

    def observe(self, batches: Sequence[Tensor], loss: Loss) -> None:
        super().observe(batches, loss)
        draw = torch.Generator().manual_seed(0)
        for state in self.optimizer.state.values():
            evidence = state["evidence"]
            order = torch.randperm(evidence.numel(), generator=draw)
            evidence.copy_(evidence.flatten()[order].view_as(evidence))


class Factored(SALW):
    """Evidence in rows and columns; with the anchor, 4.2 bytes a parameter."""

    fixed: ClassVar[dict[str, Any]] = {"granularity": "factored"}


class GateAlone(SALW):
    """Factored and without an anchor: 0.2 bytes a parameter."""

    fixed: ClassVar[dict[str, Any]] = {"granularity": "factored", "pull": 0.0}


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
    def protection(self) -> Protection:
        return self.layer
