"""Ways to give back a part of what SALAdamW has learned, after the last step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.finetune.methods.base import Loss
from benchmarks.finetune.methods.sal import SALW, Shuffled
from sal_optim.evidence import GRANULARITIES


class SALWiSE(SALW):
    """SALAdamW, then WiSE-FT's average."""

    averages: ClassVar[bool] = True


class MergeSteps(SALW):
    """SALAdamW, and at the end most elements go back whole, by what its steps have gathered.

    P, the squared gradients of the new text, over Omega, those of the old, is what an element's
    move buys for its price. A hard form of Fisher merging (Matena and Raffel 2022,
    arXiv 2111.09832), whose weights P/(P + lambda Omega) it rounds to 0 or 1.
    """

    averages: ClassVar[bool] = True

    @torch.no_grad()
    def give_back(self, start: Sequence[Tensor], share: float) -> None:
        scores = [self.score(param) for param in self.params]
        flat = torch.cat([score.flatten() for score in scores])
        count = round(share * flat.numel())
        if count == flat.numel():
            return
        bar = flat.kthvalue(flat.numel() - count + 1).values if count else math.nan
        for param, first, score in zip(self.params, start, scores, strict=True):
            param.copy_(torch.where((score >= bar) & (score > 0), param, first))

    def score(self, param: Tensor) -> Tensor:
        """P over Omega, in the shape of the parameter; 0 where neither text needs it."""
        state = self.optimizer.state[param]
        rule = GRANULARITIES[self.optimizer.param_groups[0]["granularity"]]
        new, old = (
            rule.evidence(
                {n.replace("pending", "evidence"): [t] for n, t in state.items() if kind in n},
                [param],
            )[0].double()
            for kind in ("pending", "evidence")
        )
        return torch.where(new > 0, new / old, 0.0)


class Merge(MergeSteps):
    """The same, with sequences of the new text observed after the last step as well."""

    reviews: ClassVar[bool] = True

    def review(self, sequences: Tensor, loss: Loss) -> None:
        with self.protection.observe():
            for row in sequences:
                self.optimizer.zero_grad()
                loss(self.model, row[None]).backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()


class MergeOwn(Merge):
    """No old data: what the pretrained model writes itself stands for it."""

    observes: ClassVar[str | None] = "own"


class MergeNew(Merge):
    """No old data: the new text, as the pretrained model sees it, stands for the old."""

    observes: ClassVar[str | None] = "new"


class MergeFactored(Merge):
    """Evidence in rows and columns; with the anchor, 4.2 bytes a parameter."""

    fixed: ClassVar[dict[str, Any]] = {"granularity": "factored"}


class MergeShuffled(Merge, Shuffled):
    """Control: by evidence in another order inside each tensor."""


class MergeRandom(Merge):
    """Control: the same number of elements goes back, drawn by chance."""

    @torch.no_grad()
    def give_back(self, start: Sequence[Tensor], share: float) -> None:
        draw = torch.Generator().manual_seed(0)
        for param, first in zip(self.params, start, strict=True):
            kept = torch.rand(param.shape, generator=draw) < share
            param.copy_(torch.where(kept, param, first))
