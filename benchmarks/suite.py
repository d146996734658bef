"""Many runs: what is missing is computed in parallel, what is on record is read back.

One process a run, one torch thread a process. Each run is recorded by the process that made it,
so a suite that is stopped goes on where it was.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.data import load
from benchmarks.errors import UserError
from benchmarks.records import Store, key
from benchmarks.runner import run
from benchmarks.settings import Settings


class Tick(Protocol):
    def __call__(self, what: str) -> None: ...


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
    results = {index: store.read(settings) for index, settings in enumerate(plan)}
    missing = [index for index, result in results.items() if result is None]
    console.print(
        f"{len(plan)} runs: {len(plan) - len(missing)} on record, {len(missing)} to compute",
        highlight=False,
    )
    if missing:
        # Long runs first, so that no core waits long for the last one.
        missing.sort(key=lambda index: -plan[index].tasks * plan[index].steps)
        jobs = min(jobs, len(missing))
        workers = Parallel(n_jobs=jobs, return_as="generator_unordered", backend="loky")
        tasks = (
            delayed(compute)(index, plan[index], key(plan[index]), folder, data_dir)
            for index in missing
        )
        with _progress(len(missing), console) as tick, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
            for index, result in workers(tasks):
                results[index] = result
                tick(f"{plan[index].stream} {plan[index].method} seed {plan[index].seed}")
    return [result for _, result in sorted(results.items()) if result is not None]


def compute(
    index: int, settings: Settings, expected: str, folder: Path, data_dir: str | None
) -> tuple[int, dict[str, Any]]:
    """One run, in a worker: compute and record it under the key that the suite expects."""
    if key(settings) != expected:
        # A worker starts after the suite and would import what was edited in between.
        raise UserError("the sources changed while the suite ran; start it again")
    torch.set_num_threads(1)
    result = run(settings, load(settings.data, data_dir))
    Store(folder).write(settings, result)
    return index, result


@contextmanager
def _progress(total: int, console: Console) -> Iterator[Tick]:
    """A bar on a terminal; elsewhere a line for every tenth of the work."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("starting workers", total=total)
            yield lambda what: bar.update(task, advance=1, description=f"{what:<38.38}")
        return
    done = 0

    def line(what: str) -> None:
        nonlocal done
        done += 1
        if done == total or done * 10 // total > (done - 1) * 10 // total:
            console.print(f"{done}/{total} runs", highlight=False)

    yield line
