"""Real trainers, by the examples: they train, log diagnostics, and resume from their checkpoint."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from tests.integrations.runs import EXAMPLES, leaves, needs, run


@pytest.mark.parametrize(
    ("package", "example"), [("transformers", "transformers_trainer.py"), ("trl", "trl_sft.py")]
)
def test_hugging_face(tmp_path: Path, package: str, example: str) -> None:
    needs(package)
    needs("tensorboard")
    common = ["-m", "sal_optim.run", str(EXAMPLES / example)]
    common += ["--optim", "saladamw", "--optim_args", "protection=0.25,consolidate_every=8"]
    common += ["--learning_rate", "1e-3", "--logging_steps", "4", "--save_steps", "10"]
    common += ["--use_cpu", "--report_to", "tensorboard", "--per_device_train_batch_size", "4"]
    common += ["--max_steps", "20"]
    shown = run([*common, "--output_dir", "whole"], tmp_path)
    assert "sal/protected" in shown, "in the progress bar's log"
    whole = tmp_path / "whole" / "checkpoint-20"
    history = json.loads((whole / "trainer_state.json").read_text())["log_history"]
    found = [entry for entry in history if "sal/consolidations" in entry]
    assert [entry["sal/consolidations"] for entry in found] == [0.0, 1.0, 1.0, 2.0, 2.0]
    if package == "trl":
        assert all("mean_token_accuracy" in entry for entry in found), "beside TRL's own"
    assert history[-1]["loss"] < history[0]["loss"]
    events = next((tmp_path / "whole").rglob("events.out.tfevents*"))
    assert b"sal/mean_gate" in events.read_bytes()
    state = torch.load(whole / "optimizer.pt", weights_only=True)
    assert state["param_groups"][0]["protection"] == 0.25

    half = str(tmp_path / "whole" / "checkpoint-10")
    run([*common, "--output_dir", "rest", "--resume_from_checkpoint", half], tmp_path)
    again = torch.load(tmp_path / "rest" / "checkpoint-20" / "optimizer.pt", weights_only=True)
    assert leaves(again) == leaves(state)


def test_lightning(tmp_path: Path) -> None:
    needs("lightning")
    needs("jsonargparse")
    common = [str(EXAMPLES / "lightning_cli.py"), "fit"]
    common += ["--optimizer=sal_optim.SALAdamW", "--optimizer.lr=1e-3"]
    common += ["--optimizer.consolidate_every=10", "--trainer.accelerator=cpu"]
    common += ["--trainer.log_every_n_steps=5", "--trainer.logger=CSVLogger"]
    common += ["--trainer.logger.save_dir=logs", "--trainer.enable_progress_bar=false"]
    run([*common, "--trainer.max_steps=25"], tmp_path)
    (metrics,) = tmp_path.rglob("metrics.csv")
    rows = list(csv.DictReader(metrics.open()))
    found = [float(row["sal/consolidations"]) for row in rows if row.get("sal/consolidations")]
    assert found == [0.0, 1.0, 1.0, 2.0, 2.0]
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    run([*common, "--trainer.max_steps=50", f"--ckpt_path={checkpoint}"], tmp_path)
    last = max(tmp_path.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    state = torch.load(last, weights_only=False)["optimizer_states"][0]
    assert state["param_groups"][0]["threshold"]["consolidations"] == 5.0
