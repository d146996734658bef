"""A suite that is killed goes on where it stopped; and what is seen of it on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.runs import progress
from benchmarks.runs.progress import Tally, duration, shown

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [
    sys.executable, "-m", "benchmarks", "continual", "--stream", "permuted", "--methods", "adam",
    "si", "sgd", "--seeds", "3", "--tasks", "2", "--steps", "150", "--hidden", "16", "--jobs", "1",
    "--no-figures", "--out",
]  # fmt: skip
RESULT = {"matrix": [[0.5]]}


def start(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def records(out: Path) -> list[Path]:
    return sorted((out / "records").rglob("*-seed*.json"))


def test_killed_by_kill_9_it_goes_on_and_a_torn_record_is_made_anew(tmp_path: Path) -> None:
    process = start(tmp_path)
    deadline = time.monotonic() + 200
    while len(records(tmp_path)) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # its own session: the suite and its workers
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    kept = records(tmp_path)
    assert 3 <= len(kept) < 9
    for path in kept:
        assert json.loads(path.read_text())["result"]["matrix"]
    torn = kept[0]
    whole = json.loads(torn.read_text())["result"]["matrix"]
    torn.write_text(torn.read_text()[:500])
    before = {path: path.stat().st_mtime_ns for path in kept}

    second = start(tmp_path)
    _, messages = second.communicate(timeout=250)
    assert second.returncode == 0, messages
    assert f"9 runs: {len(kept) - 1} on record, {10 - len(kept)} to compute" in messages
    assert torn.name in messages.replace("\n", "")
    assert "corrupted" in messages
    assert len(records(tmp_path)) == 9
    unchanged = [path for path in kept if path.stat().st_mtime_ns == before[path]]
    assert unchanged == kept[1:]
    assert json.loads(torn.read_text())["result"]["matrix"] == whole
    assert (tmp_path / "continual-digits.md").is_file()


def test_time_left_counts_steps(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: clock[0])
    plan = [settings(steps=30), settings(steps=10), settings(steps=10, seed=1)]
    tally = Tally(plan, [False, False, True], jobs=2)
    assert tally.left is None
    clock[0] += 12
    tally.add(plan[0], RESULT)  # 60 of 80 steps in 12 seconds
    assert tally.left == pytest.approx(4.0)
    tally.add(plan[1], RESULT)
    assert tally.left == 0
    assert [duration(s) for s in (None, 4.4, 61, 7384)] == ["?", "0:04", "1:01", "2:03:04"]


def test_the_live_table_names_what_is_open(settings: Any) -> None:
    plan = [settings(method=m, seed=s) for m in ("adam", "si") for s in (0, 1)]
    tally = Tally(plan, [True, True, True, False], jobs=2)
    console = Console(file=StringIO(), width=100)
    console.print(tally)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "si" in text
    assert "1/2" in text
    assert "adam" not in text
    assert "left, 2 at a time" in text


def test_on_a_terminal_it_is_live_and_elsewhere_a_line_for_a_tenth(settings: Any) -> None:
    plan = [settings(seed=s) for s in range(20)]
    for terminal in (True, False):
        file = StringIO()
        console = Console(file=file, width=100, force_terminal=terminal)
        with shown(plan, [False] * 20, 1, console) as tick:
            for one in plan:
                tick(one, RESULT)
        if terminal:
            assert "permuted" in file.getvalue()
        else:
            lines = file.getvalue().splitlines()
            assert len(lines) == 10
            assert lines[-1] == "20/20 runs"
            assert lines[0].startswith("2/20 runs, ")
