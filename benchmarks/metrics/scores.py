"""From the results of runs to the figures of a table.

R[t][j] is the accuracy on task j after training task t, both from 0. All figures are fractions;
tables print them in percent. Statistics over seeds are in spread.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.metrics.spread import Spread

Matrix = Sequence[Sequence[float]]
Result = Mapping[str, Any]

# A change counts as found if a consolidation comes within so many steps after it.
TOLERANCE = 20


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


def forward_transfer(matrix: Matrix, initial: Sequence[float]) -> float:
    """Mean of a task's accuracy just before it is trained, less the untrained network's.

    Lopez-Paz and Ranzato 2017 (arXiv 1706.08840), section 2; 0 for one task.
    """
    gains = [matrix[j - 1][j] - initial[j] for j in range(1, len(matrix))]
    return fmean(gains) if gains else 0.0


@dataclass(frozen=True)
class Gap:
    """What the looks after switches show: `lowest` accuracy, and the `area` that is made good."""

    lowest: float
    area: float


def stability_gap(result: Result) -> Gap:
    """The transient fall of old tasks after switches (De Lange et al. 2023, arXiv 2205.13452).

    `lowest` is their min-ACC: the mean over tasks, but the last, of the lowest accuracy seen since
    the task ended. `area`: at each switch, by how much the mean accuracy on the tasks before it lay
    below both where it was and where it came to at the end of the new task, averaged over the
    steps of that task; then the mean over switches. A fall that lasts is no gap: it is forgetting.
    """
    steps, curves = result["curve_steps"], result["curves"]
    ends = [*[last for _, last in result["changes"]], steps[-1]]
    lows, areas = [], []
    for task, end in enumerate(ends[:-1]):
        lows.append(min(row[task] for step, row in zip(steps, curves, strict=True) if step >= end))
        until = ends[task + 1]
        seen = [
            (step, fmean(row[: task + 1]))
            for step, row in zip(steps, curves, strict=True)
            if end <= step <= until
        ]
        level = min(seen[0][1], seen[-1][1])
        below = [(step, max(0.0, level - value)) for step, value in seen]
        area = sum((b - a) * (x + y) / 2 for (a, x), (b, y) in itertools.pairwise(below))
        areas.append(area / (until - end))
    if not lows:
        return Gap(curves[-1][0], 0.0)
    return Gap(fmean(lows), fmean(areas))


def capacity(matrix: Matrix, chance: float) -> float:
    """Tasks' worth held at the end: Σ (accuracy - chance) / (1 - chance), each at least 0."""
    return sum(max(0.0, accuracy - chance) / (1 - chance) for accuracy in matrix[-1])


def late_online(online: Sequence[float]) -> float:
    """Online accuracy over the last tenth of the tasks less that over the first tenth."""
    tenth = max(1, len(online) // 10)
    return fmean(online[-tenth:]) - fmean(online[:tenth])


def learners(results: Mapping[str, Sequence[Result]]) -> list[str]:
    """Rows that learned their tasks, in their order.

    A row has learned if its learning accuracy is at least half as far above chance as the best's.
    """
    above = {
        label: fmean(learned(result["matrix"]) - result["chance"] for result in runs)
        for label, runs in results.items()
    }
    best = max(above.values(), default=0.0)
    return [label for label, value in above.items() if best > 0 and value >= best / 2]


METRICS: dict[str, Callable[[Result], float]] = {
    "average": lambda result: average(result["matrix"]),
    "worst": lambda result: worst(result["matrix"]),
    "learned": lambda result: learned(result["matrix"]),
    "forgetting": lambda result: forgetting(result["matrix"]),
    "bwt": lambda result: backward_transfer(result["matrix"]),
    "fwt": lambda result: forward_transfer(result["matrix"], result["initial"]),
    "lowest": lambda result: stability_gap(result).lowest,
    "gap": lambda result: stability_gap(result).area,
    "online": lambda result: fmean(result["online"]),
    "late": lambda result: late_online(result["online"]),
    "capacity": lambda result: capacity(result["matrix"], result["chance"]),
}


@dataclass(frozen=True)
class Detection:
    """How detected changes meet the true changes of task, in one run."""

    changes: int
    found: int
    false_alarms: int


def detection(
    detected: Sequence[int], changes: Sequence[Sequence[int]], tolerance: int = TOLERANCE
) -> Detection:
    """Changes with a detected one in [first, last + tolerance]; false alarms lie in no window."""
    windows = [(first, last + tolerance) for first, last in changes]
    found = sum(any(low <= step <= high for step in detected) for low, high in windows)
    false = sum(not any(low <= step <= high for low, high in windows) for step in detected)
    return Detection(len(windows), found, false)


@dataclass(frozen=True)
class Summary:
    """One row of a table: a method as it was set, on one stream, over seeds."""

    label: str
    seeds: int
    scores: dict[str, Spread]
    ms_optimizer: Spread
    ms_training: Spread
    bytes_per_parameter: float
    changes: float
    found: float
    false_alarms: float
    consolidations: float


def summarize(label: str, results: Sequence[Result]) -> Summary:
    """The figures of a table row from the results of all seeds."""
    hits = [detection(result["detected"], result["changes"]) for result in results]
    return Summary(
        label=label,
        seeds=len(results),
        scores={
            name: Spread.of([score(result) for result in results])
            for name, score in METRICS.items()
        },
        ms_optimizer=Spread.of([result["ms_optimizer"] for result in results]),
        ms_training=Spread.of([result["ms_training"] for result in results]),
        bytes_per_parameter=fmean(result["bytes_per_parameter"] for result in results),
        changes=fmean(hit.changes for hit in hits),
        found=fmean(hit.found for hit in hits),
        false_alarms=fmean(hit.false_alarms for hit in hits),
        consolidations=fmean(len(result["consolidations"]) for result in results),
    )
