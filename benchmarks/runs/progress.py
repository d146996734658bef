"""How far a suite is: a live table on a terminal, a line for every tenth of the work elsewhere.

One row a method, with its runs done and the mean of their accuracy so far; under it a bar with the
time left. The time left counts training steps, not runs: streams differ in length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from benchmarks.metrics.scores import average
from benchmarks.runs.settings import Settings


class Tick(Protocol):
    def __call__(self, settings: Settings, result: dict[str, Any]) -> None: ...


class Tally:
    """What is done and what is left, in runs and in steps."""

    def __init__(self, plan: Sequence[Settings], done: Sequence[bool], jobs: int) -> None:
        self.jobs, self.begun = jobs, monotonic()
        self.runs: dict[tuple[str, str], list[int]] = {}  # (stream, method) -> [done, all]
        self.scores: dict[tuple[str, str], list[float]] = {}
        self.total = self.finished = 0
        self.last = "starting workers"
        for settings, known in zip(plan, done, strict=True):
            entry = self.runs.setdefault((settings.stream, settings.method), [0, 0])
            entry[0] += known
            entry[1] += 1
            if not known:
                self.total += settings.tasks * settings.steps

    def add(self, settings: Settings, result: dict[str, Any]) -> None:
        """One more run is done."""
        place = (settings.stream, settings.method)
        self.runs[place][0] += 1
        self.scores.setdefault(place, []).append(average(result["matrix"]))
        self.finished += settings.tasks * settings.steps
        self.last = f"{settings.stream} {settings.method} seed {settings.seed}"

    @property
    def left(self) -> float | None:
        """Seconds left at the pace so far; None before the first run is done."""
        if not self.finished:
            return None
        return (monotonic() - self.begun) * (self.total - self.finished) / self.finished

    def __rich__(self) -> Group:
        table = Table(
            "stream", "method", "runs", "average accuracy %", box=None, header_style="bold"
        )
        open_rows = [(place, n) for place, n in self.runs.items() if n[0] < n[1]]
        # What is done needs no row, and a screen has no room for all of a large suite.
        for place, (done, of) in open_rows[:20]:
            found = self.scores.get(place)
            score = f"{100 * sum(found) / len(found):.1f}" if found else ""
            table.add_row(*place, f"{done}/{of}", score)
        if len(open_rows) > 20:
            table.add_row(f"… {len(open_rows) - 20} more", "", "", "")
        bar = ProgressBar(total=max(1, self.total), completed=self.finished, width=40)
        line = Table.grid(padding=(0, 1))
        line.add_row(bar, f"{duration(self.left)} left, {self.jobs} at a time", self.last)
        return Group(table, line)


def duration(seconds: float | None) -> str:
    """`2:03:04`, `3:04`, or a question mark."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def shown(
    plan: Sequence[Settings], done: Sequence[bool], jobs: int, console: Console
) -> Iterator[Tick]:
    """Shows the tally while the block runs; call what it gives after every run."""
    tally = Tally(plan, done, jobs)
    if console.is_terminal:
        with Live(tally, console=console, refresh_per_second=2, transient=True):
            yield tally.add
        return
    total, count = sum(not known for known in done), 0

    def line(settings: Settings, result: dict[str, Any]) -> None:
        nonlocal count
        tally.add(settings, result)
        count += 1
        if count == total or count * 10 // total > (count - 1) * 10 // total:
            ending = "" if count == total else f", {duration(tally.left)} left"
            console.print(f"{count}/{total} runs{ending}", highlight=False)

    yield line
