"""Figures of what is traded for what: stability and plasticity, settings, drift, online accuracy.

Every row of a comparison is a point, grid points included. Drawing only: figures come in as
summaries and results.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from benchmarks.methods import row_of
from benchmarks.metrics.scores import Summary
from benchmarks.reports.drawing import (
    KINDS,
    Results,
    is_control,
    kind_color,
    mean_of,
    panels_of,
    save,
)
from benchmarks.reports.palette import SAL, line
from benchmarks.runs.settings import Settings

MARKERS = "osD^vPX*<>hp"
FEW = 20  # points that can all be named


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both coordinates, by rising first."""
    front = [
        index
        for index, (x, y) in enumerate(points)
        if not any((a >= x and b > y) or (a > x and b >= y) for a, b in points)
    ]
    return sorted(front, key=lambda index: points[index])


def tradeoff(
    title: str, summaries: Sequence[Summary], learners: Collection[str], path: Path
) -> None:
    """Stability, 100 less forgetting, against plasticity, learned; and the Pareto front.

    A row that is not among the `learners` has nothing to forget, and is not on the front.
    """
    figure, (panel,) = panels_of(1, width=8.4, height=5.6, title=title)
    points = [
        (100 * row.scores["learned"].mean, 100 - 100 * row.scores["forgetting"].mean)
        for row in summaries
    ]
    for row, (x, y) in zip(summaries, points, strict=True):
        main = row.label == row_of(row.label).name
        panel.scatter(x, y, s=46 if main else 15, color=kind_color(row.label),
                      alpha=0.95 if main else 0.45, lw=0, zorder=3 if main else 2)  # fmt: skip
    # Joint training sees the old data: it bounds the methods and is none.
    own = [
        index
        for index, row in enumerate(summaries)
        if row.label in learners and not row_of(row.label).kind.joint
    ]
    front = [own[place] for place in pareto([points[index] for index in own])]
    panel.plot([points[i][0] for i in front], [points[i][1] for i in front],
               color="0.2", lw=0.9, ls="--", zorder=1)  # fmt: skip
    main_rows = [row for row in summaries if row.label == row_of(row.label).name]
    named = set(front) | {
        index for index, row in enumerate(summaries)
        # Where points are many, only those that a reader looks for first.
        if (row in main_rows and len(main_rows) <= FEW)
        or row.label in ("adam", "sgd", "ewc", "si", "joint", "lwf", "upgd", "bgd")
        or (kind_color(row.label) == SAL and row.label == row_of(row.label).name)
        or is_control(row.label)
    }  # fmt: skip
    _names(panel, [(summaries[i].label, *points[i]) for i in sorted(named)])
    panel.set_xlabel("plasticity: learning accuracy (%)")
    panel.set_ylabel("stability: 100 less forgetting (%)")
    panel.grid(color="0.93", lw=0.6)
    handles = [Line2D([], [], color=c, marker="o", ls="", label=name) for c, name in KINDS.items()]
    handles.append(Line2D([], [], color="0.2", ls="--", lw=0.9, label="Pareto front"))
    figure.legend(handles=handles, loc="outside upper right", ncols=5, fontsize=8, frameon=False)
    save(figure, path)


def _names(panel: Axes, labels: Sequence[tuple[str, float, float]]) -> None:
    """Write labels beside their points, each moved down until it covers no other."""
    panel.margins(0.08)
    panel.autoscale_view()
    (x0, x1), (y0, y1) = panel.get_xlim(), panel.get_ylim()
    line, taken = (y1 - y0) / 38, list[tuple[float, float, float]]()
    for label, x, y in sorted(labels, key=lambda item: -item[2]):
        width = (x1 - x0) * 0.0088 * len(label)
        margin = (x1 - x0) * 0.012
        flips = x + margin + width > x1
        left = x - width - margin if flips else x + margin
        height = y
        while any(abs(height - b) < line and left < a + w and a < left + width
                  for a, b, w in taken):  # fmt: skip
            height -= line / 4
        taken.append((left, height, width))
        panel.annotate(label, (x, y), xytext=(x - margin if flips else left, height), fontsize=7,
                       ha="right" if flips else "left", va="center",
                       arrowprops={"arrowstyle": "-", "lw": 0.3, "color": "0.6"}
                       if abs(height - y) > line / 2 else None)  # fmt: skip


def axes_of_grid(rows: Mapping[str, Sequence[Settings]]) -> dict[str, dict[str, list[str]]]:
    """For lr and each option: the methods that have it at several values, and their labels."""
    found: dict[str, dict[str, list[str]]] = {}
    for label, settings in rows.items():
        if "=" not in label:
            continue
        for part in label.split(" ")[1:]:
            name = part.partition("=")[0]
            found.setdefault(name, {}).setdefault(settings[0].method, []).append(label)
    return {
        name: {m: labels for m, labels in methods.items() if len(_values(labels, name)) > 1}
        for name, methods in found.items()
        if any(len(_values(labels, name)) > 1 for labels in methods.values())
    }


def _values(labels: Sequence[str], name: str) -> set[str]:
    return {_parts(label).get(name, "") for label in labels}


def _parts(label: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in label.split(" ")[1:] if "=" in part)


def sensitivity(
    title: str, rows: Mapping[str, Sequence[Settings]], summaries: Mapping[str, Summary], path: Path
) -> bool:
    """Average and learned over each tuned quantity; False where nothing was run on a grid."""
    axes = axes_of_grid(rows)
    # One panel for lr, which all have; and one for each option of a method.
    wanted = [
        (name, [method]) for name, methods in axes.items() if name != "lr" for method in methods
    ]
    if "lr" in axes:
        wanted.insert(0, ("lr", list(axes["lr"])))
    if not wanted:
        return False
    figure, panels = panels_of(len(wanted), width=4.3, height=3.3, title=title, across=2)
    for panel, (name, methods) in zip(panels, wanted, strict=True):
        for number, method in enumerate(methods):
            lines: dict[str, list[str]] = {}
            for label in axes[name][method]:
                rest = " ".join(f"{k}={v}" for k, v in _parts(label).items() if k != name)
                lines.setdefault(rest, []).append(label)
            if name == "lr":
                # Of the lines of a method, the one whose best average is highest.
                best = max(lines, key=lambda rest: max(_average(summaries[x]) for x in lines[rest]))
                lines = {best: lines[best]}
            for place, (rest, labels) in enumerate(lines.items()):
                ordered = sorted(labels, key=lambda label: float(_parts(label)[name]))
                xs = [float(_parts(label)[name]) for label in ordered]
                color = line(number if name == "lr" else place)["color"]
                said = " ".join(part for part in (method, rest) if part)
                panel.plot(xs, [_average(summaries[x]) for x in ordered], marker="o", ms=3.5,
                           lw=1.3, color=color, label=said)  # fmt: skip
                panel.plot(xs, [100 * summaries[x].scores["learned"].mean for x in ordered],
                           lw=0.9, ls=":", color=color)  # fmt: skip
        panel.set_xscale("log")
        points = {float(_parts(x)[name]) for method in methods for x in axes[name][method]}
        panel.xaxis.set_major_locator(FixedLocator(sorted(points)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(name if name == "lr" else f"{name} of {methods[0]}", fontsize=9)
        panel.set_ylabel("accuracy (%)", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(color="0.93", lw=0.6)
        panel.legend(fontsize=6.5, frameon=False, title="solid: average, dotted: learning accuracy",
                     title_fontsize=6.5)  # fmt: skip
    save(figure, path)
    return True


def _average(summary: Summary) -> float:
    return 100 * summary.scores["average"].mean


def drift(
    title: str, by_label: Mapping[str, Results], summaries: Mapping[str, Summary], path: Path
) -> None:
    """How far the weights went since the first task, against how well tasks were learned."""
    figure, (panel,) = panels_of(1, width=8.4, height=5.0, title=title)
    points = []
    for label, results in by_label.items():
        ways = [result["drift"][-1] for result in results]
        if any(way is None for way in ways):
            continue
        x, y = 100 * summaries[label].scores["learned"].mean, fmean(ways)
        main = label == row_of(label).name
        panel.scatter(x, y, s=46 if main else 15, color=kind_color(label), lw=0,
                      alpha=0.95 if main else 0.45)  # fmt: skip
        named = main and (label in ("adam", "sgd", "lion", "ewc", "si", "joint")
                          or kind_color(label) == SAL or is_control(label))  # fmt: skip
        if named:
            points.append((label, x, y))
    _names(panel, points)
    panel.set_xlabel("learning accuracy (%)")
    panel.set_ylabel("‖w - w₁‖ / ‖w₁‖ at the end, w₁ the weights after task 1")
    panel.grid(color="0.93", lw=0.6)
    handles = [Line2D([], [], color=c, marker="o", ls="", label=name) for c, name in KINDS.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=4, fontsize=8, frameon=False)
    save(figure, path)


def online(title: str, by_label: Mapping[str, Results], path: Path) -> None:
    """Online accuracy on each task in turn: does a method still learn late in a stream?"""
    figure, (panel,) = panels_of(1, width=8.4, height=4.2, title=title)
    for number, (label, results) in enumerate(by_label.items()):
        values = 100 * mean_of(results, "online")
        marker = MARKERS[number % len(MARKERS)] if len(values) <= 20 else ""
        at = range(1, len(values) + 1)
        panel.plot(at, values, marker=marker, ms=4, lw=1.2, label=label, **line(number))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("task")
    panel.set_ylabel("online accuracy (%)")
    panel.grid(color="0.93", lw=0.6)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    save(figure, path)
