"""What all figures share: panels, colors, means over seeds, and saving as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.methods import row_of
from benchmarks.reports.palette import CONTROL, CYCLE, GIVEN, SAL, SEQUENTIAL, TASK_FREE

Results = Sequence[dict[str, Any]]
COLORS = matplotlib.colormaps[SEQUENTIAL]
ACROSS = 4  # panels a row
CONSOLIDATION = SAL
KINDS = {SAL: "SAL", GIVEN: "boundaries given", TASK_FREE: "task-free", CONTROL: "control"}
matplotlib.rcParams["axes.prop_cycle"] = cycler(color=CYCLE)


def kind_color(label: str) -> str:
    """The color of a row: SAL, a control, given the boundaries or task-free."""
    row = row_of(label)
    if is_control(label):
        return CONTROL
    if row.is_sal:
        return SAL
    return GIVEN if row.told else TASK_FREE


def is_control(label: str) -> bool:
    """Whether a row puts something else in the place of what SAL does."""
    return row_of(label).summary.startswith("control")


def mean_of(results: Results, name: str) -> Any:
    """A figure of the results, averaged over seeds."""
    return np.mean([result[name] for result in results], axis=0)


def panels_of(
    count: int, *, width: float, height: float, title: str, across: int = ACROSS
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of that size in inches, `across` a row."""
    across = min(across, count)
    rows = -(-count // across)
    # A Figure of its own, not pyplot's: no window system and no global state.
    size = (max(5.0, width * across + 0.6), height * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, across, squeeze=False).flatten()
    for spare in axes[count:]:
        spare.set_visible(False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure, list(axes[:count])


def save(figure: Figure, path: Path) -> None:
    """Write `path`, a .png, and the same as .svg beside it; equal figures give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    with matplotlib.rc_context({"svg.hashsalt": "sal_optim", "svg.fonttype": "path"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
