"""Runs an example as a user would, in a process of its own, and reads what it left behind."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.testing.drive import flat

EXAMPLES = Path(__file__).parents[2] / "examples"


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make test-trainers")


def run(arguments: list[str], cwd: Path) -> str:
    # Not the repository itself: entry points are those of the installed package.
    shim = str(Path(__file__).parent / "shim")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": shim}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def leaves(state: dict[str, Any]) -> dict[str, Any]:
    """All that a checkpoint holds, by path, in values that compare."""
    return {
        path: value.tolist() if isinstance(value, torch.Tensor) else value
        for path, value in flat(state)
    }
