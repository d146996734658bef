"""Trainers that take any optimizer class, by the examples: they train, log and resume exactly."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import torch

from tests.integrations.runs import EXAMPLES, leaves, needs, run


def test_accelerate(tmp_path: Path) -> None:
    needs("accelerate")
    needs("tensorboard")
    script = str(EXAMPLES / "accelerate_digits.py")
    shown = run([script, "--out", "whole"], tmp_path)
    assert "'sal/consolidations': 2.0" in shown
    (log,) = (tmp_path / "whole" / "log").rglob("events.out.tfevents*")
    assert b"sal/mean_gate" in log.read_bytes()
    half = tmp_path / "whole" / "epoch-2"
    resumed = run([script, "--out", "rest", "--resume", str(half)], tmp_path)
    assert resumed.splitlines()[-1] == shown.splitlines()[-1]
    first, last = half / "optimizer.bin", "epoch-4/optimizer.bin"
    found = same(tmp_path / "rest" / last, tmp_path / "whole" / last)
    assert consolidations(found) == 2.0
    assert consolidations(torch.load(first, weights_only=True)) == 1.0


def test_hydra(tmp_path: Path) -> None:
    needs("hydra")
    script = str(EXAMPLES / "hydra_digits.py")
    settings = ["optimizer.lr=0.01", "optimizer.protection=0.2", "+optimizer.betas=[0.9,0.95]"]
    run([script, *settings, "+optimizer.consolidate_every=40", "hydra.run.dir=run"], tmp_path)
    log = (tmp_path / "run" / "hydra_digits.log").read_text()
    assert [float(x) for x in re.findall("'consolidations': ([0-9.]+)", log)] == [0, 1, 1, 2, 2]
    losses = [float(x) for x in re.findall("loss ([0-9.]+)", log)]
    assert losses[-1] < losses[0]

    lion = ["optimizer._target_=sal_optim.SALLion", "optimizer.lr=0.001", "steps=20"]
    shown = run([script, *lion, "hydra.run.dir=lion"], tmp_path)
    assert "'consolidations': 0.0" in shown


def test_skorch(tmp_path: Path) -> None:
    needs("skorch")
    script = str(EXAMPLES / "skorch_digits.py")
    shown = run([script, "--out", "whole"], tmp_path)
    assert "sal/protected" in shown, "in the printed table"
    history = json.loads((tmp_path / "whole" / "history.json").read_text())
    assert [epoch["sal/consolidations"] for epoch in history] == [0.0, 1.0, 1.0, 2.0]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    run([script, "--out", "parts", "--epochs", "2"], tmp_path)
    run([script, "--out", "parts", "--epochs", "2", "--resume"], tmp_path)
    for file in ("params.pt", "optimizer.pt"):
        same(tmp_path / "parts" / file, tmp_path / "whole" / file)
    again = json.loads((tmp_path / "parts" / "history.json").read_text())
    assert [epoch["train_loss"] for epoch in again] == [epoch["train_loss"] for epoch in history]


def test_ignite(tmp_path: Path) -> None:
    needs("ignite")
    needs("tensorboard")
    script = str(EXAMPLES / "ignite_digits.py")
    shown = run([script, "--out", "whole"], tmp_path)
    assert "'sal/consolidations': 2.0" in shown, "among the engine's metrics"
    (log,) = (tmp_path / "whole" / "log").rglob("events.out.tfevents*")
    assert b"training/sal/mean_gate" in log.read_bytes()
    half, last = (f"checkpoint_{29 * epochs}.pt" for epochs in (2, 4))
    run([script, "--out", "rest", "--resume", f"whole/{half}"], tmp_path)
    found = same(tmp_path / "rest" / last, tmp_path / "whole" / last)
    assert consolidations(found["optimizer"]) == 2.0


def test_fastai(tmp_path: Path) -> None:
    needs("fastai")
    script = str(EXAMPLES / "fastai_digits.py")
    shown = run([script, "--out", "whole"], tmp_path)
    assert "sal/protected" in shown, "in the printed table"
    rows = list(csv.DictReader((tmp_path / "whole" / "history.csv").open()))
    assert [float(row["sal/consolidations"]) for row in rows] == [0.0, 1.0, 1.0, 2.0]
    assert float(rows[-1]["valid_loss"]) < float(rows[0]["valid_loss"])
    for more in ([], ["--resume"]):
        run([script, "--out", "parts", "--epochs", "2", *more], tmp_path)
    file = "models/digits.pth"
    found = same(tmp_path / "parts" / file, tmp_path / "whole" / file)
    assert consolidations(found["opt"]) == 2.0


def test_avalanche(tmp_path: Path) -> None:
    needs("avalanche")
    script = str(EXAMPLES / "avalanche_digits.py")
    shown = run([script, "--out", "whole"], tmp_path)
    found = [float(x) for x in re.findall(r"sal/changes = ([0-9.]+)", shown)]
    assert found == [0.0] * 10 + [1.0] * 10 + [2.0] * 10, "at each change of task, and only there"
    parts = [run([script, "--out", "parts", *more], tmp_path) for more in (["--tasks", "2"], [])]
    assert "experience 2 from train" not in parts[0]
    assert "experience 1 from train" not in parts[1]
    numbers = re.compile(r"(?:sal/|Top1)\S+ = \S+")
    assert numbers.findall("".join(parts)) == numbers.findall(shown)


def same(path: Path, other: Path) -> dict[str, Any]:
    """Two checkpoints hold the same; returns the first."""
    found: dict[str, Any] = torch.load(path, weights_only=True)
    assert leaves(found) == leaves(torch.load(other, weights_only=True))
    return found


def consolidations(state: dict[str, Any]) -> float:
    count: float = state["param_groups"][0]["threshold"]["consolidations"]
    return count
