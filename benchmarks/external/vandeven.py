"""GMvandeVen/continual-learning: its streams, networks, training loop and methods.

Its main.py makes the optimizer by one line, `optim.Adam(…)`. Ours goes there and nothing else is
changed; all other methods are its own, with the strengths that are its defaults, which its author
tuned on all of MNIST. `fromp` stores examples; all others store none. Its seed 0 is a special case
(no permutation in the first context), so seed s here is its seed s + 1.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.data.sets import Dataset
from benchmarks.external import AbsentError
from benchmarks.external.checkouts import commit, on_path, require
from benchmarks.external.idx import RAW, require_mnist, write_raw
from benchmarks.external.jobs import Job
from benchmarks.external.optimizers import OURS, PLAIN, figures, optimizer
from benchmarks.external.vision import require_torchvision

REPOSITORY = "GMvandeVen/continual-learning"
BENCHMARKS = {
    "permuted": "permuted MNIST, domain-incremental, 10 contexts x 5000 iterations",
    "split-task": "split MNIST, task-incremental, 5 contexts x 2000 iterations",
    "split-domain": "split MNIST, domain-incremental",
    "split-class": "split MNIST, class-incremental",
}
# Its own methods by its own flags. `joint` is its upper bound.
FLAGS = {
    "ewc": ["--ewc"],
    "kfac-ewc": ["--kfac-ewc"],
    "si": ["--si"],
    "lwf": ["--lwf"],
    "owm": ["--owm"],
    "ncl": ["--ncl"],
    "fromp": ["--fromp"],
    "joint": ["--joint"],
}
METHODS: Mapping[str, Sequence[float]] = {
    **dict.fromkeys(OURS, ()),
    **dict.fromkeys(FLAGS, ()),
}
# None: what the repository chooses for the benchmark. `fisher_n`: examples of its Fishers and OWM.
SETTINGS: Mapping[str, Any] = {
    "contexts": None,
    "iters": None,
    "batch": None,
    "lr": None,
    "fc_units": None,
    "fisher_n": None,
}
FISHERS = ("ewc", "kfac-ewc", "owm", "ncl")
NEEDED = ("torchvision", "pandas", "tqdm", "matplotlib")


def version(checkout: Path | None) -> str:
    """The commit of the checkout."""
    found = require(checkout, REPOSITORY, ["main.py", "train/train_task_based.py"])
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise AbsentError(f"needs {package}; `pip install {package}` installs it")
    return commit(found)


def check(data: Dataset) -> None:
    """It reads MNIST: 28 x 28 pixels and 10 classes."""
    require_mnist(data, "vandeven")


def run(job: Job, data: Dataset, folder: Path, checkout: Path | None) -> dict[str, Any]:
    """One run of its main.py."""
    require_torchvision()
    assert checkout is not None
    store = folder / "store"
    for name in ("results", "models", "plots"):
        (store / name).mkdir(parents=True)
    write_raw(data, store / "datasets", Path("MNIST") / RAW)
    sys.argv = ["main.py", *_arguments(job, store, len(data.test_y))]
    on_path(checkout)
    main: Any = importlib.import_module("main")
    made: list[Any] = []
    if job.method in OURS:
        # What a user writes in the place of main.py's `optim.Adam`.
        def handed(params: Any, **settings: Any) -> Any:
            rate = params[0]["lr"]
            own = {} if job.method.endswith("sgd") else settings
            made.append(optimizer(job.method, params, rate, {**own, **job.options}))
            return made[-1]

        main.optim = SimpleNamespace(Adam=handed, SGD=torch.optim.SGD)
    main.run(main.handle_inputs(), verbose=False)
    (dictionary,) = (store / "results").glob("dict-*.pkl")
    found = importlib.import_module("utils").load_object(str(dictionary.with_suffix("")))
    by_context = found["acc per context"]
    columns = [by_context[f"context {task + 1}"] for task in range(len(by_context))]
    rows = [[float(value) for value in row] for row in zip(*columns, strict=True)]
    # Joint training has one row, after all contexts.
    matrix = rows * len(columns) if len(rows) == 1 else rows
    return {"matrix": matrix, "diagnostics": figures(made[-1]) if made else {}}


def _arguments(job: Job, store: Path, tests: int) -> list[str]:
    stream, _, scenario = job.benchmark.partition("-")
    given = [
        f"--experiment={'permMNIST' if stream == 'permuted' else 'splitMNIST'}",
        f"--scenario={scenario or 'domain'}",
        f"--seed={job.seed + 1}",
        f"--data-dir={store / 'datasets'}",
        f"--results-dir={store / 'results'}",
        f"--model-dir={store / 'models'}",
        f"--plot-dir={store / 'plots'}",
        "--no-save",
        "--no-gpus",
        "--results-dict",
        f"--acc-n={tests}",
    ]
    for name, value in job.settings.items():
        if value is not None and (name != "fisher_n" or job.method in FISHERS):
            given.append(f"--{name.replace('_', '-')}={value}")
    given += FLAGS.get(job.method, [])
    if job.method not in PLAIN and job.method not in OURS and "strength" in job.options:
        given.append(f"--reg-strength={job.options['strength']}")
    return given
