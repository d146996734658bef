"""mohmdelsayed/upgd: its streaming input-permuted MNIST, networks, learners and optimizers.

A learner of its is a class with an optimizer; ours is one more, with the named parameters that it
passes. One example a step, and a new permutation every 5000. It measures online accuracy, before
the step that learns from the label. Beside that we look, after its loop has ended, at what the
network still knows of the permutations: test images, through its own transform of each.

Its second-order learners need HesScale and a BackPACK that import what torch no longer has. They
are not run here. Its files import all learners at once, so names stand in the place of these two
packages, and any use of them is refused.

It draws permutations from an unseeded generator, so that no two runs see the same stream; here the
generator is seeded by the run's seed, and every method has the same permutations.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.data.sets import Dataset
from benchmarks.external.checkouts import commit, on_path, require
from benchmarks.external.idx import SIDE, require_mnist, write_raw
from benchmarks.external.jobs import Job
from benchmarks.external.optimizers import OURS, SAL, figures, optimizer
from benchmarks.external.vision import require_torchvision

REPOSITORY = "mohmdelsayed/upgd"
BENCHMARKS = {"input-permuted": "input-permuted MNIST, one example a step"}
TASK = "input_permuted_mnist"
# Its learners by its names, with what the paper's figures for this stream have; lr is a setting.
LEARNERS: dict[str, tuple[str, dict[str, float]]] = {
    "upgd": (
        "upgd_fo_global",
        {"lr": 0.01, "sigma": 0.1, "beta_utility": 0.9999, "weight_decay": 0.001},
    ),
    "its-sgd": ("sgd", {"lr": 0.01}),
    "its-adam": ("adam", {"lr": 1e-4}),
}
LRS = {"adam": 1e-4, "adamw": 1e-4, "sgd": 0.01}
METHODS: Mapping[str, Sequence[float]] = {
    **dict.fromkeys(LEARNERS, ()),
    **dict.fromkeys(OURS, ()),
}
# A million steps of the paper are 200 permutations. `lr` is of our optimizers; None: as in LRS.
SETTINGS: Mapping[str, Any] = {"steps": 50_000, "change": 5_000, "lr": None}
LOOKS = 500


def version(checkout: Path | None) -> str:
    """The commit of the checkout."""
    files = ["core/run/run.py", "core/task/input_permuted_mnist.py"]
    found = require(checkout, REPOSITORY, files)
    require_torchvision()
    return commit(found)


def check(data: Dataset) -> None:
    """It reads MNIST: 28 x 28 pixels and 10 classes."""
    require_mnist(data, "upgd")


def run(job: Job, data: Dataset, folder: Path, checkout: Path | None) -> dict[str, Any]:
    """One run of its loop, `core.run.run.Run`."""
    require_torchvision()
    assert checkout is not None
    on_path(checkout)
    _without_second_order()
    write_raw(data, folder / "dataset")
    _seed_permutations(job.seed)
    core = importlib.import_module("core.run.run")
    stream = importlib.import_module("core.task.input_permuted_mnist")
    change = int(job.settings["change"])
    shown: list[torch.Tensor] = []

    class Remembering(stream.InputPermutedMNIST):  # type: ignore[misc,name-defined]
        """Its stream; what each permutation does to pixel numbers is noted."""

        def __init__(self) -> None:
            super().__init__(change_freq=change)

        def permute(self) -> None:
            super().permute()
            shown.append(self.permute_transform(torch.arange(SIDE * SIDE)))

    core.tasks[TASK] = Remembering
    learner, options = _learner(job, core)
    runner = core.Run(
        n_samples=job.settings["steps"],
        task=TASK,
        learner=learner,
        save_path=str(folder / "logs"),
        seed=job.seed,
        network="fully_connected_relu",
        **options,
    )
    runner.start()
    (log,) = (folder / "logs").rglob("*.json")
    right = json.loads(log.read_text())["accuracies"]
    online = [fmean(right[start : start + change]) for start in range(0, len(right), change)]
    x = (data.test_x[:LOOKS] - 0.5) / 0.5  # as its transform normalizes
    with torch.no_grad():
        held = [
            float((runner.learner.network(x[:, order]).argmax(1) == data.test_y[:LOOKS])
                  .float().mean())
            for order in shown
        ]  # fmt: skip
    made = MADE[-1] if MADE else None
    return {
        "final": held,
        "online": online,
        "diagnostics": figures(made) if made is not None else {},
    }


MADE: list[torch.optim.Optimizer] = []


def _learner(job: Job, core: Any) -> tuple[str, dict[str, Any]]:
    """The name of a learner, one of its or ours beside them, and the options of its optimizer."""
    if job.method in LEARNERS:
        name, options = LEARNERS[job.method]
        return name, dict(options)
    base = importlib.import_module("core.learner.learner")

    class Ours(base.Learner):  # type: ignore[misc,name-defined]
        """What a user adds to use our optimizer."""

        def __init__(self, network: Any = None, optim_kwargs: Any = None) -> None:
            def made(named: Iterable[tuple[str, torch.Tensor]], lr: float) -> Any:
                # Named parameters go to the family as they are.
                params = named if job.method in SAL else [p for _, p in named]
                MADE.append(optimizer(job.method, params, lr, job.options))
                return MADE[-1]

            super().__init__(job.method, network, made, optim_kwargs)

    core.learners[job.method] = Ours
    rate = job.settings["lr"]
    return job.method, {"lr": LRS[job.method.removeprefix("sal-")] if rate is None else rate}


class Refused:
    """In the place of what only second-order learners use: it can be made, and nothing more."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError("second-order learners of UPGD cannot be run with this torch")


# Modules that its files import, and what they take from them.
SECOND_ORDER = {
    "backpack": ("backpack", "extend"),
    "HesScale": (),
    "HesScale.hesscale": ("HesScale",),
    "hesscale": ("HesScale",),
    "hesscale.core": (),
    "hesscale.core.hesscale_base": ("BaseModuleHesScale",),
    "hesscale.core.derivatives": ("LinearDerivativesHesScale",),
}


def _without_second_order() -> None:
    for name, wanted in SECOND_ORDER.items():
        module = ModuleType(name)
        for one in wanted:
            setattr(module, one, Refused)
        sys.modules[name] = module


def _seed_permutations(seed: int) -> None:
    """Numpy's generators without a seed, in this process: seeded by the run's, one by one."""
    original, count = np.random.default_rng, iter(range(10**9))

    def seeded(given: Any = None) -> np.random.Generator:
        return original([seed, next(count)] if given is None else given)

    np.random.default_rng = seeded  # type: ignore[assignment]
