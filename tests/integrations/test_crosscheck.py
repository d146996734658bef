"""Avalanche trains what our harness trains: the same batches from the same weights."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks.commands import crosscheck
from benchmarks.commands.options import check_common
from benchmarks.data.sets import load
from benchmarks.metrics.scores import average

ARGS = ["--steps", "30", "--tasks", "3"]


@pytest.fixture(autouse=True)
def _avalanche() -> None:
    importlib.import_module("tests.integrations.shim.sitecustomize")
    pytest.importorskip("avalanche", exc_type=ImportError)


def test_plain_training_is_the_same() -> None:
    args = crosscheck.arguments().parse_args(ARGS)
    check_common(args)
    data = load("digits", None)
    settings = crosscheck._settings("adam", 3, data, args)
    here, there = (
        train(settings, data, 0.0) for train in (crosscheck.ours, crosscheck.avalanche("naive"))
    )
    assert here == there
    assert average(here) > 0.2


@pytest.mark.parametrize(
    ("name", "strength"),
    [("EWC", 1e5), ("EWC, Fisher by example", 1e4), ("SI, weights copied", 1e4), ("MAS", 10.0)],
)
def test_a_large_strength_holds(name: str, strength: float) -> None:
    args = crosscheck.arguments().parse_args(ARGS)
    check_common(args)
    data = load("digits", None)
    settings = crosscheck._settings("adam", 0, data, args)
    train = crosscheck.avalanche(name)
    free, held = (train(settings, data, value) for value in (1e-9, strength))
    assert held[-1][0] - held[0][0] > free[-1][0] - free[0][0]


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crosscheck, "GRIDS", {"adam": ("naive", (0.0,)), "si": ("SI", (1.0, 10.0))})
    assert crosscheck.main([*ARGS, "--seeds", "2", "--out", str(tmp_path)]) == 0
    lines = (tmp_path / "crosscheck.md").read_text().splitlines()
    assert len(lines) == 6
    assert lines[2].split("|")[4:] == lines[3].split("|")[4:]
