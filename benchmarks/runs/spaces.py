"""What tuning may choose, method by method: ranges on a log scale, and where it starts.

Every method has its learning rate; beyond it one or two options, those that its authors tune. SAL
has its learning rate alone: what else it has is to be right as it comes. The start is the default
that is used without tuning: it is every method's first trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

from benchmarks.methods import Row
from benchmarks.methods.bases import BASES

RATE = "lr"
# How far from a base optimizer's default its learning rate is searched, either way.
RATE_FACTOR = 10.0
# A best value within this share of a range's length on the log scale is at its edge.
EDGE = 0.05


@dataclass(frozen=True)
class Range:
    """low to high, log-uniform; `whole` numbers where a method counts steps."""

    low: float
    high: float
    start: float
    whole: bool = False

    def at_edge(self, value: float) -> bool:
        """Whether a better value may lie outside."""
        place = log(value / self.low) / log(self.high / self.low)
        return min(place, 1 - place) < EDGE


FISHER_STRENGTH = Range(1.0, 1e8, 100.0)
PATH_STRENGTH = Range(0.1, 1e5, 1.0)
STEPS = Range(20, 2000, 200, whole=True)
NOISE, UTILITY_DECAY = Range(1e-4, 1.0, 1e-3), Range(0.9, 0.9999, 0.999)
DEVIATION = Range(0.005, 0.2, 0.05)

OPTIONS: dict[str, Mapping[str, Range]] = {
    "ewc": {"strength": FISHER_STRENGTH},
    "online-ewc": {"strength": FISHER_STRENGTH},
    "kfac-ewc": {"strength": Range(0.1, 1e6, 10.0)},
    "si": {"strength": PATH_STRENGTH},
    "mas": {"strength": Range(1e-3, 1e3, 1.0)},
    "owm": {"damping": Range(1e-4, 10.0, 1e-1)},
    "gpm": {"first_threshold": Range(0.7, 0.999, 0.95), "threshold": Range(0.7, 0.9999, 0.99)},
    "ncl": {"prior": Range(1e-8, 1.0, 1e-2)},
    "lwf": {"strength": Range(0.05, 20.0, 1.0)},
    "l2": {"strength": Range(1e-4, 10.0, 0.1)},
    "lr-decay": {"factor": Range(0.1, 1.0, 0.5)},
    "streaming-ewc": {"strength": FISHER_STRENGTH, "every": STEPS},
    "streaming-si": {"strength": PATH_STRENGTH, "every": STEPS},
    "ar1": {"max_importance": Range(1e-5, 10.0, 1e-3), "every": STEPS},
    "upgd": {"noise": NOISE, "beta_utility": UTILITY_DECAY},
    "adaupgd": {"noise": NOISE, "beta_utility": UTILITY_DECAY},
    "bgd": {"std": DEVIATION},
    "mesu": {"std": DEVIATION, "window": Range(1e3, 1e7, 1e5)},
}


def space(row: Row) -> dict[str, Range]:
    """The ranges of a method, its learning rate first."""
    rate = BASES[row.base].lr
    found = {RATE: Range(rate / RATE_FACTOR, rate * RATE_FACTOR, rate)}
    return {**found, **OPTIONS.get(row.name, {})}
