"""The optimizers that harnesses are given, by the names of our own suite.

`sal-NAME` is the family's class, `NAME` its base; both have the same learning rate. A harness's own
methods are not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from benchmarks.methods.sal import optimizer_class

PLAIN: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
SAL = tuple(f"sal-{name}" for name in PLAIN)
OURS = (*PLAIN, *SAL)


def optimizer(
    name: str, params: Iterable[Any], lr: float, settings: Mapping[str, Any] | None = None
) -> Optimizer:
    """An optimizer around `params`, with `settings` beyond its learning rate."""
    base = name.removeprefix("sal-")
    kind: Any = optimizer_class(base) if name in SAL else PLAIN[base]
    made: Optimizer = kind(params, lr=lr, **(settings or {}))
    return made


def figures(made: Optimizer) -> dict[str, float]:
    """`diagnostics()` of one of the family as finite numbers; empty for others."""
    if not hasattr(made, "diagnostics"):
        return {}
    found = {name: float(value) for name, value in made.diagnostics().items()}
    return {name: value for name, value in found.items() if abs(value) < float("inf")}
