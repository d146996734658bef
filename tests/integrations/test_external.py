"""The harnesses of others, run for real on few examples, by the command that a user gives.

Avalanche is a package. Checkouts are looked for in the folder that SAL_OPTIM_CHECKOUTS names, by
their repositories' names: continual-learning, upgd and loss-of-plasticity.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.commands import external
from benchmarks.data.sets import Dataset
from benchmarks.external.idx import write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of 28 x 28: a bright square each, at a place of its own, with noise."""
    source = torch.Generator().manual_seed(0)

    def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(count) % 10
        x = 0.3 * torch.rand(count, 28, 28, generator=source)
        for one, label in zip(x, y.tolist(), strict=True):
            one[2 + 12 * (label % 2) :, 5 * (label // 2) :][:6, :5] += 0.6
        return x.flatten(1), y

    made = tmp_path_factory.mktemp("idx")
    write_folder(Dataset("squares", *images(600), *images(100)), made)
    return made


@pytest.fixture(autouse=True)
def _torchvision() -> None:
    importlib.import_module("tests.integrations.shim.sitecustomize")
    pytest.importorskip("torchvision", exc_type=ImportError)


def run(folder: Path, out: Path, *given: str) -> dict[str, list[dict[str, Any]]]:
    """What the command has written of its one benchmark, by label."""
    arguments = [*given, "--data", str(folder), "--seeds", "1", "--out", str(out)]
    assert external.main(arguments) == 0
    (table,) = (out / "external").glob("*.json")
    found: dict[str, list[dict[str, Any]]] = json.loads(table.read_text())
    return found


@pytest.mark.timeout(600)
def test_avalanche(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("avalanche", exc_type=ImportError)
    settings = ["--set", "tasks=2", "--set", "epochs=3", "--set", "batch=20"]
    methods = ["--methods", "adam", "sal-adam", "ewc", "--set", "ewc.strength=100"]
    found = run(folder, tmp_path, "avalanche", "--benchmark", "split-domain", *methods, *settings)
    assert list(found) == ["adam", "sal-adam", "ewc (strength=100)"]
    for (result,) in found.values():
        matrix = result["matrix"]
        assert [len(row) for row in matrix] == [2, 2]
        assert min(matrix[0][0], matrix[1][1]) > 0.8
        assert matrix[0][1] == 0
    # The family's own figures: its optimizer is the one that trained.
    assert found["sal-adam"][0]["diagnostics"]["consolidations"] >= 0
    assert not found["adam"][0]["diagnostics"]
    # A second time nothing is run.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("*.json")}
    run(folder, tmp_path, "avalanche", "--benchmark", "split-domain", *methods, *settings)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def checkout(name: str) -> str:
    place = Path(os.environ.get("SAL_OPTIM_CHECKOUTS", "")) / name
    if "SAL_OPTIM_CHECKOUTS" not in os.environ or not place.is_dir():
        pytest.skip(f"needs a clone of {name} in the folder that SAL_OPTIM_CHECKOUTS names")
    return str(place)


@pytest.mark.timeout(600)
def test_van_de_ven(folder: Path, tmp_path: Path) -> None:
    settings = ["--set", "iters=40", "--set", "batch=20", "--set", "fc_units=50"]
    given = ["vandeven", "--checkout", checkout("continual-learning")]
    methods = ["--methods", "adam", "sal-adam", "si"]
    found = run(folder, tmp_path, *given, "--benchmark", "split-domain", *methods, *settings)
    for (result,) in found.values():
        assert [len(row) for row in result["matrix"]] == [5] * 5
    # Its SI has a strength for longer runs here, and learns little.
    assert min(found[name][0]["matrix"][0][0] for name in ("adam", "sal-adam")) > 0.8
    assert found["adam"][0]["matrix"] != found["si"][0]["matrix"]
    assert not found["adam"][0]["diagnostics"]
    # The optimizer that was handed in has made the steps: it has figures of a run.
    assert found["sal-adam"][0]["diagnostics"]


@pytest.mark.timeout(600)
def test_upgd(folder: Path, tmp_path: Path) -> None:
    settings = ["--set", "steps=400", "--set", "change=200"]
    given = ["upgd", "--checkout", checkout("upgd"), "--methods", "upgd", "sal-sgd"]
    found = run(folder, tmp_path, *given, *settings)
    for (result,) in found.values():
        assert len(result["online"]) == len(result["final"]) == 2
        assert result["online"][1] > 0.2
    assert found["sal-sgd"][0]["diagnostics"]
