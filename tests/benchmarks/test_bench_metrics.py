"""Metrics on a matrix that is small enough to work out by hand."""

from __future__ import annotations

import pytest

from benchmarks.metrics import (
    Detection,
    Spread,
    average,
    backward_transfer,
    detection,
    forgetting,
    learned,
    summarize,
    worst,
)

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
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0)
    assert Spread.of([1.0]) == Spread(1.0, 0.0)


def test_detection_counts_changes_found_and_false_alarms() -> None:
    sharp = [(100, 100), (200, 200)]
    assert detection([101, 203], sharp) == Detection(2, 2, 0)
    assert detection([50, 120, 121, 150], sharp) == Detection(2, 1, 3)
    assert detection([], sharp) == Detection(2, 0, 0)
    assert detection([60, 90], [(50, 100)]) == Detection(1, 1, 0)


def test_summary_averages_over_seeds() -> None:
    result = {
        "matrix": R,
        "consolidations": [11],
        "changes": [[10, 10], [20, 20]],
        "ms_optimizer": 1.0,
        "ms_training": 2.0,
    }
    perfect = {**result, "matrix": [[1.0] * 3] * 3, "consolidations": [10, 41]}
    row = summarize("sal-adam", [result, perfect])
    assert row.scores["average"].mean == pytest.approx(0.8)
    assert (row.changes, row.found, row.false_alarms) == (2, 1, 0.5)
