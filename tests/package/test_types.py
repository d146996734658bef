"""Types as a user's checker sees them: the installed package, from a file somewhere else."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """\
import sal_optim
from sal_optim import SALAdamW, CommunicationLayer
from sal_optim.monitoring import CSVWriter


def number(optimizer: SALAdamW) -> float:
    return optimizer.diagnostics()["threshold"]


layer: type[CommunicationLayer] = sal_optim.CommunicationLayer
writer: type[CSVWriter] = sal_optim.writers.CSVWriter
drawn = sal_optim.plot.history([{"step": 1.0}])
drift = sal_optim.monitors.Drift
wrong: int = sal_optim.SALAdam
"""
WRONG = CODE.splitlines().index("wrong: int = sal_optim.SALAdam") + 1


def checked(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a checker where the repository is not the current folder, so that it is not found so."""
    (folder / "user.py").write_text(CODE)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture(autouse=True)
def installed(tmp_path: Path) -> None:
    done = checked(["pip", "show", "sal_optim"], tmp_path)
    if done.returncode:
        pytest.skip("sal_optim is not installed in this environment")


def test_mypy_finds_them(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    done = checked(["mypy", "--strict", "--no-error-summary", "user.py"], tmp_path)
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [line.split(":")[1] for line in lines] == [str(WRONG)], done.stdout + done.stderr


def test_pyright_finds_them(tmp_path: Path) -> None:
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    done = checked(["pyright", "--outputjson", "--pythonpath", sys.executable, "user.py"], tmp_path)
    try:
        found = json.loads(done.stdout)["generalDiagnostics"]
    except ValueError:  # its package fetches the checker when it first runs
        pytest.skip(f"pyright cannot start: {done.stderr.strip()[-200:]}")
    lines = [one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"]
    assert lines == [WRONG], found
