"""Many runs: what is missing is computed in parallel, what is on record is read back.

One process a run, one torch thread a process. Each run is recorded by the process that made it,
so a suite that is stopped goes on where it was.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from rich.console import Console

from benchmarks.data.errors import UserError
from benchmarks.data.sets import load
from benchmarks.runs.progress import shown
from benchmarks.runs.records import Store, key
from benchmarks.runs.runner import run
from benchmarks.runs.settings import Settings


def default_jobs() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def complete(
    plan: Sequence[Settings], folder: Path, *, data_dir: str | None, jobs: int, console: Console
) -> list[dict[str, Any]]:
    """The results of all runs of the plan, in its order."""

    def warn(line: str) -> None:
        # Progress and messages stay out of the output, which is the table.
        console.print(line, style="yellow", soft_wrap=True, highlight=False)

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out: {str(folder.parent)!r} cannot be written ({error.strerror}); "
            "allowed: a folder, made if missing"
        ) from error
    store = Store(folder, warn)
    keys = [key(settings) for settings in plan]
    # Two rows may ask for one run, as a method does whose tuned settings are its defaults.
    runs = dict(zip(keys, plan, strict=True))
    results = {run_key: store.read(settings) for run_key, settings in runs.items()}
    missing = [run_key for run_key, result in results.items() if result is None]
    console.print(
        f"{len(runs)} runs: {len(runs) - len(missing)} on record, {len(missing)} to compute",
        highlight=False,
    )
    if missing:
        # Long runs first, so that no core waits long for the last one.
        missing.sort(key=lambda run_key: -runs[run_key].tasks * runs[run_key].steps)
        jobs = min(jobs, len(missing))
        workers = Parallel(n_jobs=jobs, return_as="generator_unordered", backend="loky")
        tasks = (delayed(compute)(runs[run_key], run_key, folder, data_dir) for run_key in missing)
        done = [result is not None for result in results.values()]
        with shown(list(runs.values()), done, jobs, console) as tick, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
            for run_key, result in workers(tasks):
                results[run_key] = result
                tick(runs[run_key], result)
    return [result for run_key in keys if (result := results[run_key]) is not None]


def compute(
    settings: Settings, expected: str, folder: Path, data_dir: str | None
) -> tuple[str, dict[str, Any]]:
    """One run, in a worker: compute and record it under the key that the suite expects."""
    if key(settings) != expected:
        # A worker starts after the suite and would import what was edited in between.
        raise UserError("the sources changed while the suite ran; start it again")
    torch.set_num_threads(1)
    result = run(settings, load(settings.data, data_dir))
    Store(folder).write(settings, result)
    return expected, result
