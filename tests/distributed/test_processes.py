"""Many processes are one: parameters, evidence, threshold and consolidations are those of a single.

2 and 4 processes, gloo on loopback. A hung test is a failure: see pool.py.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim.checkpoint.resharding import IMPORTANCE_STATE
from tests.distributed import checkpoints, jobs
from tests.distributed.pool import Pool
from tests.testing.rows import CLASSES, KINDS, ROWS

# One group for xdist: its processes are enough for one machine.
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("processes")]

# Which does not depend on how matrices are cut; the kinds that do are in test_blocks.py.
# The retention is fixed: torch's Muon rounds to bfloat16. Where a number is on the edge of two
# roundings the last bit of a gradient moves weights by 5e-4, in one process alone too.
DIAGONAL: dict[str, Any] = {"importance": "diagonal", "retention": 0.97}


@functools.cache
def alone(name: str) -> dict[str, Any]:
    result = jobs.drawn("single", name, DIAGONAL)
    # By the clock, by the clock, and at a change.
    assert result["found"] == [59, 121, 141]
    assert result["threshold"]["changes"] == 1.0
    assert any(bool((s["evidence"] > 0).any()) for s in result["state"])
    return result


def assert_same(one: dict[str, Any], other: dict[str, Any], tol: float = 1e-6) -> None:
    assert one["found"] == other["found"]
    assert one["threshold"].keys() == other["threshold"].keys()
    for name, value in one["threshold"].items():
        assert math.isclose(value, other["threshold"][name], rel_tol=tol, abs_tol=tol), name
    close = functools.partial(torch.testing.assert_close, rtol=tol, atol=tol)
    for left, right in zip(one["params"], other["params"], strict=True):
        close(left, right)
    for left, right in zip(one["state"], other["state"], strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            # The length of an update is a small difference of float32 numbers. One process takes
            # protected steps by torch's fused kernel, which rounds otherwise.
            wide = 100 * tol if name.startswith("delta_w") else tol
            if isinstance(value, Tensor):
                close(value, right[name], msg=lambda text, name=name: f"{name}: {text}")
            else:
                assert math.isclose(value, right[name], rel_tol=wide), name


def assert_identical(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Bit for bit."""
    assert one["found"] == other["found"]
    assert one["threshold"] == other["threshold"]
    assert_same(one, other, tol=0.0)


@pytest.mark.parametrize(
    ("world", "way", "name"),
    [
        *((2, "fsdp", row.name) for row in ROWS),
        *((4, "columns", row.name) for row in CLASSES),
        *((2, "ddp", row.name) for row in CLASSES),
        *((2, way, "SALAdam") for way in ("mixed", "columns")),
        *((4, way, "SALAdam") for way in ("ddp", "fsdp", "mixed")),
    ],
)
def test_drawn_gradients(pool_of: Any, world: int, way: str, name: str) -> None:
    results = pool_of(world)(jobs.drawn, way, name, DIAGONAL)
    for result in results:
        assert_same(alone(name), result)
        assert_identical(results[0], result)
    if way == "ddp":
        assert_identical(alone(name), results[0])


@pytest.mark.parametrize(("world", "way"), [(2, "fsdp"), (4, "columns")])
def test_foreach(pool_of: Any, world: int, way: str) -> None:
    results = pool_of(world)(jobs.drawn, way, "SALAdam", {**DIAGONAL, "foreach": True})
    for result in results:
        assert_same(alone("SALAdam"), result)
        assert_identical(results[0], result)


@functools.cache
def trained_alone(name: str, kind: str) -> dict[str, Any]:
    result = jobs.trained("single", name, {"importance": kind})
    assert len(result["found"]) == 3, result["found"]
    assert result["threshold"]["changes"] == 1.0
    return result


@pytest.mark.parametrize(
    ("world", "way", "name"),
    [
        *((2, "ddp", row.name) for row in CLASSES),
        *((4, "fsdp", row.name) for row in CLASSES),
        (2, "fsdp", "SALAdam"),
        (4, "ddp", "SALAdam"),
        *((4, way, "SALSGD-momentum") for way in ("ddp", "fsdp")),
        *((world, "tensor-parallel", "SALAdam") for world in (2, 4)),
        (4, "tensor-parallel", "SALSGD-momentum"),
        *((4, way, "SALAdam") for way in ("hybrid", "fsdp-and-tensor-parallel")),
    ],
)
def test_training(pool_of: Any, world: int, way: str, name: str) -> None:
    """Parameters that are no DTensor have the factors of a single process."""
    kind = "kronecker" if way == "ddp" else "diagonal"
    results = pool_of(world)(jobs.trained, way, name, {"importance": kind})
    for result in results:
        assert_same(trained_alone(name, kind), result)
        assert_identical(results[0], result)


@pytest.mark.parametrize(
    ("way", "number"), [("ddp", 0), ("fsdp", 1), ("mixed", 1), ("columns", 1), ("hybrid", 1)]
)
def test_collectives_of_a_step(pool: Pool, way: str, number: int) -> None:
    if way == "hybrid" and pool.world == 2:
        pytest.skip("two copies of one part each need none")
    for counts in pool(jobs.collectives, way):
        # Slopes from the anchor are sums over all as well, and so is the length of an update, on
        # every sixteenth step.
        assert counts == [number, 2 * number, number, number, 2 * number, 0]


def test_diagnostics_on_one_rank(pool: Pool) -> None:
    results = pool(jobs.diagnostics_on_one_rank)
    assert results[0][0] == results[-1][0]
    report = results[0][1]
    assert report["consolidations"] == 1.0
    assert all(math.isfinite(value) for value in report.values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_gradient_on_one_rank(pool: Pool, value: float) -> None:
    for before, after in pool(jobs.bad_gradient, value):
        assert after["threshold"] == before["threshold"]
        for old, new in zip(before["state"], after["state"], strict=True):
            names = [name for name in old if name.startswith(IMPORTANCE_STATE)]
            assert len(names) > 2
            for name in names:
                value = old[name]
                same = (
                    torch.equal(value, new[name])
                    if isinstance(value, Tensor)
                    else value == new[name]
                )
                assert same, name


def test_refusals(pool_of: Any) -> None:
    for errors in pool_of(2)(checkpoints.refusals):
        assert "partial" in errors["partial"]
        assert "set_optimizer_state_dict" in errors["plain state"]
        assert "set_optimizer_state_dict" in errors["sharded state"]
        assert "set_optimizer_state_dict" in errors["factors of a plain state"]
        assert "both must be DTensor" in errors["sharded gradient"]


@pytest.mark.parametrize("kind", KINDS)
def test_replicated_parameters_have_any_kind(pool_of: Any, kind: str) -> None:
    single = jobs.drawn("single", "SALAdam", {"importance": kind}, (0, 80))
    assert single["found"] == [59]
    for result in pool_of(2)(jobs.drawn, "ddp", "SALAdam", {"importance": kind}, (0, 80)):
        assert_identical(single, result)


def test_a_loss_that_a_callback_tells_is_the_mean_over_processes(pool_of: Any) -> None:
    """Each told its own, and replicas parted in silence."""
    one, other = pool_of(2)(jobs.told)
    assert one["threshold"]["changes"] == 1.0
    assert_identical(one, other)


def test_partial_gradients(pool: Pool) -> None:
    for ours, theirs in pool(jobs.partial_gradients):
        for left, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


# At step 61 the first change is amid its detection; at 40 there was no consolidation yet.
@pytest.mark.parametrize(
    ("way", "name", "at"),
    [
        ("fsdp", "SALAdamW", 61),
        ("fsdp", "SALSGD-momentum", 100),
        ("fsdp", "SALLion", 40),
        ("mixed", "SALAdamW", 100),
        ("mixed", "SALLion", 61),
    ],
)
def test_checkpoint(pool_of: Any, tmp_path: Any, way: str, name: str, at: int) -> None:
    """Exact on as many processes; on others all that was saved is exact, and the rest the same."""
    run = (way, name, DIAGONAL, str(tmp_path), at)
    saved = pool_of(2)(checkpoints.save, *run)[0]
    assert len(saved["end"]["found"]) == 3
    for world in (2, 4):
        for result in pool_of(world)(checkpoints.resume, *run):
            end = {**result["end"], "found": saved["halfway"]["found"] + result["end"]["found"]}
            assert_identical({**saved["halfway"], "found": []}, result["halfway"])
            if world == 2:
                assert_identical(saved["end"], end)
            else:
                assert_same(saved["end"], end)
    result = checkpoints.resume("single", *run[1:])
    assert_identical({**saved["halfway"], "found": []}, result["halfway"])


def test_four_processes_to_two(pool_of: Any, tmp_path: Any) -> None:
    run = ("fsdp", "SALAdam", DIAGONAL, str(tmp_path), 100)
    saved = pool_of(4)(checkpoints.save, *run)[0]
    for result in pool_of(2)(checkpoints.resume, *run):
        assert_identical({**saved["halfway"], "found": []}, result["halfway"])


def test_full_state_dict(pool: Pool) -> None:
    for result in pool(checkpoints.full_state, "SALAdam"):
        assert_identical(result["before"], result["after"])


def test_a_hang_is_a_failure() -> None:
    """The tests' own net holds; and slow is not hung."""
    pool = Pool(2)
    assert pool(jobs.work, 6.0, idle=3.0) == [0, 1]
    with pytest.raises(TimeoutError, match=r"hung on ranks \[0\]"):
        pool(jobs.hang, 0, idle=5.0)
    assert not pool.alive


def test_an_error_is_told_by_the_rank_that_has_it() -> None:
    """While the others wait for that rank."""
    pool = Pool(2)
    with pytest.raises(RuntimeError, match=r"(?s)fail failed on rank 1.*ZeroDivisionError"):
        pool(jobs.fail, 1)
    assert not pool.alive
