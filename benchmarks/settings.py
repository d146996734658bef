"""The settings of one run, and where their defaults come from.

A Settings object names everything that decides a run's result, in plain values: it is what a
record is keyed by. Learning rates and the tuned strengths of EWC and SI are read from tuned.json,
which says how it was made.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from benchmarks.streams import Order

TUNED = Path(__file__).parent / "tuned.json"

# Reports use the seeds 0 … N-1, tuning uses 1000 … 1000+N-1 and only validation data cut from
# train: nothing that is chosen has seen a seed or a test example that is reported.
TUNING_SEED = 1000

# Where tuned.json has no entry. EWC's and SI's own defaults stand in baselines/.
FALLBACK_LR = {"adam": 1e-3, "sgd": 0.05, "lion": 3e-4}

Split = Literal["test", "validation"]


@dataclass(frozen=True)
class Scale:
    """How long and how wide the batches of a data set are by default."""

    steps: int
    batch: int
    most_tasks: int = 10


# Ten permutations of 64 pixels saturate the small network: tuned and told, EWC and SI stay below
# 45% there, and what is compared is how a method fails. Five leave room.
SCALES = {"digits": Scale(200, 64, 5), "mnist": Scale(300, 128), "fashion-mnist": Scale(600, 128)}
DEFAULT_SCALE = SCALES["mnist"]


@dataclass(frozen=True)
class Settings:
    """One run: a method on a stream of a data set, with one seed."""

    data: str
    fingerprint: str
    stream: str
    method: str
    seed: int
    tasks: int
    steps: int
    batch: int
    hidden: tuple[int, ...]
    lr: float
    order: Order
    every: int
    split: Split = "test"
    options: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "hidden": list(self.hidden)}


@lru_cache
def tuned() -> dict[str, Any]:
    """The contents of tuned.json; empty where there is no such file."""
    found: dict[str, Any] = json.loads(TUNED.read_text()) if TUNED.is_file() else {}
    return found


def default_lr(data: str, base: str) -> float:
    """Learning rate of a base optimizer on a data set."""
    return float(tuned().get("lr", {}).get(data, {}).get(base, FALLBACK_LR[base]))


def tuned_options(data: str, stream: str, method: str) -> dict[str, Any]:
    """Options chosen by tuning for this method here; empty where it was not tuned."""
    entry: dict[str, Any] = tuned().get("options", {}).get(data, {}).get(stream, {}).get(method, {})
    return dict(entry)


def scale(data: str) -> Scale:
    """Default steps a task and batch of a data set."""
    return SCALES.get(data, DEFAULT_SCALE)
