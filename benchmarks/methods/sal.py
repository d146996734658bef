"""Rows for this package's own optimizers. Nothing is added here; all but one kind are task-free."""

from __future__ import annotations

import importlib
import inspect
import warnings
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from benchmarks.data.errors import UserError
from benchmarks.methods.base import Method
from benchmarks.streams import Batch, masked

CLASSES = {
    "adam": "SALAdam",
    "adamw": "SALAdamW",
    "sgd": "SALSGD",
    "lion": "SALLion",
    "muon": "SALMuon",
}
# What a base has here that is not its class's default: the plain base has the same.
FIXED: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "muon": {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0, "betas": (0.9, 0.999)},
}
# Arguments that the package keeps for one minor release, and that are not offered here.
DEPRECATED = ("granularity", "plasticity", "compile", "unit_update", "momenta")


class SAL(Method):
    """An optimizer of sal_optim as it comes."""

    def diagnostics(self) -> dict[str, float]:
        figures: dict[str, float] = self.optimizer.diagnostics()  # type: ignore[attr-defined]
        return figures

    def suppressed(self) -> dict[str, float]:
        return {
            name: float(self.optimizer.stability(p).mean())  # type: ignore[attr-defined]
            for name, p in self.model.named_parameters()
        }


class Declared(SAL):
    """One that is told where a task ends, as the penalties of the field are."""

    told = True

    def boundary(self, task: Batch) -> None:
        self.optimizer.consolidate()  # type: ignore[attr-defined]


class Hearing(SAL):
    """One that hears the loss of each step, as callbacks tell it: no boundaries."""

    def penalty(self, batch: Batch, logits: Tensor) -> None:
        loss = cross_entropy(masked(logits.detach(), batch.mask), batch.y)
        self.optimizer.tell(loss=loss)  # type: ignore[attr-defined]


def optimizer_class(base: str) -> type[Optimizer]:
    """SALAdam, SALSGD or SALLion; raises a UserError where sal_optim cannot be imported."""
    try:
        found: type[Optimizer] = getattr(importlib.import_module("sal_optim"), CLASSES[base])
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--methods: sal-{base} needs sal_optim.{CLASSES[base]} ({error}); "
            "install the package with `pip install -e .`, or name other methods"
        ) from error
    return found


def options(base: str) -> tuple[str, ...]:
    """Keyword arguments of the optimizer's own, beyond torch's."""
    parameters = inspect.signature(optimizer_class(base)).parameters
    return tuple(name for name in parameters if name not in ("params", "lr", *DEPRECATED))


def current_option(name: str, value: Any) -> tuple[str, Any]:
    """The present name and value of an option; an old one is said to be old."""
    if name != "granularity":
        return name, value
    found = "diagonal" if value in ("element", "tensor") else value
    warnings.warn(
        f"the option granularity={value} is now importance={found}; the old name goes on working "
        "until the next minor release",
        FutureWarning,
        stacklevel=2,
    )
    return "importance", found


def build(model: nn.Module, base: str, lr: float, kind: type[SAL] = SAL, **chosen: Any) -> SAL:
    """The method for `base`; what is not chosen stays at the package's default."""
    settings: dict[str, Any] = {"lr": lr, **FIXED.get(base, {}), **chosen}
    return kind(model, optimizer_class(base)(model.parameters(), **settings))
