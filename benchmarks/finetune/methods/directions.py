"""SALAdamW with more directions, and what its `restore()` gives back after the last step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.finetune.methods.base import Loss
from benchmarks.finetune.methods.sal import SALW


def strength_of(share: float) -> float:
    """A strength of `restore()` in the place of a share of the change that is kept, in (0, 1]."""
    return (1 / share - 1) ** 3


class Directions(SALW):
    """Pulled to the pretrained weights, while it trains, along what the old text needs."""

    fixed: ClassVar[dict[str, Any]] = {"importance": "kronecker", "rank": 64}


class DirectionsNew(Directions):
    """No old data: the new text, as the pretrained model sees it, stands for the old."""

    observes: ClassVar[str | None] = "new"


class Restored(Directions):
    """The same, and after the last step drawn back: the smaller the share, the further.

    Without a clock, which would count the new text in and move anchors to it.
    """

    averages: ClassVar[bool] = True
    fixed: ClassVar[dict[str, Any]] = {**Directions.fixed, "consolidate_every": None}

    @torch.no_grad()
    def give_back(self, start: Sequence[Tensor], share: float) -> None:
        if share == 0.0:
            super().give_back(start, share)
        else:
            self.protection.restore(strength_of(share))


class RestoredLean(Restored):
    """In 3.6 bytes a parameter: half the directions, in bfloat16, the anchor too."""

    fixed: ClassVar[dict[str, Any]] = {
        **Restored.fixed,
        "rank": 32,
        "state_dtype": torch.bfloat16,
    }


class RestoredNew(Restored):
    """No old data: the new text before training."""

    observes: ClassVar[str | None] = "new"


class RestoredOwn(Restored):
    """No old data: what the pretrained model writes itself."""

    observes: ClassVar[str | None] = "own"


class RestoredDiagonal(Restored):
    """Control: by importance of single elements."""

    fixed: ClassVar[dict[str, Any]] = {**Restored.fixed, "importance": "diagonal"}


class RestoredRandom(Restored):
    """Control: the same importance along directions drawn by chance."""

    def observe(self, batches: Sequence[Tensor], loss: Loss) -> None:
        super().observe(batches, loss)
        draw = torch.Generator().manual_seed(0)
        for state in self.states():
            for name in ("left_basis", "right_basis"):
                if name in state:
                    drawn = torch.randn(state[name].shape, generator=draw)
                    state[name].copy_(torch.linalg.qr(drawn).Q)
