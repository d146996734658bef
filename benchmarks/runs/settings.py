"""The settings of one run, and where their defaults come from.

A Settings object names everything that decides a run's result, in plain values: it is what a
record is keyed by. What was tuned is read from tuned.json, or from another file
of its form, which says how it was made.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from benchmarks.data.errors import UserError
from benchmarks.methods.packages import base as base_called
from benchmarks.streams import Order

HERE = Path(__file__).resolve().parents[1]
TUNED = HERE / "data" / "tuned.json"

# Reports use the seeds 0 … N-1, tuning uses 1000 … 1000+N-1 and only validation data cut from
# train: nothing that is chosen has seen a seed or a test example that is reported.
TUNING_SEED = 1000

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
    net: str = "mlp"
    split: Split = "test"
    options: dict[str, Any] = field(default_factory=dict)
    # The norm that the gradient of all parameters is clipped to, and the rate of dropout.
    clip: float | None = None
    dropout: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON has it; what changes nothing is left out, so that it is in no key."""
        found = {**asdict(self), "hidden": list(self.hidden)}
        for name in ("clip", "dropout"):
            if not found[name]:
                del found[name]
        return found

    def shape(self) -> str:
        """What all methods of a comparison have in common, for titles."""
        said = [f"{self.tasks} tasks x {self.steps} steps of {self.batch}"]
        said += [f"clip {self.clip:g}"] if self.clip else []
        said += [f"dropout {self.dropout:g}"] if self.dropout else []
        return ", ".join(said)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Settings:
        """Back from JSON."""
        return cls(**{**plain, "hidden": tuple(plain["hidden"])})


NO_FILE = "none"


def moved(path: str) -> str:
    """Where a file of tuned settings is now that a command line names at its old place."""
    old = Path(path)
    new = TUNED.with_name(old.name)
    if old.exists() or old.resolve().parent != HERE or not new.is_file():
        return path
    warnings.warn(
        f"{path} has moved to {new.relative_to(HERE.parent)}; the old place goes on working until "
        "the next minor release",
        FutureWarning,
        stacklevel=2,
    )
    return str(new)


@lru_cache
def tuned(path: str = str(TUNED)) -> dict[str, Any]:
    """The contents of a file of tuned settings; empty for `none`, and where the own one is gone."""
    if path == NO_FILE or (path == str(TUNED) and not TUNED.is_file()):
        return {}
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text())
        if not all(isinstance(found.get(name, {}), dict) for name in ("lr", "options")):
            raise ValueError("lr and options must be objects")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"--tuned: {path!r} cannot be used ({error}); allowed: none, or a file that "
            "`python -m benchmarks tune` wrote"
        ) from error
    return found


def default_lr(data: str, base: str, path: str = str(TUNED)) -> float:
    """Learning rate of a base optimizer on a data set."""
    found = tuned(path).get("lr", {}).get(data, {}).get(base)
    return float(base_called(base).lr if found is None else found)


def tuned_options(data: str, stream: str, method: str, path: str = str(TUNED)) -> dict[str, Any]:
    """What tuning chose for this method here, `lr` included where it did; else empty."""
    options: dict[str, Any] = tuned(path).get("options", {})
    entry: dict[str, Any] = options.get(data, {}).get(stream, {}).get(method, {})
    return dict(entry)


def scale(data: str) -> Scale:
    """Default steps a task and batch of a data set."""
    return SCALES.get(data, DEFAULT_SCALE)
