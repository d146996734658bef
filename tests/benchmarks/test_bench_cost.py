"""`python -m benchmarks speed` and `memory`: they run, and what they count is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.commands.memory import _measure
from benchmarks.cost import whole
from benchmarks.cost.contestants import CONTESTANTS, parameters
from benchmarks.cost.timing import copy_bandwidth, paired


def test_speed_writes_ratios_and_a_figure(tmp_path: Path) -> None:
    command = ["speed", "--sizes", "2e4", "--repeats", "2", "--threads", "1", "--no-networks"]
    assert main([*command, "--methods", "SALAdamW", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "speed.json").read_text())
    names = [row["optimizer"] for row in report["steps"] if row["tensors"] == 4]
    assert names == ["torch AdamW loop", "torch AdamW foreach", "torch AdamW fused", "SALAdamW"]
    assert all(row["ratio"] > 0 and row["floor ns"] > 0 for row in report["steps"])
    assert 0 < report["overhead"][0]["detector"] < 1
    assert (tmp_path / "figures" / "speed.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--sizes", "many"], "--sizes: 'many'"),
        (["--sizes", "3"], "--sizes: 3 is out of range"),
        (["--repeats", "0"], "--repeats: 0 is out of range"),
        (["--device", "tpu"], "--device: 'tpu' is unknown; allowed: cpu"),
        (["--methods", "AdamX"], "--methods: 'AdamX' is unknown"),
    ],
)
def test_wrong_arguments_are_named(
    wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["speed", *wrong]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "beyond"),
    [
        ("SALAdamW diagonal", 12.0),
        ("SALAdamW factored", 4.1),
        ("SALAdamW factored, no pull", 0.2),
        ("torch AdamW loop", 0.0),
        ("published SAL on AdamW", 0.0),
    ],
)
def test_state_bytes(name: str, beyond: float) -> None:
    """Beyond AdamW's 8 bytes a parameter; a tenth for step counts and factors."""
    row: dict[str, Any] = _measure(name, 200_000)
    assert row["state"] - 8 == pytest.approx(beyond, abs=0.1)


def test_parameters_have_gradients_and_the_size_asked_for() -> None:
    made = parameters(10_000, 4)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in made)
    assert sum(p.numel() for p in made) == pytest.approx(10_000, rel=0.02)


def test_every_installed_contestant_steps() -> None:
    for contestant in CONTESTANTS:
        if contestant.installed():
            params = parameters(400, 2)
            before = [p.detach().clone() for p in params]
            contestant.make(params).step()
            assert any(not p.equal(old) for p, old in zip(params, before, strict=True)), contestant


def test_whole_steps_are_timed_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "MLP 784-256-256-10"
    monkeypatch.setattr(whole, "NETWORKS", {name: (whole.NETWORKS[name][0], 2)})
    rows = whole.whole_steps(2, "cpu", 1, Console(quiet=True))
    assert [row["optimizer"] for row in rows] == [mine[0] for mine, _ in whole.PAIRS]
    assert all(row["ratio"] > 0.0 and row["low"] <= row["ratio"] <= row["high"] for row in rows)


def test_both_take_turns_in_multiples() -> None:
    calls = {"one": 0, "other": 0}

    def called(name: str) -> None:
        calls[name] += 1

    found = paired(lambda: called("one"), lambda: called("other"), repeats=3, least=1e-4)
    assert all(count >= 4 * 5 and count % 4 == 0 for count in calls.values())
    assert found.low <= found.ratio <= found.high
    assert copy_bandwidth(10_000, repeats=2) > 0
