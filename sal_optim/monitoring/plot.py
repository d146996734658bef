"""``sal_optim.plot``: pictures of a run, and of what is held of a model, as matplotlib Figures.

Draws what ``writers.py`` wrote and ``report.py`` counts; measures nothing itself. matplotlib is
imported when the first picture is drawn.
"""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sal_optim.monitoring import report
from sal_optim.utils.canvas import new_figure
from sal_optim.utils.palette import BLACK, LIMIT, MARK, SIGNAL, SPECTRUM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("step", *SPECTRUM, "mean_gate", "threshold", "surprise", "consolidations", "drift")
GATE, SURPRISE, THRESHOLD, CONSOLIDATION = BLACK, SIGNAL, LIMIT, MARK
# Layers beyond which a picture grows no longer, and only some names are written.
TALLEST = 60

Series = dict[str, list[float]]


def history(source: str | os.PathLike[str] | Iterable[Mapping[str, float]]) -> "Figure":
    """Draw a run over time: surprise and threshold, stability spectrum, drift.

    Consolidations are marked by vertical lines. Where a run was resumed from an earlier
    checkpoint, the steps that were lost are left out.

    Args:
        source: path of a file that ``CSVWriter`` wrote, or rows: ``Recorder.rows``, or dicts of
            ``step`` and ``diagnostics()``.

    Returns:
        A Figure: a notebook shows it, ``figure.savefig("run.png")`` keeps it.

    Raises:
        ValueError: ``source`` is no such file, lacks a column, or has no rows.
    """
    series = _series(source)
    figure = new_figure(8.0, 6.4, "sal_optim.plot needs")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
    steps = series["step"]

    top.plot(steps, series["surprise"], color=SURPRISE, linewidth=1.0, label="surprise")
    top.plot(steps, series["threshold"], color=THRESHOLD, linewidth=1.2, label="threshold")
    top.set_yscale("log")
    _ticks(top, series["surprise"])
    top.set_ylabel("surprise")

    shares = [series[name] for name in SPECTRUM]
    middle.stackplot(steps, shares, colors=list(SPECTRUM.values()), labels=list(SPECTRUM))
    middle.plot(steps, series["mean_gate"], color=GATE, linewidth=1.6, label="mean gate")
    middle.set_ylim(0.0, 1.0)
    middle.yaxis.set_major_formatter("{x:.0%}")
    middle.set_ylabel("scalars")

    bottom.plot(steps, series["drift"], color=GATE, linewidth=1.2, label="drift")
    bottom.axhline(
        report.DRIFTING, color=THRESHOLD, linewidth=1.0, linestyle=":", label="drifting above"
    )
    bottom.set_ylim(bottom=0.0)
    bottom.yaxis.set_major_formatter("{x:.0%}")
    bottom.set_ylabel("drift from\nthe anchor")
    bottom.set_xlabel("step")

    marks = _consolidations(series)
    if marks:
        above = top.get_xaxis_transform()
        heights = [1.03] * len(marks)
        top.plot(
            marks, heights, "v", color=GATE, transform=above, clip_on=False, label="consolidation"
        )
    for axes in (top, middle, bottom):
        for step in marks:
            axes.axvline(step, color=CONSOLIDATION, linewidth=0.8, linestyle="--", zorder=1.5)
        axes.margins(x=0.0)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
        _plain(axes)
    figure.align_ylabels()
    return figure


def layers(optimizer: object, model: nn.Module) -> "Figure":
    """Draw what is preserved of each layer: its stability spectrum, and its mean gate.

    The mean gate is the share of a gradient that is let through; what it leaves out is preserved.
    A layer is a module with parameters of its own, such as a ``Linear`` with weight and bias.

    Args:
        optimizer: one of the family, a ``CommunicationLayer``, or the optimizer inside of one.
        model: whose layers are shown, by name, where the optimizer has their parameters.

    Returns:
        A Figure, as :func:`history` does.

    Raises:
        ValueError: the optimizer has none of the parameters of ``model``.
    """
    found = _by_layer(report.rows(optimizer, model))
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    names = list(found)
    figure = new_figure(8.0, 1.3 + 0.3 * min(len(names), TALLEST), "sal_optim.plot needs")
    axes = figure.subplots()
    places = range(len(names))
    left = [0.0] * len(names)
    for kind, color in SPECTRUM.items():
        shares = [found[name][kind] for name in names]
        axes.barh(places, shares, left=left, color=color, height=0.72, label=kind)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    gates = [found[name]["mean_gate"] for name in names]
    axes.plot(gates, places, "D", color=GATE, markeredgecolor="white", label="mean gate")
    every = max(1, -(-len(names) // TALLEST))
    for place in places[::every]:
        axes.text(1.02, place, f"{gates[place]:.2f}", va="center", fontsize=9)
    labels = [f"{name}  {kinds.get(name, '')}".strip() for name in names]
    axes.set_yticks(list(places[::every]), labels[::every], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0.0, 1.0)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("scalars by stability; mean gate: share of a gradient that is let through")
    axes.tick_params(axis="y", length=0)
    _plain(axes)
    handles, titles = axes.get_legend_handles_labels()
    order = [*range(1, len(titles)), 0]  # lines come before bars
    figure.legend(
        [handles[index] for index in order],
        [titles[index] for index in order],
        loc="outside upper center",
        ncols=len(order),
        frameon=False,
        fontsize=9,
    )
    return figure


def _ticks(axes: "Axes", values: list[float]) -> None:
    """Plain numbers on a logarithmic axis: 1, 2, 5, 10 …, or powers of 10 over a wide range."""
    from matplotlib.ticker import LogLocator, NullFormatter

    positive = [value for value in values if value > 0.0] or [1.0]
    wide = max(positive) > 500.0 * min(positive)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plain(axes: "Axes") -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _by_layer(found: list[report.Row]) -> dict[str, dict[str, float]]:
    """The shares of each layer, from those of its tensors by their size."""
    sizes: dict[str, int] = {}
    sums: dict[str, dict[str, float]] = {}
    for row in found:
        name = row.name.rpartition(".")[0] or row.name
        sizes[name] = sizes.get(name, 0) + row.size
        mine = sums.setdefault(name, dict.fromkeys((*SPECTRUM, "mean_gate"), 0.0))
        for kind in mine:
            mine[kind] += getattr(row, kind) * row.size
    return {
        name: {kind: total / sizes[name] for kind, total in mine.items()}
        for name, mine in sums.items()
        if sizes[name]
    }


def _consolidations(series: Series) -> list[float]:
    """The steps at which there is one more than in the row before."""
    steps, counts = series["step"], series["consolidations"]
    return [
        step
        for step, before, now in zip(steps[1:], counts, counts[1:], strict=False)
        if now > before
    ]


def _series(source: Any) -> Series:
    allowed = (
        "source must be the path of a file that CSVWriter wrote, or rows of diagnostics with their "
        "step, such as Recorder.rows"
    )
    if isinstance(source, (str, os.PathLike)):
        label = f"Invalid source value: {str(source)!r}"
        if not Path(source).is_file():
            raise ValueError(f"{label}, which is no file; {allowed}")
        with open(source, newline="", encoding="utf-8", errors="replace") as file:
            content = file.read()
        # A run that goes on, or was killed, may leave a part of a row.
        whole = content[: content.rfind("\n") + 1]
        rows: list[Any] = list(csv.DictReader(io.StringIO(whole)))
    else:
        label = f"Invalid source value: a {type(source).__name__}"
        if not isinstance(source, Iterable):
            raise TypeError(f"{label}; {allowed}")
        rows = list(source)
        if not all(isinstance(row, Mapping) for row in rows):
            raise TypeError(f"{label} of a {type(rows[0]).__name__}; {allowed}")
    if not rows:
        raise ValueError(f"{label} without rows; {allowed}")
    missing = [name for name in COLUMNS if name not in rows[0]]
    if missing:
        raise ValueError(f"{label} without {', '.join(missing)}; {allowed}")
    try:
        values = [{name: float(row[name]) for name in COLUMNS} for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{label} with a row that is not numbers; {allowed}") from error
    kept = _without_lost(values)
    return {name: [row[name] for row in kept] for name in COLUMNS}


def _without_lost(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows without those that a resumed run made anew: steps only rise."""
    kept: list[dict[str, float]] = []
    least = float("inf")
    for row in reversed(rows):
        if row["step"] < least:
            least = row["step"]
            kept.append(row)
    return kept[::-1]
