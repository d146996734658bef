"""From accuracy matrices to the figures of a table.

R[t][j] is the accuracy on task j after training task t, both from 0. All figures are fractions;
tables print them in percent. Statistics over seeds are the mean and the sample SD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

Matrix = Sequence[Sequence[float]]

# A change counts as found if a consolidation comes within so many steps after it.
TOLERANCE = 20


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds (SD 0 for one seed)."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(fmean(values), stdev(values) if len(values) > 1 else 0.0)


def average(matrix: Matrix) -> float:
    """Mean accuracy over all tasks at the end."""
    return fmean(matrix[-1])


def worst(matrix: Matrix) -> float:
    """Accuracy on the task that fares worst at the end."""
    return min(matrix[-1])


def learned(matrix: Matrix) -> float:
    """Mean accuracy on each task just after it was trained."""
    return fmean(row[task] for task, row in enumerate(matrix))


def forgetting(matrix: Matrix) -> float:
    """Mean fall from a task's best accuracy since it was trained to its last (0 for one task)."""
    last = len(matrix) - 1
    falls = [max(matrix[t][j] for t in range(j, last)) - matrix[last][j] for j in range(last)]
    return fmean(falls) if falls else 0.0


def backward_transfer(matrix: Matrix) -> float:
    """Mean change from a task's accuracy when just learned to its last (0 for one task)."""
    last = len(matrix) - 1
    gains = [matrix[last][j] - matrix[j][j] for j in range(last)]
    return fmean(gains) if gains else 0.0


@dataclass(frozen=True)
class Detection:
    """How consolidations meet the true changes of task, in one run."""

    changes: int
    found: int
    false_alarms: int


def detection(
    consolidations: Sequence[int], changes: Sequence[Sequence[int]], tolerance: int = TOLERANCE
) -> Detection:
    """Changes with a consolidation in [first, last + tolerance]; false alarms lie in no window."""
    windows = [(first, last + tolerance) for first, last in changes]
    found = sum(any(low <= step <= high for step in consolidations) for low, high in windows)
    false = sum(not any(low <= step <= high for low, high in windows) for step in consolidations)
    return Detection(len(windows), found, false)


METRICS = {
    "average": average,
    "worst": worst,
    "learned": learned,
    "forgetting": forgetting,
    "bwt": backward_transfer,
}


@dataclass(frozen=True)
class Summary:
    """One method on one stream, over seeds."""

    method: str
    seeds: int
    scores: dict[str, Spread]
    ms_optimizer: Spread
    ms_training: Spread
    changes: float
    found: float
    false_alarms: float
    consolidations: float


def summarize(method: str, results: Sequence[dict[str, Any]]) -> Summary:
    """The figures of a table row from the results of all seeds."""
    hits = [detection(result["consolidations"], result["changes"]) for result in results]
    return Summary(
        method=method,
        seeds=len(results),
        scores={
            name: Spread.of([score(result["matrix"]) for result in results])
            for name, score in METRICS.items()
        },
        ms_optimizer=Spread.of([result["ms_optimizer"] for result in results]),
        ms_training=Spread.of([result["ms_training"] for result in results]),
        changes=fmean(hit.changes for hit in hits),
        found=fmean(hit.found for hit in hits),
        false_alarms=fmean(hit.false_alarms for hit in hits),
        consolidations=fmean(len(result["consolidations"]) for result in results),
    )
