"""Avalanche 0.6: its MNIST benchmarks, its network and its training loop.

Our optimizers go where a user puts them, `Naive(optimizer=…)`; EWC, SI, MAS and LwF are Avalanche's
plugins on Adam. Accuracies are its own metric. Its classic benchmarks read MNIST/raw without a
download, so any data set of 28 x 28 images can stand there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.data.sets import Dataset
from benchmarks.external import AbsentError
from benchmarks.external.avalanche_plugins import plugins_of
from benchmarks.external.idx import require_mnist, write_raw
from benchmarks.external.jobs import Job
from benchmarks.external.optimizers import OURS, figures, optimizer
from benchmarks.external.vision import require_torchvision

BENCHMARKS = {
    "permuted": "PermutedMNIST, 10 experiences",
    "rotated": "RotatedMNIST, 5 experiences",
    "split-class": "SplitMNIST as it comes: 5 x 2 classes of one head",
    "split-domain": "SplitMNIST with labels from zero in each experience: two outputs for all",
}
METHODS: Mapping[str, Sequence[float]] = {
    **dict.fromkeys(OURS, ()),
    "ewc": (1e1, 1e2, 1e3, 1e4, 1e5),
    "si": (1e0, 1e1, 1e2, 1e3, 1e4),
    "mas": (1e-2, 1e-1, 1e0, 1e1),
    "lwf": (1e-1, 1e0, 1e1),
}
# The network's are SimpleMLP's own defaults. None of `tasks` is the benchmark's of the table above.
SETTINGS: Mapping[str, Any] = {
    "tasks": None,
    "epochs": 1,
    "batch": 128,
    "lr": 1e-3,
    "hidden": 512,
    "layers": 1,
    "dropout": 0.5,
}
TASKS = {"permuted": 10}


def version(checkout: Path | None) -> str:
    """Avalanche's, where it is installed."""
    del checkout
    if importlib.util.find_spec("avalanche") is None:
        raise AbsentError("needs Avalanche; `pip install avalanche-lib` installs it")
    require_torchvision()
    return importlib.metadata.version("avalanche-lib")


def check(data: Dataset) -> None:
    """Its MNIST benchmarks have 28 x 28 pixels and 10 classes."""
    require_mnist(data, "avalanche")


def run(job: Job, data: Dataset, folder: Path, checkout: Path | None) -> dict[str, Any]:
    """One strategy through one benchmark; `split` is in the data already."""
    del checkout
    require_torchvision()
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.models import SimpleMLP
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    benchmark = _benchmark(job, write_raw(data, folder))
    settings = job.settings
    torch.manual_seed(job.seed)
    model = SimpleMLP(
        num_classes=10 // _tasks(job) if job.benchmark == "split-domain" else 10,
        input_size=data.features,
        hidden_size=settings["hidden"],
        hidden_layers=settings["layers"],
        drop_rate=settings["dropout"],
    )
    options = dict(job.options)
    plugins = plugins_of(job.method, options.pop("strength", 0.0))
    base = job.method if job.method in OURS else "adam"
    strategy = Naive(
        model=model,
        optimizer=optimizer(base, model.parameters(), settings["lr"], options),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=settings["batch"],
        train_epochs=settings["epochs"],
        eval_mb_size=500,
        plugins=plugins,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True)),
    )
    matrix: list[list[float]] = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        matrix.append(_accuracies(strategy, benchmark, len(matrix) + 1))
    return {"matrix": matrix, "diagnostics": figures(strategy.optimizer)}


def _accuracies(strategy: Any, benchmark: Any, seen: int) -> list[float]:
    """On the experiences trained so far, by Avalanche; 0 on those that come."""
    found = strategy.eval(benchmark.test_stream[:seen])
    row = [value for name, value in sorted(found.items()) if name.startswith("Top1_Acc_Exp/")]
    if len(row) != seen:
        raise RuntimeError(f"Avalanche gave {len(row)} accuracies for {seen} experiences")
    return [*row, *[0.0] * (len(benchmark.test_stream) - seen)]


def _tasks(job: Job) -> int:
    """How many experiences were asked for, else as BENCHMARKS says."""
    found: int = job.settings["tasks"] or TASKS.get(job.benchmark, 5)
    return found


def _benchmark(job: Job, root: Path) -> Any:
    from avalanche.benchmarks import classic

    common = {"n_experiences": _tasks(job), "seed": job.seed, "dataset_root": root}
    if job.benchmark == "permuted":
        return classic.PermutedMNIST(**common)
    if job.benchmark == "rotated":
        return classic.RotatedMNIST(**common)
    domain = job.benchmark == "split-domain"
    return classic.SplitMNIST(**common, class_ids_from_zero_in_each_exp=domain)
