"""The ways of fine-tuning by name, each with its trials: the same number for all.

The first trial is the default. `finetune --tune` takes the best of them on validation text and
a seed that is not reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.finetune.methods.base import Loss, Method
from benchmarks.finetune.methods.directions import (
    Directions,
    DirectionsNew,
    Restored,
    RestoredDiagonal,
    RestoredLean,
    RestoredNew,
    RestoredOwn,
    RestoredRandom,
)
from benchmarks.finetune.methods.peers import (
    EWC,
    FAPM,
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
    Diagonal,
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
    like: str | None = None  # whose chosen setting it takes, without trials of its own
    control: bool = False

    @property
    def is_sal(self) -> bool:
        return issubclass(self.kind, SALW)


def _lrs(*rates: float, **options: Any) -> tuple[Trial, ...]:
    return tuple((rate, dict(options)) for rate in rates)


def _over(name: str, lr: float, values: tuple[float, ...]) -> tuple[Trial, ...]:
    """Values of one option at one learning rate."""
    return tuple((lr, {name: value}) for value in values)


def _each(*trials: tuple[float, dict[str, Any]]) -> tuple[Trial, ...]:
    return trials


PLAIN = _lrs(5e-4, 1e-3, 2.5e-4, 1.5e-4)
# A run of which a part is given back may learn faster.
GIVEN_BACK = _lrs(1e-3, 2e-3, 5e-4, 4e-3)
# The default, then more pull, a faster run, and a firmer gate.
PROTECTED = _each(
    (1e-3, {}),
    (1e-3, {"protection": 1.0, "pull": 100.0}),
    (2e-3, {"protection": 10.0, "pull": 30.0}),
    (3e-3, {"protection": 100.0, "pull": 3.0}),
)
# What the new text needs is held too where it is what was observed, so that less of a pull has to
# do.
ALONG = tuple(
    (lr, {"protection": 1.0, "pull": pull})
    for lr, pull in ((2e-3, 20.0), (4e-3, 50.0), (2e-3, 40.0), (1e-3, 10.0))
)
ALONG_NEW = tuple((lr, {**options, "pull": options["pull"] / 2}) for lr, options in ALONG)
# Three that were pulled, and what is next to AdamW's own run: without protection nothing would be
# gathered.
RESTORED = _each(
    (4e-3, {"protection": 0.1, "pull": 100.0}),
    (4e-3, {"protection": 1.0, "pull": 30.0}),
    (4e-3, {"protection": 1.0, "pull": 50.0}),
    (1e-3, {"protection": 1e-6}),
)
GATED = _each(
    (1e-3, {"protection": 10.0}),
    (2e-3, {"protection": 10.0}),
    (1e-3, {"protection": 100.0}),
    (2e-3, {"protection": 100.0}),
)
LION = tuple((lr / 10, options) for lr, options in PROTECTED)
ADAPTERS = (*_lrs(3e-3, 1e-3, 1e-2, rank=8), *_lrs(3e-3, rank=2))
ROWS = (
    Row("adamw", Method, PLAIN),
    Row("l2-sp", L2SP, (*_over("strength", 1e-3, (0.1, 0.2, 0.3)), (2.5e-4, {"strength": 0.1}))),
    Row("spd", SPD, (*_over("strength", 5e-4, (1.0, 4.0)), *_lrs(1e-3, 2.5e-4, strength=1.0))),
    Row("mofo", MoFO, (*_over("fraction", 1e-3, (0.15, 0.05)), (5e-4, {"fraction": 0.15}),
                       (2e-3, {"fraction": 0.05}))),
    Row("ewc", EWC, (*_over("strength", 1e-3, (1e5, 6e4, 3e4)), (2e-3, {"strength": 1e5}))),
    Row("half", Half, PLAIN),
    Row("lora", LoRA, ADAPTERS, needs="peft"),
    Row("wise-ft", WiSE, GIVEN_BACK),
    Row("fapm", FAPM, GIVEN_BACK),
    Row("sal-adamw", SALW, PROTECTED),
    Row("sal-kronecker", Directions, ALONG),
    Row("sal-kronecker-new", DirectionsNew, ALONG_NEW),
    Row("sal-restore", Restored, RESTORED),
    Row("sal-restore-lean", RestoredLean, RESTORED, like="sal-restore"),
    Row("sal-restore-new", RestoredNew, RESTORED),
    Row("sal-restore-own", RestoredOwn, RESTORED, like="sal-restore"),
    Row("sal-adamw-own", OwnSamples, PROTECTED, like="sal-adamw"),
    Row("sal-adamw-new", NewText, PROTECTED),
    Row("sal-adamw-uniform", Uniform, PROTECTED),
    Row("sal-adamw-diagonal", Diagonal, PROTECTED, like="sal-adamw"),
    Row("sal-adamw-factored", Factored, PROTECTED, like="sal-adamw"),
    Row("sal-adamw-gate", GateAlone, GATED),
    Row("sal-lion", SALL, LION),
    Row("muon", PlainMuon, PLAIN),
    Row("sal-muon", MuonLayer, PROTECTED),
    Row("control-restore-diagonal", RestoredDiagonal, RESTORED, like="sal-restore", control=True),
    Row("control-restore-random", RestoredRandom, RESTORED, like="sal-restore", control=True),
    Row("control-shuffled", Shuffled, PROTECTED, like="sal-adamw", control=True),
    # Its learning rate comes from tuning: AdamW that goes as far from the start as SALAdamW.
    Row("control-distance", Method, PLAIN, like="adamw", control=True),
)  # fmt: skip
METHODS = {row.name: row for row in ROWS}

__all__ = ["METHODS", "ROWS", "Loss", "Method", "Row", "Trial"]
