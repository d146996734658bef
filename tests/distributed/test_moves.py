"""An importance file from any number of processes to any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from sal_optim import load_importance
from tests.distributed import moves

pytest.importorskip("safetensors")
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("processes")]

STEPS = 100
KINDS: list[dict[str, Any]] = [
    {},
    {"importance": "factored"},
    {"importance": "diagonal"},
    {"state_dtype": "int8"},
]
NAMES = ["kronecker", "factored", "diagonal", "int8"]
PLACES = [
    (2, "fsdp"),
    (4, "fsdp"),
    (4, "tensor-parallel"),
    (4, "hybrid"),
    (4, "fsdp-and-tensor-parallel"),
]
# The default everywhere, and each other kind on rows and columns that are cut together.
WAYS = [(*place, {}) for place in PLACES] + [(*PLACES[-1], settings) for settings in KINDS[1:]]
WAY_NAMES = [f"{world}-{way}" for world, way in PLACES] + NAMES[1:]


@pytest.mark.parametrize("settings", KINDS[:2], ids=NAMES[:2])
def test_from_four_processes_to_two_to_one(
    pool_of: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """The first task is forgotten much less than without the file."""
    path = [str(tmp_path / str(index)) for index in range(2)]
    first = pool_of(4)(moves.train, "fsdp", [1], STEPS, None, None, path[0], settings)[0]
    old = {"at first": moves.old_loss(first)}
    for name, loads in (("4-2-1", path), ("anew", [None, None])):
        weights = pool_of(2)(moves.train, "fsdp", [2], STEPS, first, loads[0], path[1], settings)[0]
        weights = moves.train("single", [2], STEPS, weights, loads[1], None, settings)
        old[name] = moves.old_loss(weights)
    # docs/scale.md has these, beside runs on as many processes.
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["0", "1"]
    assert old["anew"] > 3 * old["at first"]
    assert old["4-2-1"] < 0.6 * old["anew"]
    if not settings:
        assert old["4-2-1"] < 1.6 * old["at first"]


@pytest.mark.parametrize(("world", "way", "settings"), WAYS, ids=WAY_NAMES)
def test_from_one_process_it_is_the_restriction(
    pool_of: Any, tmp_path: Path, world: int, way: str, settings: dict[str, Any]
) -> None:
    """The stability of each weight is what it was; and as many processes write the same file."""
    path = [str(tmp_path / str(index)) for index in range(3)]
    moves.train("single", [1], STEPS, None, None, path[0], settings)
    one = moves.handed_on("single", path[0], None, 256, settings)
    assert float(one["stability"]["0.weight"].max()) > 0.5
    for result in pool_of(world)(moves.handed_on, way, path[0], path[1], 256, settings):
        for name, value in one["stability"].items():
            torch.testing.assert_close(result["stability"][name], value, rtol=0, atol=1e-5)
        for name, state in result["state"].items():
            if "anchor_scale" not in state:
                assert torch.equal(state["anchor"], one["state"][name]["anchor"])
    again = pool_of(world)(moves.handed_on, way, path[1], path[2], 256, settings)
    for name, value in result["stability"].items():
        assert torch.equal(again[0]["stability"][name], value)
    assert Path(path[1]).read_bytes() == Path(path[2]).read_bytes()


@pytest.mark.parametrize(("world", "way"), [PLACES[0], PLACES[-1]])
def test_to_one_process_and_back(pool_of: Any, tmp_path: Path, world: int, way: str) -> None:
    """From blocks, of which some are put together; importance is that of them to a hundredth.

    Four blocks of rank 16 have more directions than one matrix keeps of them at that rank.
    """
    path = [str(tmp_path / str(index)) for index in range(3)]
    pool_of(4)(moves.train, "fsdp", [1], STEPS, None, None, path[0], {"rank": 32})
    four = pool_of(4)(moves.handed_on, "fsdp", path[0], None, 256, {"rank": 32})[0]
    other = pool_of(world)(moves.handed_on, way, path[0], path[1], 256, {"rank": 32})[0]
    single = moves.handed_on("single", path[1], None, 256, {"rank": 32})
    for result in (other, single):
        for name, value in four["stability"].items():
            now = result["stability"][name]
            pair = torch.stack([now.flatten(), value.flatten()])
            assert float(torch.corrcoef(pair)[0, 1]) > 0.9
            assert float((now - value).abs().mean()) < 0.1


def test_blocks_of_fixed_rows_move_exactly(pool_of: Any, tmp_path: Path) -> None:
    path = [str(tmp_path / str(index)) for index in range(2)]
    moves.train("single", [1], STEPS, None, None, path[0], {})
    two = pool_of(2)(moves.handed_on, "fsdp", path[0], path[1], 5, {})[0]
    four = pool_of(4)(moves.handed_on, "fsdp", path[1], None, 5, {})[0]
    names = {"left_basis_of_8", "left_values_of_8", "right_basis_of_8", "right_values_of_8"}
    assert names <= set(two["state"]["0.weight"])
    for key in names:
        assert torch.equal(two["state"]["0.weight"][key], four["state"]["0.weight"][key])
        assert four["state"]["0.weight"][key].any()


def test_beside_a_checkpoint_of_other_blocks(pool_of: Any, tmp_path: Path) -> None:
    """The checkpoint brings moments and anchors, the file the importance."""
    folder, path = str(tmp_path / "folder"), str(tmp_path / "a")
    saved = pool_of(2)(moves.checkpoint, folder, path)[0]
    for result in pool_of(4)(moves.resumed_with_file, folder, path):
        assert "load_importance" in result["told"][0]
        for old, now in zip(saved["state"], result["state"], strict=True):
            for key in ("exp_avg", "exp_avg_sq", "step", "anchor"):
                assert torch.equal(old[key], now[key])
            assert now["evidence_weight"] == old["evidence_weight"] > 0.0
        matrices = [value for value in saved["stability"] if value.dim() == 2 and value.numel() > 8]
        assert len(matrices) == 2
        for old, now in zip(saved["stability"], result["stability"], strict=True):
            if old.dim() < 2:
                assert torch.equal(old, now)
            elif old.numel():
                assert float((old - now).abs().mean()) < 0.1 < float(old.max())
        assert all(bool(value.isfinite().all()) for value in result["end"])


@pytest.mark.parametrize(("world", "way"), PLACES[:4])
def test_out_of_a_checkpoint_as_out_of_a_file(
    pool_of: Any, tmp_path: Path, world: int, way: str
) -> None:
    """To one process and to two: the checkpoint's blocks are those of the file, bit for bit."""
    settings: dict[str, Any] = {}
    folder, path = str(tmp_path / "folder"), str(tmp_path / "a")
    flat = way == "hybrid"
    pool_of(world)(moves.train, way, [1], STEPS, None, None, path, settings, folder, flat)
    single = [moves.handed_on("single", load, None, 256, settings) for load in (path, folder)]
    two = [
        pool_of(2)(moves.handed_on, "fsdp", load, None, 256, settings)[0] for load in (path, folder)
    ]
    for file, checkpoint in (single, two):
        assert float(file["stability"]["0.weight"].max()) > 0.5
        for name, value in file["stability"].items():
            assert torch.equal(checkpoint["stability"][name], value)
        for name, state in file["state"].items():
            assert torch.equal(checkpoint["state"][name]["anchor"], state["anchor"])
            assert checkpoint["state"][name]["evidence_weight"] == state["evidence_weight"] > 0.0


@pytest.mark.parametrize("settings", [{}, {"state_dtype": "int8"}], ids=["cut twice", "int8"])
def test_what_a_checkpoint_does_not_tell(
    pool_of: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Rows that are cut twice may be in two orders; an anchor of eight bits has scales a part."""
    folder, way = str(tmp_path / "folder"), "fsdp" if settings else "fsdp-and-tensor-parallel"
    pool_of(4)(moves.train, way, [1], STEPS, None, None, None, settings, folder)
    with pytest.raises(ValueError, match="use a file of save_importance"):
        moves.handed_on("single", folder, None, 256, settings)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    _, optimizer = moves.begun("single", None, None, {})
    before = dict(optimizer.controller.detector)
    with pytest.raises(ValueError, match="is a folder"):
        load_importance(optimizer, tmp_path)
    dcp.save({"model": {"0.weight": torch.ones(2)}}, checkpoint_id=tmp_path / "other", no_dist=True)
    with pytest.raises(ValueError, match="no importance of this model's parameters"):
        load_importance(optimizer, tmp_path / "other")
    assert optimizer.controller.detector == before


def test_a_process_that_fails_to_write_is_told_by_all(pool_of: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    moves.train("single", [1], STEPS, None, None, path, {})
    before = Path(path).read_bytes()
    found = pool_of(2)(moves.failed_write, path, path)
    assert found[0] == "OSError: no space"
    assert found[1].startswith("RuntimeError: another process failed to write")
    assert Path(path).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        ([[0, 0, 40, 32]], "blocks that are not of its shape"),
        ([[0, 0, 20, 64], [25, 0, 20, 64]], "blocks that are not of its shape"),
        ([[0, 0, 40, 64]], "'left_basis' of shape"),
        ([[-1, 0, 41, 64]], "Invalid blocks value: -1"),
        ([["a", 0, 40, 64]], "Invalid blocks value: 'a'"),
        (3, "can't be read"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(tmp_path: Path, blocks: Any, told: str) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "a"
    moves.train("single", [1], STEPS, None, None, str(path), {})
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["sal_optim.importance"])
        tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    about["blocks"] = {"0.weight": blocks}
    save_file(tensors, path, metadata={"sal_optim.importance": json.dumps(about)})
    _, optimizer = moves.begun("single", None, None, {})
    with pytest.raises(ValueError, match=told):
        load_importance(optimizer, path)
    assert not optimizer.controller.state_of(optimizer.param_groups[0]["params"][0])


def test_another_rank_is_refused(pool_of: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    pool_of(2)(moves.train, "fsdp", [1], STEPS, None, None, path, {})
    with pytest.raises(ValueError, match=r"'left_basis' of shape \(2, 20, 16\).*\(rank=8 here\)"):
        moves.begun("single", None, path, {"rank": 8})
