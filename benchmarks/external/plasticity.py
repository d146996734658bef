"""shibhansh/loss-of-plasticity: its online permuted MNIST, networks and continual backprop.

Its algos/bp.py makes the optimizer in one branch; ours goes there. A task is one pass over all of
MNIST, one example a step or as many as `batch`; what is measured is online accuracy. It wants
60,000 train images, and is run as it is, so that 10,000 digits will not do.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.data.errors import UserError
from benchmarks.data.sets import Dataset
from benchmarks.external.checkouts import commit, on_path, require
from benchmarks.external.idx import SIDE
from benchmarks.external.jobs import Job
from benchmarks.external.optimizers import OURS, figures, optimizer

REPOSITORY = "shibhansh/loss-of-plasticity"
BENCHMARKS = {"permuted": "online permuted MNIST, one pass a task"}
# Its agents: backprop with ours in it, and its continual backprop on SGD.
METHODS: Mapping[str, Sequence[float]] = {**dict.fromkeys(OURS, ()), "cbp": ()}
SETTINGS: Mapping[str, Any] = {
    "tasks": 10,
    "change": 60_000,
    "batch": 16,
    "lr": None,
    "features": 100,
    "layers": 3,
}
LRS = {"adam": 1e-3, "adamw": 1e-3, "sgd": 0.01}
IMAGES = 60_000
LOOKS = 500


def version(checkout: Path | None) -> str:
    """The commit of the checkout."""
    files = ["lop/permuted_mnist/online_expr.py", "lop/algos/bp.py", "lop/nets/deep_ffnn.py"]
    return commit(require(checkout, REPOSITORY, files))


def check(data: Dataset) -> None:
    """Its experiment has 60,000 images of 28 x 28 built in."""
    if data.features != SIDE * SIDE or len(data.train_y) != IMAGES:
        raise UserError(
            f"--data: {data.name!r} has {len(data.train_y)} train images of {data.features} "
            f"pixels; allowed for plasticity: {IMAGES} of 28 x 28, as --data fashion-mnist"
        )


def run(job: Job, data: Dataset, folder: Path, checkout: Path | None) -> dict[str, Any]:
    """One run of its `online_expr`."""
    assert checkout is not None
    tasks, change, batch = (job.settings[name] for name in ("tasks", "change", "batch"))
    if tasks * change < IMAGES or change % batch:
        raise UserError(
            f"--set: tasks={tasks}, change={change}, batch={batch}; allowed for plasticity: "
            f"tasks x change of {IMAGES} or more, and change a multiple of batch"
        )
    on_path(checkout)
    (folder / "data").mkdir()
    parts = [data.train_x, data.train_y, data.test_x, data.test_y]
    (folder / "data" / "mnist_").write_bytes(pickle.dumps(parts))
    np.random.seed(job.seed)
    torch.manual_seed(job.seed)
    experiment: Any = importlib.import_module("lop.permuted_mnist.online_expr")
    backprop: Any = importlib.import_module("lop.algos.bp")
    made: list[Any] = []
    nets: list[Any] = []

    class Net(experiment.DeepFFNN):  # type: ignore[misc]
        """Its network, kept so that it can be looked at afterwards."""

        def __init__(self, **sizes: Any) -> None:
            super().__init__(**sizes)
            nets.append(self)

    def handed(params: Any, lr: float, **_: Any) -> Any:
        made.append(optimizer(job.method, params, lr, job.options))
        return made[-1]

    experiment.DeepFFNN = Net
    if job.method in OURS:
        backprop.optim = SimpleNamespace(SGD=handed, Adam=handed, AdamW=handed)
    settings = job.settings
    rate = settings["lr"]
    if rate is None:
        rate = LRS[job.method.removeprefix("sal-")] if job.method in OURS else LRS["sgd"]
    experiment.online_expr(
        {
            "agent": "bp" if job.method in OURS else job.method,
            "num_tasks": settings["tasks"],
            "change_after": settings["change"],
            "mini_batch_size": settings["batch"],
            "num_features": settings["features"],
            "num_hidden_layers": settings["layers"],
            "step_size": rate,
            "opt": "sgd",
            "data_file": str(folder / "found"),
        }
    )
    right = pickle.loads((folder / "found").read_bytes())["accuracies"]
    length = len(right) // settings["tasks"]
    online = [fmean(part.tolist()) for part in right.split(length)]
    held = _held(nets[-1], data, job)
    return {
        "final": held,
        "online": online,
        "diagnostics": figures(made[-1]) if made else {},
    }


@torch.no_grad()
def _held(net: Any, data: Dataset, job: Job) -> list[float]:
    """Test accuracy at the end on each permutation; these compose, as its loop permutes anew."""
    source = np.random.RandomState(job.seed)
    x, found = data.test_x[:LOOKS], []
    for _ in range(job.settings["tasks"]):
        x = x[:, source.permutation(SIDE * SIDE)]
        source.permutation(IMAGES)
        right = net.predict(x)[0].argmax(1) == data.test_y[:LOOKS]
        found.append(float(right.float().mean()))
    return found
