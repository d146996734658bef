"""Metrics on a matrix that is small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.data.errors import UserError
from benchmarks.metrics.scores import (
    Detection,
    average,
    backward_transfer,
    capacity,
    detection,
    forgetting,
    forward_transfer,
    late_online,
    learned,
    stability_gap,
    summarize,
    worst,
)
from benchmarks.metrics.spread import LEVEL, RESAMPLES, Spread, interval, paired

# Task 0 is better after task 1 (0.95) than when it was learned (0.90).
R = [[0.90, 0.10, 0.20], [0.95, 0.80, 0.10], [0.50, 0.60, 0.70]]


def test_metrics_by_hand() -> None:
    assert average(R) == pytest.approx(0.60)
    assert worst(R) == pytest.approx(0.50)
    assert learned(R) == pytest.approx((0.90 + 0.80 + 0.70) / 3)
    assert forgetting(R) == pytest.approx(((0.95 - 0.50) + (0.80 - 0.60)) / 2)
    assert backward_transfer(R) == pytest.approx(((0.50 - 0.90) + (0.60 - 0.80)) / 2)


def test_one_task_forgets_nothing() -> None:
    assert forgetting([[0.9]]) == backward_transfer([[0.9]]) == 0
    assert average([[0.9]]) == worst([[0.9]]) == learned([[0.9]]) == 0.9


def test_spread_is_the_sample_sd() -> None:
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3)
    assert Spread.of([1.0, 2.0, 3.0]).sem == pytest.approx(3**-0.5)
    assert Spread.of([1.0]) == Spread(1.0, 0.0, 1)


def test_forward_transfer_is_over_an_untrained_network() -> None:
    # Before they are trained: task 1 at 0.10, task 2 at 0.10.
    assert forward_transfer(R, [0.3, 0.05, 0.25]) == pytest.approx((0.05 - 0.15) / 2)
    assert forward_transfer([[0.9]], [0.1]) == 0


def test_the_gap_counts_what_is_made_good_and_not_what_is_lost() -> None:
    result = {
        "curve_steps": [0, 10, 12, 16, 20],
        "curves": [[0.1, 0.1], [0.9, 0.1], [0.5, 0.2], [0.7, 0.6], [0.8, 0.9]],
        "changes": [[10, 10]],
    }
    gap = stability_gap(result)
    # Below 0.8, where task 0 came to: 0 at 10, 0.3 at 12, 0.1 at 16, 0 at 20.
    assert gap.lowest == pytest.approx(0.5)
    assert gap.area == pytest.approx((2 * 0.15 + 4 * 0.2 + 4 * 0.05) / 10)
    lost = {**result, "curves": [[0.1, 0.1], [0.9, 0.1], [0.7, 0.2], [0.6, 0.6], [0.5, 0.9]]}
    assert stability_gap(lost).area == 0
    assert stability_gap({**result, "changes": []}).area == 0


def test_capacity_and_late_online() -> None:
    # Chance is a half: 0.75 is half a task's worth, below chance is none.
    assert capacity([[1.0, 0.75, 0.2]], 0.5) == pytest.approx(1.5)
    assert late_online([0.5] * 10 + [0.7] * 8 + [0.4] * 2) == pytest.approx(-0.1)


def test_paired_interval() -> None:
    base = [0.1 * seed for seed in range(12)]
    better = [value + 0.02 + 0.001 * (seed % 3) for seed, value in enumerate(base)]
    gap = paired(better, base)
    assert gap.mean == pytest.approx(0.021)
    # The spread over seeds is 0.36; paired, the interval is as narrow as the differences.
    assert 0.020 < gap.low < gap.mean < gap.high < 0.022
    assert gap.excludes_zero
    assert paired(better, base) == gap
    back = paired(base, better)
    assert (back.mean, back.low, back.high) == pytest.approx(
        (-gap.mean, -gap.high, -gap.low), abs=2e-4
    )
    mixed = paired([0.0, 0.1, 0.0, 0.1], [0.1, 0.0, 0.1, 0.0])
    assert not mixed.excludes_zero
    assert not paired([0.9], [0.1]).excludes_zero
    with pytest.raises(UserError, match="2 seeds against 1"):
        paired([0.1, 0.2], [0.1])


@pytest.mark.parametrize("count", [2, 5, 12])
def test_intervals_are_those_of_resampled_seeds(count: int) -> None:
    source = np.random.default_rng(1)
    ours, theirs = source.normal(0.8, 0.1, (2, count))
    rows = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    ends = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]

    def ratio(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return x.mean(axis=axis) / y.mean(axis=axis)

    expected = np.percentile(ratio(ours[rows], theirs[rows]), ends)
    assert interval(ratio, ours, theirs) == pytest.approx(tuple(expected), abs=1e-12)
    found = paired(list(ours), list(theirs))
    expected = np.percentile((ours - theirs)[rows].mean(1), ends)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)


def test_detection_counts_changes_found_and_false_alarms() -> None:
    sharp = [(100, 100), (200, 200)]
    assert detection([101, 203], sharp) == Detection(2, 2, 0)
    assert detection([50, 120, 121, 150], sharp) == Detection(2, 1, 3)
    assert detection([], sharp) == Detection(2, 0, 0)
    assert detection([60, 90], [(50, 100)]) == Detection(1, 1, 0)


def test_summary_averages_over_seeds() -> None:
    result = {
        "matrix": R,
        "consolidations": [11, 15],
        "detected": [11],
        "changes": [[10, 10], [20, 20]],
        "ms_optimizer": 1.0,
        "ms_training": 2.0,
        "bytes_per_parameter": 8.0,
        "initial": [0.1] * 3,
        "online": [0.5] * 3,
        "chance": 0.1,
        "curve_steps": [0, 10, 20, 30],
        "curves": [[0.1] * 3, [0.9, 0.1, 0.2], [0.9, 0.8, 0.1], [0.5, 0.6, 0.7]],
    }
    perfect = {**result, "matrix": [[1.0] * 3] * 3, "detected": [10, 41]}
    row = summarize("sal-adam", [result, perfect])
    assert row.scores["average"].mean == pytest.approx(0.8)
    assert (row.changes, row.found, row.false_alarms) == (2, 1, 0.5)
