"""Importance of sharded matrices by block: many processes are one that is given the same blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed import blocks, checkpoints, jobs
from tests.distributed.test_processes import assert_identical, assert_same
from tests.testing.rows import CLASSES

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("processes")]

# Muon orthogonalizes a matrix as a whole, so that its blocks are no parameters of their own.
BY_ELEMENT = [row.name for row in CLASSES if row.name != "SALMuon"]


def assert_equal_to_blocks(one: dict[str, Any], result: dict[str, Any]) -> None:
    assert_same({**one, "state": []}, {**result, "state": []})


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(
    ("way", "name", "kind"),
    [
        *(("fsdp", name, "kronecker") for name in BY_ELEMENT),
        ("columns", "SALAdamW", "kronecker"),
        ("fsdp", "SALAdamW", "factored"),
    ],
)
def test_three_tasks(pool_of: Any, world: int, way: str, name: str, kind: str) -> None:
    """With even, uneven and empty shards."""
    run = (name, {"importance": kind, "rank": 2})
    one = blocks.alone(way, world, *run)
    assert one["found"] == [59, 121, 141]
    results = pool_of(world)(blocks.drawn, way, *run)
    for result in results:
        assert_equal_to_blocks(one, result)
        assert_identical(results[0], result)


def test_blocks_of_fixed_rows_do_not_depend_on_the_number_of_processes(pool_of: Any) -> None:
    run = ("SALAdamW", {"importance": "kronecker", "rank": 2})
    found = {world: pool_of(world)(blocks.drawn, "fsdp", *run, 2)[0] for world in (2, 4)}
    for world, result in found.items():
        assert_equal_to_blocks(blocks.alone("fsdp", world, *run, 2), result)
    two, four = (found[world]["params"] for world in (2, 4))
    # Matrices of 8 and 7 rows, and what is no matrix.
    for index in (0, 1, 2, 5):
        torch.testing.assert_close(two[index], four[index], rtol=1e-6, atol=1e-6)
    name = "left_basis_of_4"
    assert all(name in found[world]["state"][index] for world in (2, 4) for index in (0, 1))


@pytest.mark.parametrize(
    ("world", "way"),
    [
        (2, "fsdp"),
        (2, "tensor-parallel"),
        *((4, w) for w in ("fsdp", "tensor-parallel", "hybrid", "fsdp-and-tensor-parallel")),
    ],
)
def test_training_with_every_default(pool_of: Any, world: int, way: str) -> None:
    """A network over three tasks, with gradients of real forward and backward passes."""
    one = blocks.trained_alone(way, world, "SALAdamW", {})
    assert one["threshold"]["consolidations"] == 3.0
    results = pool_of(world)(jobs.trained, way, "SALAdamW", {})
    for result in results:
        assert_equal_to_blocks(one, result)
        assert_identical(results[0], result)


def test_parameters_that_are_offloaded(pool_of: Any) -> None:
    one = blocks.trained_alone("fsdp", 2, "SALAdamW", {})
    for result in pool_of(2)(blocks.offloaded, {}):
        assert_equal_to_blocks(one, result)


@pytest.mark.parametrize("way", ["fsdp", "columns", "hybrid"])
def test_a_step_communicates_no_more_than_norms_and_slopes(pool_of: Any, way: str) -> None:
    for counts in pool_of(4)(jobs.collectives, way):
        assert counts == [1, 2, 1, 1, 2, 0]


# ---------------------------------------------------------------- checkpoints

KRONECKER: dict[str, Any] = {"importance": "kronecker", "rank": 2}


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])
@pytest.mark.parametrize(
    ("way", "name", "at"),
    [("fsdp", "SALAdamW", 61), ("columns", "SALSGD-momentum", 100), ("mixed", "SALLion", 100)],
)
def test_as_many_processes_go_on_exactly(
    pool_of: Any, tmp_path: Any, way: str, name: str, at: int, flat: bool
) -> None:
    run = (way, name, KRONECKER, str(tmp_path), at, flat)
    saved = pool_of(2)(checkpoints.save, *run)[0]
    assert len(saved["end"]["found"]) == 3
    for result in pool_of(2)(checkpoints.resume, *run):
        assert not result["told"]
        assert_identical({**saved["halfway"], "found": []}, result["halfway"])
        end = {**result["end"], "found": saved["halfway"]["found"] + result["end"]["found"]}
        assert_identical(saved["end"], end)


def test_other_processes_lose_importance_of_matrices_and_say_so(
    pool_of: Any, tmp_path: Any
) -> None:
    """With a planner that leaves what a checkpoint lacks; torch refuses it otherwise."""
    run = ("fsdp", "SALAdamW", KRONECKER, str(tmp_path), 100, False)
    saved = pool_of(2)(checkpoints.save, *run)[0]["halfway"]
    for error in pool_of(4)(checkpoints.refused, *run):
        assert "Missing key in checkpoint" in error
        assert "_of_4" in error
    results = pool_of(4)(checkpoints.resume, *run, True)
    alone = checkpoints.resume("single", *run[1:], True)
    for result in [*results, alone]:
        assert "into other blocks" in result["told"][0]
        now = result["halfway"]
        assert now["threshold"] == saved["threshold"]
        for old, new, param in zip(saved["state"], now["state"], now["params"], strict=True):
            kept = {"exp_avg", "exp_avg_sq", "anchor", "step"}
            if param.dim() < 2:
                kept |= {"evidence", "pending", "evidence_weight", "pending_steps"}
            else:
                assert new["evidence_weight"] == new["pending_steps"] == 0.0
            for key in kept:
                assert (
                    old[key] == new[key]
                    if key[-5:] in ("eight", "steps")
                    else torch.equal(old[key], new[key])
                ), key
        assert_same({**saved, "found": [], "state": []}, {**now, "state": []}, tol=0.0)
        assert all(param.isfinite().all() for param in result["end"]["params"])


def test_blocks_of_fixed_rows_move_to_other_processes_exactly(pool_of: Any, tmp_path: Any) -> None:
    run = ("fsdp", "SALAdamW", KRONECKER, str(tmp_path), 100, False)
    saved = pool_of(2)(blocks.saved, 2, *run)[0]["halfway"]
    for result in pool_of(4)(blocks.resumed, 2, *run, True):
        for index in (0, 1):  # matrices of 8 and 7 rows
            for name, value in saved["state"][index].items():
                now = result["halfway"]["state"][index][name]
                assert torch.equal(now, value) if isinstance(value, Tensor) else now == value, name
            assert saved["state"][index]["left_values_of_4"].any()


def test_full_state_dict(pool_of: Any) -> None:
    for result in pool_of(4)(checkpoints.full_state, "SALAdam"):
        assert_identical(result["before"], result["after"])
