"""Anchors in eight bits over processes: rounded as in one process that is given the same blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed import blocks, checkpoints, jobs
from tests.distributed.test_blocks import assert_equal_to_blocks
from tests.distributed.test_processes import DIAGONAL, assert_identical, assert_same

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("processes")]

SMALL: dict[str, Any] = {"state_dtype": "int8"}
BLOCKS: dict[str, Any] = {**SMALL, "importance": "kronecker", "rank": 2}
WHOLE: dict[str, Any] = {**SMALL, **DIAGONAL}


def assert_small(result: dict[str, Any]) -> None:
    """Of each matrix, and something in most of them."""
    matrices = [state for state in result["state"] if "anchor_scale" in state]
    assert len(matrices) >= 2
    assert all(state["anchor"].dtype == torch.int8 for state in matrices)
    assert sum(bool(state["anchor"].any()) for state in matrices) >= 2


@pytest.mark.parametrize(("world", "name"), [(4, "SALAdamW"), (2, "SALLion")])
def test_rows_are_those_of_one_process(pool_of: Any, world: int, name: str) -> None:
    """Diagonal importance: anchors and scales too."""
    one = jobs.drawn("single", name, WHOLE)
    assert_small(one)
    results = pool_of(world)(jobs.drawn, "fsdp", name, WHOLE)
    for result in results:
        assert_same(one, result)
        assert_identical(results[0], result)


@pytest.mark.parametrize("way", ["fsdp", "columns"])
@pytest.mark.parametrize("kind", [BLOCKS, WHOLE], ids=["kronecker", "diagonal"])
def test_blocks(pool_of: Any, way: str, kind: dict[str, Any]) -> None:
    """With even, uneven and empty parts; where columns are cut each has scales of its own."""
    one = blocks.alone(way, 4, "SALAdamW", kind)
    results = pool_of(4)(jobs.drawn, way, "SALAdamW", kind)
    for result in results:
        assert_small(result)
        assert_equal_to_blocks(one, result)
        assert_identical(results[0], result)


@pytest.mark.parametrize(
    ("world", "way"),
    [(2, "tensor-parallel"), (4, "hybrid"), (4, "fsdp-and-tensor-parallel")],
)
def test_training_with_every_default(pool_of: Any, world: int, way: str) -> None:
    one = blocks.trained_alone(way, world, "SALAdamW", SMALL)
    assert one["threshold"]["consolidations"] == 3.0
    for result in pool_of(world)(jobs.trained, way, "SALAdamW", SMALL):
        assert_small(result)
        assert_equal_to_blocks(one, result)


def test_parameters_that_are_offloaded(pool_of: Any) -> None:
    one = blocks.trained_alone("fsdp", 2, "SALAdamW", SMALL)
    for result in pool_of(2)(blocks.offloaded, SMALL):
        assert_small(result)
        assert_equal_to_blocks(one, result)


@pytest.mark.parametrize("way", ["fsdp", "columns"])
def test_a_consolidation_reduces_nothing(pool_of: Any, way: str) -> None:
    for counts in pool_of(4)(jobs.collectives, way, SMALL):
        assert counts == [1, 2, 1, 1, 2, 0]


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("way", ["fsdp", "columns"])
def test_as_many_processes_go_on_exactly(pool_of: Any, tmp_path: Any, way: str) -> None:
    run = (way, "SALAdamW", BLOCKS, str(tmp_path), 100)
    saved = pool_of(2)(checkpoints.save, *run)[0]
    assert_small(saved["halfway"])
    for result in pool_of(2)(checkpoints.resume, *run):
        assert not result["told"]
        assert_identical({**saved["halfway"], "found": []}, result["halfway"])
        end = {**result["end"], "found": saved["halfway"]["found"] + result["end"]["found"]}
        assert_identical(saved["end"], end)


def test_rows_move_to_other_processes_exactly(pool_of: Any, tmp_path: Any) -> None:
    run = ("fsdp", "SALAdamW", WHOLE, str(tmp_path), 100)
    saved = pool_of(2)(checkpoints.save, *run)[0]
    assert_small(saved["halfway"])
    wanted = {**saved["halfway"], "found": []}
    for result in pool_of(4)(checkpoints.resume, *run):
        assert_identical(wanted, result["halfway"])
        assert_same({**saved["end"], "found": []}, {**result["end"], "found": []})
    assert_identical(wanted, checkpoints.resume("single", *run[1:])["halfway"])


def test_other_parts_of_rows_are_refused(pool_of: Any, tmp_path: Any) -> None:
    """Each has scales of its own, of which others can't be made."""
    run = ("columns", "SALAdamW", WHOLE, str(tmp_path), 100)
    pool_of(2)(checkpoints.save, *run)
    for error in pool_of(4)(checkpoints.refused, *run, False, True):
        assert "Size mismatch" in error
        assert "anchor_scale" in error
