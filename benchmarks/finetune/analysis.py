"""From runs to figures: what the old text's loss has risen by where the new text's is equal.

A run is a list of points [new loss, old loss], the pretrained network first. Methods are compared
at a common loss on the new text, so that one that learns less does not look as if it kept more.
Early stopping is in this: of a run that reaches the target, the best place is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.finetune.methods import Trial
from benchmarks.metrics.spread import interval

Points = Sequence[Sequence[float]]

# Parts of what AdamW can gain on the new text. Settings are chosen at CHOSEN, of those that get
# further by MARGIN, so that other seeds get there too.
LEVELS = (0.3, 0.5, 0.67, 0.8)
CHOSEN, MARGIN = 0.5, 0.05


def gain(runs: Sequence[Points]) -> float:
    """The largest part of the new text's first loss that any of these runs takes away."""
    return max(1 - min(new for new, _ in points) / points[0][0] for points in runs)


def target(points: Points, gained: float, level: float) -> float:
    """The new text's loss at `level` of that gain, for a run that begins as this one."""
    return points[0][0] * (1 - level * gained)


def forgetting(points: Points, goal: float) -> float | None:
    """The least that the old loss has risen by where the new one is at most `goal`; None: nowhere.

    So every run is stopped where it suits its method best. Between two looks the curve is a
    straight line.
    """
    found = [old for new, old in points if new <= goal]
    for (new, old), (later, after) in itertools.pairwise(points):
        if (new - goal) * (later - goal) < 0:
            found.append(old + (new - goal) / (new - later) * (after - old))
    return min(found) - points[0][1] if found else None


def best(trials: Sequence[Trial], runs: Sequence[Points], gained: float) -> int:
    """The trial that has lost least at the chosen level; where none gets there, the closest.

    Of equals it is the first, which is the default.
    """

    def cost(place: int) -> tuple[bool, float]:
        points = runs[place]
        lost = forgetting(points, target(points, gained, CHOSEN))
        if lost is None or forgetting(points, target(points, gained, CHOSEN + MARGIN)) is None:
            return True, min(new for new, _ in points)
        return False, lost

    return min(range(len(trials)), key=cost)


def matched_lr(rates: Sequence[float], distances: Sequence[float], distance: float) -> float:
    """The learning rate at which AdamW goes `distance`, on straight lines between logarithms."""
    pairs = sorted(zip(distances, rates, strict=True))
    logs = [(math.log(d), math.log(r)) for d, r in pairs]
    (d0, r0), (d1, r1) = logs[0], logs[1]
    for before, after in itertools.pairwise(logs):
        (d0, r0), (d1, r1) = before, after
        if math.log(distance) <= d1:
            break
    return math.exp(r0 + (math.log(distance) - d0) / (d1 - d0) * (r1 - r0))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Mean of ours over mean of theirs, with a bootstrap interval of 95% over seeds."""
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)

    def of_means(x: Any, y: Any, axis: int = -1) -> Any:
        return x.mean(axis=axis) / y.mean(axis=axis)

    return float(of_means(a, b)), *interval(of_means, a, b)


def front(runs: Sequence[Points]) -> list[tuple[float, float]]:
    """Points of any run that no other has at most the new and less old loss of, by new loss."""
    found: list[tuple[float, float]] = []
    for new, old in sorted((p[0], p[1]) for points in runs for p in points):
        if not found or old < found[-1][1]:
            found.append((new, old))
    return found


def lost(results: Sequence[dict[str, Any]], gained: float, level: float) -> list[float] | None:
    """The rise of the old loss at a level, one a seed; None unless every seed reaches it."""
    found = []
    for result in results:
        points = result["points"]
        rise = forgetting(points, target(points, gained, level))
        if rise is None:
            return None
        found.append(rise)
    return found
