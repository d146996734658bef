"""torch's optimizers as bases: all but Adam and SGD with momentum, which every method builds on.

They are apart from the bases that are methods of their own, so that a record of a torch optimizer
does not depend on these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class Base:
    """How an optimizer is made of parameters and a learning rate."""

    make: Callable[[Any, float], Optimizer]
    lr: float


class Muon(Optimizer):
    """torch.optim.Muon for matrices and Adam for the rest, at one learning rate.

    Muon's updates are scaled to the size of Adam's (its `match_rms_adamw`), so that one rate fits
    both.
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})
        every = [p for group in self.param_groups for p in group["params"]]
        matrices = [p for p in every if p.dim() == 2]
        others = [p for p in every if p.dim() != 2]
        self.parts: list[Optimizer] = []
        if matrices:
            self.parts.append(
                torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            )
        if others:
            self.parts.append(torch.optim.Adam(others, lr=lr))
        for part in self.parts:
            self.state.update(part.state)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            part.step()
            self.state.update(part.state)
        return None


def _torch(name: str, **settings: Any) -> Callable[[Any, float], Optimizer]:
    kind: Callable[..., Optimizer] = getattr(torch.optim, name)

    def make(params: Any, lr: float) -> Optimizer:
        return kind(params, lr=lr, **settings)

    return make


TORCH: dict[str, Base] = {
    "adamw": Base(_torch("AdamW"), 1e-3),
    "plain-sgd": Base(_torch("SGD"), 0.1),
    "nadam": Base(_torch("NAdam"), 1e-3),
    "radam": Base(_torch("RAdam"), 1e-3),
    "adamax": Base(_torch("Adamax"), 2e-3),
    "rmsprop": Base(_torch("RMSprop"), 1e-3),
    "adagrad": Base(_torch("Adagrad"), 1e-2),
    "adadelta": Base(_torch("Adadelta"), 1.0),
    "adafactor": Base(_torch("Adafactor", weight_decay=0.0), 1e-2),
    "asgd": Base(_torch("ASGD"), 0.1),
    "muon": Base(Muon, 5e-3),
}
