"""The ways of fine-tuning by name, each with its trials: the same number for all.

The first trial is the default. `tune` in `command.py` takes the best of them on validation text and
a seed that is not reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.finetune.methods.base import Loss, Method
from benchmarks.finetune.methods.peers import (
    EWC,
    L2SP,
    SPD,
    Half,
    LoRA,
    MoFO,
    PlainMuon,
    WiSE,
)
from benchmarks.finetune.methods.sal import (
    SALL,
    SALW,
    Factored,
    GateAlone,
    MuonLayer,
    NewText,
    OwnSamples,
    Shuffled,
    Uniform,
)

Trial = tuple[float, dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A way of fine-tuning, what it is for, and what is tried of its settings."""

    name: str
    kind: type[Method]
    trials: tuple[Trial, ...]
    needs: str | None = field(default=None)  # a package beside the benchmark's own
    control: bool = False

    @property
    def is_sal(self) -> bool:
        return issubclass(self.kind, SALW)


def _lrs(*rates: float, **options: Any) -> tuple[Trial, ...]:
    return tuple((rate, dict(options)) for rate in rates)


def _over(name: str, lr: float, values: tuple[float, ...], slow: float, at: float) -> Any:
    """Values of one option at one learning rate, and one of them at another."""
    return (*((lr, {name: value}) for value in values), (slow, {name: at}))


PLAIN = _lrs(1e-3, 5e-4, 2e-4, 1e-4, 2e-3)
PROTECTED = _over("protection", 1e-3, (0.1, 1.0, 10.0, 100.0), 3e-4, 1.0)
ROWS = (
    Row("adamw", Method, PLAIN),
    Row("l2-sp", L2SP, _over("strength", 1e-3, (0.01, 0.003, 0.03, 0.1), 3e-4, 0.01)),
    Row("spd", SPD, _over("strength", 1e-3, (1.0, 0.5, 2.0, 4.0), 3e-4, 1.0)),
    Row("mofo", MoFO, _over("fraction", 1e-3, (0.15, 0.05, 0.3, 0.6), 3e-4, 0.15)),
    Row("ewc", EWC, _over("strength", 1e-3, (100.0, 10.0, 1e3, 1e4), 3e-4, 100.0)),
    Row("half", Half, PLAIN),
    Row("lora", LoRA, (*_lrs(3e-3, 1e-3, 1e-2, rank=8), *_lrs(3e-3, rank=2), *_lrs(3e-3, rank=32)),
        needs="peft"),
    Row("wise-ft", WiSE, PLAIN),
    Row("muon", PlainMuon, _lrs(5e-3, 2e-3, 1e-3, 5e-4, 2e-4)),
    Row("sal-adamw", SALW, PROTECTED),
    Row("sal-adamw-own", OwnSamples, PROTECTED),
    Row("sal-adamw-new", NewText, PROTECTED),
    Row("sal-adamw-uniform", Uniform, PROTECTED),
    Row("sal-adamw-factored", Factored, PROTECTED),
    Row("sal-adamw-gate", GateAlone, PROTECTED),
    Row("sal-lion", SALL, _over("protection", 1e-4, (0.1, 1.0, 10.0, 100.0), 3e-5, 1.0)),
    Row("sal-muon", MuonLayer, _over("protection", 1e-3, (0.1, 1.0, 10.0, 100.0), 3e-4, 1.0)),
    Row("control-shuffled", Shuffled, PROTECTED, control=True),
    # Its learning rate comes from tuning: AdamW that goes as far from the start as SALAdamW.
    Row("control-distance", Method, PLAIN, control=True),
)  # fmt: skip
METHODS = {row.name: row for row in ROWS}

__all__ = ["METHODS", "ROWS", "Loss", "Method", "Row", "Trial"]
