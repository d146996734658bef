"""What an experiment is given and what it returns, and how its numbers are written.

Statistics over seeds are in metrics/spread.py, figures in reports/drawing.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.metrics.spread import Spread, paired
from benchmarks.reports.drawing import save
from benchmarks.runs.records import write_atomically

FOLDER = "companions"


@dataclass(frozen=True)
class Options:
    """What the command line gives to an experiment."""

    seeds: int
    steps: int | None = None  # of a run; None: the experiment's own
    data_dir: str | None = None
    jobs: int = 1
    only: tuple[str, ...] = ()  # parts of the experiment; empty: all

    def length(self, own: int) -> int:
        """Steps of a run whose own length is `own`."""
        return self.steps or own

    def wants(self, part: str) -> bool:
        return not self.only or part in self.only


@dataclass
class Outcome:
    """What came of an experiment: Markdown, values for JSON, and a figure."""

    title: str
    parts: list[str]
    values: dict[str, Any]
    figures: dict[str, Figure] = field(default_factory=dict)

    def write(self, out: Path, name: str, prediction: str, command: str, date: str) -> Path:
        """Write `name`.md, .json, and .png and .svg of each figure; return the first."""
        folder = out / FOLDER
        head = [f"## {self.title}", "", f"`{command}`, {date}.", "", f"Predicted: {prediction}"]
        pictures = []
        for key, figure in self.figures.items():
            file = f"{name}-{key}.png"
            save(figure, folder / file)
            pictures += ["", f"![{key}]({file})"]
        text = "\n".join([*head, "", "\n\n".join(self.parts), *pictures]) + "\n"
        write_atomically(folder / f"{name}.md", text)
        found = {"title": self.title, "command": command, "date": date, "values": self.values}
        write_atomically(folder / f"{name}.json", json.dumps(found, indent=1))
        return folder / f"{name}.md"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is of names, the others of numbers."""
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    return "\n".join([*lines, *["| " + " | ".join(row) + " |" for row in rows]])


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Mean ± SD."""
    found = Spread.of([scale * value for value in values])
    return f"{found.mean:.{digits}f} ± {found.sd:.{digits}f}"


def against(
    ours: Sequence[float], theirs: Sequence[float], scale: float = 1.0, digits: int = 1
) -> str:
    """The paired difference as text."""
    return paired(ours, theirs).text(scale, digits)


def interval(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """A mean and its interval, where what is told is no difference of two arms."""
    found = paired(list(values), [0.0] * len(values))
    mean, low, high = (scale * x for x in (found.mean, found.low, found.high))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
