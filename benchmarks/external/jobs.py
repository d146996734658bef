"""The runs of a harness: what names one, where it is recorded, and how it is started.

A run that is on record is read back; each runs in a process of its own and is recorded when it
ends, so that a command that is stopped goes on where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.data.errors import UserError
from benchmarks.external import harness
from benchmarks.external.optimizers import SAL
from benchmarks.runs.records import NOT_COUNTED, package_sources, read_result, write_result
from benchmarks.runs.settings import Split
from benchmarks.runs.sources import hash_of, source_hash, sources

HERE = Path(__file__).resolve().parents[2]
# What a harness imports and that decides no run: the reading of data is in their fingerprint.
NOT_A_PART = ("benchmarks.external.jobs", "benchmarks.external", "benchmarks.data.sets")


@dataclass(frozen=True)
class Job:
    """Everything that decides the result of one run, in plain values.

    `options` are the method's own: `strength`, or arguments of an optimizer.
    """

    harness: str
    version: str
    benchmark: str
    method: str
    seed: int
    data: str
    fingerprint: str
    split: Split = "test"
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def key(self) -> str:
        """Hash of the job, of the sources that it depends on, and of torch's version."""
        files = sources((harness(self.harness).run,), "benchmarks", (*NOT_COUNTED, *NOT_A_PART))
        if self.method in SAL:
            files = (*files, *package_sources())
        return hash_of(asdict(self), [source_hash(path) for path in files], torch.__version__)

    def path(self, folder: Path) -> Path:
        """Of its record."""
        name = f"{self.method}-seed{self.seed}-{self.key()[:16]}.json"
        return folder / f"{self.harness}-{self.benchmark}-{self.data}" / name


@dataclass(frozen=True)
class Place:
    """Where runs find what they need; no part of a key."""

    records: Path
    data: str
    data_dir: str | None
    checkout: Path | None


def complete(jobs: Sequence[Job], place: Place, workers: int, say: Any) -> list[dict[str, Any]]:
    """The results of all jobs, in their order; `say` has a line for each that was run."""
    found = {job.key(): read_result(job.path(place.records), job.key(), say) for job in jobs}
    missing = {job.key(): job for job in jobs if found[job.key()] is None}

    def compute(job: Job) -> tuple[Job, dict[str, Any]]:
        made = in_a_process(job, place)
        write_result(job.path(place.records), job.key(), made, {"job": asdict(job)})
        return job, made

    with ThreadPoolExecutor(max(1, min(workers, len(missing)))) as pool:
        for job, made in pool.map(compute, missing.values()):
            found[job.key()] = made
            say(f"{job.benchmark} {label(job)}, {job.split}, seed {job.seed}: "
                f"{made['seconds']:.0f} s")  # fmt: skip
    return [result for job in jobs if (result := found[job.key()]) is not None]


def in_a_process(job: Job, place: Place) -> dict[str, Any]:
    """Run one job by child.py; what the harness prints is shown only where the run fails."""
    with tempfile.TemporaryDirectory(prefix="external-") as folder:
        answer = Path(folder) / "result.json"
        request = {
            "job": asdict(job),
            "data": place.data,
            "data_dir": place.data_dir and str(Path(place.data_dir).expanduser().resolve()),
            "checkout": place.checkout and str(place.checkout),
            "answer": str(answer),
        }
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.external.child", json.dumps(request)],
            cwd=HERE, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode or not answer.is_file():
            last = "\n".join(done.stderr.strip().splitlines()[-8:])
            raise UserError(
                f"external {job.harness}: {job.method} on {job.benchmark} with seed {job.seed} "
                f"ended with status {done.returncode}:\n{last}"
            )
        result: dict[str, Any] = json.loads(answer.read_text())
        return result


def _text(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                     for name, value in options.items())  # fmt: skip


def label(job: Job) -> str:
    """The method, with its options where it has any."""
    said = _text(job.options)
    return f"{job.method} ({said})" if said else job.method


def grouped(jobs: Sequence[Job], results: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Labels with their results, in the order in which they first come."""
    rows: dict[str, list[Any]] = {}
    for job, result in zip(jobs, results, strict=True):
        rows.setdefault(label(job), []).append(result)
    yield from rows.items()
