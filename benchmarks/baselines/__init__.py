"""The methods by name. A new method is a file here and one row in METHODS.

A row says which base optimizer (and so which learning rate) a method has, and which options it
takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.baselines import sal
from benchmarks.baselines.base import Method
from benchmarks.baselines.ewc import EWC
from benchmarks.baselines.plain import BASES
from benchmarks.baselines.published_sal import PublishedSAL
from benchmarks.baselines.si import SI
from benchmarks.errors import UserError


@dataclass(frozen=True)
class Row:
    """One method. `options` maps the names it takes to a line about them."""

    name: str
    base: str
    summary: str
    kind: type[Method] = Method
    options: Mapping[str, str] | None = None

    @property
    def told(self) -> bool:
        return self.kind.told

    @property
    def is_sal(self) -> bool:
        return self.kind is sal.SAL

    def allowed(self) -> tuple[str, ...]:
        """Names of the options; those of our optimizers are read from their signature."""
        return sal.options(self.base) if self.is_sal else tuple(self.options or ())

    def build(self, model: nn.Module, lr: float, options: Mapping[str, Any]) -> Method:
        """The method around `model`, with its optimizer."""
        unknown = set(options) - set(self.allowed())
        if unknown:
            allowed = ", ".join(self.allowed()) or "none"
            raise UserError(
                f"--set: {self.name} has no option {sorted(unknown)}; allowed: {allowed}"
            )
        if self.is_sal:
            return sal.build(model, self.base, lr, **options)
        make: Callable[..., Method] = self.kind
        return make(model, BASES[self.base](model.parameters(), lr), **options)


PUBLISHED = {"tau0": "threshold's floor", "alpha": "its slope", "window": "steps it looks back"}
ROWS = (
    Row("adam", "adam", "torch.optim.Adam"),
    Row("sgd", "sgd", "torch.optim.SGD, momentum 0.9"),
    Row("lion", "lion", "Lion"),
    Row(
        "published-sal-adam",
        "adam",
        "the published SAL rule on Adam",
        PublishedSAL,
        PUBLISHED,
    ),
    Row(
        "published-sal-sgd",
        "sgd",
        "the published SAL rule on SGD",
        PublishedSAL,
        PUBLISHED,
    ),
    Row(
        "ewc",
        "adam",
        "elastic weight consolidation on Adam, exact Fisher",
        EWC,
        {"strength": "λ", "fisher_examples": "examples of a task that its Fisher is taken over"},
    ),
    Row(
        "si",
        "adam",
        "synaptic intelligence on Adam",
        SI,
        {"strength": "c", "xi": "damping ξ"},
    ),
    Row("sal-adam", "adam", "sal_optim.SALAdam", sal.SAL),
    Row("sal-sgd", "sgd", "sal_optim.SALSGD", sal.SAL),
    Row("sal-lion", "lion", "sal_optim.SALLion", sal.SAL),
)
METHODS = {row.name: row for row in ROWS}

__all__ = ["METHODS", "ROWS", "Method", "Row"]
