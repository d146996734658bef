"""Shared by the tests of benchmarks/: the repository root on the path, small data, settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data.sets import Dataset, load  # noqa: E402
from benchmarks.runs.settings import Settings  # noqa: E402


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture
def settings(digits: Dataset) -> Any:
    """Settings of a tiny run, any field replaced by keyword."""

    def make(**changes: Any) -> Settings:
        fields: dict[str, Any] = {
            "data": "digits",
            "fingerprint": digits.fingerprint(),
            "stream": "permuted",
            "method": "adam",
            "seed": 0,
            "tasks": 2,
            "steps": 10,
            "batch": 16,
            "hidden": (8,),
            "lr": 1e-3,
            "order": "natural",
            "every": 5,
        }
        return Settings(**{**fields, **changes})

    return make


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
