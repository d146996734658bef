"""Fixtures of all tests: every row in every mode, on one thread."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.testing.rows import CLASSES, MODES, ROWS, Row

torch.set_num_threads(1)


@pytest.fixture(params=ROWS, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=CLASSES, ids=str)
def class_row(request: pytest.FixtureRequest) -> Row:
    """One row a class."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(MODES[request.param])
