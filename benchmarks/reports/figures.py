"""Figures of one stream: accuracy matrices as heat maps, and accuracies over steps.

They show means over seeds; where single runs differ in kind (consolidations), every seed is
drawn. Drawing only: nothing is computed here that a table would report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.methods import row_of
from benchmarks.reports.drawing import (
    ACROSS,
    COLORS,
    CONSOLIDATION,
    Results,
    mean_of,
    panels_of,
    save,
)
from sal_optim.utils.palette import SIGNAL


def matrices(title: str, by_method: Mapping[str, Results], path: Path) -> None:
    """A heat map of R[t][j] for each method, all on one scale."""
    figure, panels = panels_of(len(by_method), width=2.9, height=2.75, title=title)
    means = {
        method: 100 * np.mean([result["matrix"] for result in results], axis=0)
        for method, results in by_method.items()
    }
    floor = 10 * np.floor(min(float(mean.min()) for mean in means.values()) / 10)
    shown = None
    for place, (panel, (method, mean)) in enumerate(zip(panels, means.items(), strict=True)):
        tasks = len(mean)
        labels = [str(task + 1) for task in range(tasks)]
        shown = panel.imshow(mean, cmap=COLORS, vmin=floor, vmax=100)
        panel.set_title(f"{method}: {mean[-1].mean():.1f}", fontsize=10)
        panel.set_xticks(range(tasks), labels, fontsize=7)
        panel.set_yticks(range(tasks), labels, fontsize=7)
        if place % ACROSS == 0:
            panel.set_ylabel("after training task", fontsize=8)
        if tasks <= 10:
            dark = floor + 0.6 * (100 - floor)
            for (row, column), value in np.ndenumerate(mean):
                panel.text(
                    column,
                    row,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=5.5 if tasks > 6 else 7.5,
                    color="white" if value < dark else "black",
                )
    figure.supxlabel("accuracy on task", fontsize=9)
    if shown is not None:
        bar = figure.colorbar(shown, ax=panels, shrink=0.6, pad=0.015, aspect=30)
        bar.set_label("accuracy (%)", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    save(figure, path)


def curves(title: str, by_method: Mapping[str, Results], path: Path) -> None:
    """Accuracy on every task over steps, with the changes of task and SAL's consolidations."""
    across = min(2, len(by_method))
    figure, panels = panels_of(
        len(by_method), width=11.2 / across, height=2.1, title=title, across=across
    )
    lowest = min(float(np.min(mean_of(results, "curves"))) for results in by_method.values())
    for place, (panel, (method, results)) in enumerate(zip(panels, by_method.items(), strict=True)):
        steps = results[0]["curve_steps"]
        mean = 100 * mean_of(results, "curves")
        tasks = mean.shape[1]
        changes = results[0]["changes"]
        starts = [0, *[last for _, last in changes]]
        for task in range(tasks):
            color = COLORS(0.92 * task / max(1, tasks - 1))
            since = [index for index, step in enumerate(steps) if step >= starts[task]]
            panel.plot(steps, mean[:, task], color=color, lw=0.5, alpha=0.25)
            panel.plot([steps[i] for i in since], mean[since, task], color=color, lw=1.3)
        panel.plot(steps, _seen(mean, steps, starts), color="black", lw=1.4, ls=(0, (4, 1.5)))
        for first, last in changes:
            panel.axvline(last, color="0.6", lw=0.7, ls=":", zorder=0)
            if first != last:
                panel.axvspan(first, last, color="0.93", zorder=-1)
        given = "boundaries given" if row_of(method).told else "task-free"
        panel.set_title(f"{method} ({given})", fontsize=9)
        top = 104.0
        if row_of(method).is_sal:
            # One row of ticks a seed, above the curves.
            for row, result in enumerate(results):
                height = top + 2.5 * row
                at = result["consolidations"]
                panel.plot(at, [height] * len(at), "|", color=CONSOLIDATION, ms=3.5, mew=1.1)
            top += 2.5 * len(results)
        panel.set_ylim(max(0.0, 100 * lowest - 4), top)
        panel.set_xlim(0, steps[-1])
        panel.tick_params(labelsize=7)
        panel.grid(axis="y", color="0.9", lw=0.5)
        if place % across == 0:
            panel.set_ylabel("accuracy (%)", fontsize=8)
        if tasks <= 10:
            panel.set_xticks([*starts, steps[-1]])
    figure.supxlabel("training step", fontsize=9)
    _legend(figure, tasks, any(row_of(method).is_sal for method in by_method))
    save(figure, path)


def surprise(title: str, by_method: Mapping[str, Results], path: Path) -> bool:
    """The gradient norm over its running mean, and the threshold, over steps, first seed.

    False where no method has a trace.
    """
    traced = {
        method: results[0] for method, results in by_method.items() if results[0].get("trace")
    }
    if not traced:
        return False
    figure, panels = panels_of(len(traced), width=10, height=1.9, title=title, across=1)
    for panel, (method, result) in zip(panels, traced.items(), strict=True):
        for name, color in (("threshold", "0.45"), ("surprise", SIGNAL)):
            values = np.array(
                [np.nan if value is None else value for value in result["trace"][name]], dtype=float
            )
            values[values <= 0] = np.nan
            places = np.arange(len(values)) * result["trace_stride"]
            label = name if name == "threshold" else "gradient norm over its running mean"
            panel.plot(places, values, color=color, lw=0.9, label=label)
        for _, last in result["changes"]:
            panel.axvline(last, color="0.6", lw=0.7, ls=":", zorder=0)
        at = result["detected"]
        panel.plot(
            at,
            [0.96] * len(at),
            "v",
            color=CONSOLIDATION,
            ms=4.5,
            transform=panel.get_xaxis_transform(),
            label="detected change",
        )
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        end = result["curve_steps"][-1]
        panel.set_xlim(0, end)
        if len(result["changes"]) < 10:
            panel.set_xticks([0, *[last for _, last in result["changes"]], end])
        panel.set_title(method, fontsize=9)
        panel.set_ylabel("gradient norm / mean", fontsize=8)
        panel.tick_params(labelsize=7)
    panels[-1].set_xlabel("training step (dotted: change of task)", fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3,
                  fontsize=8, frameon=False)  # fmt: skip
    save(figure, path)
    return True


def _seen(mean: Any, steps: Sequence[int], starts: Sequence[int]) -> list[float]:
    """Mean accuracy over the tasks that have begun."""
    return [
        float(np.mean([mean[index, task] for task, start in enumerate(starts) if step >= start]))
        for index, step in enumerate(steps)
    ]


def _legend(figure: Figure, tasks: int, consolidations: bool) -> None:
    handles = [
        Line2D([], [], color=COLORS(0.0), lw=1.3, label="task 1"),
        Line2D([], [], color=COLORS(0.92), lw=1.3, label=f"task {tasks}"),
        Line2D([], [], color="black", lw=1.4, ls=(0, (4, 1.5)), label="mean of tasks so far"),
        Line2D([], [], color="0.6", lw=0.8, ls=":", label="change of task"),
    ]
    if consolidations:
        handles.append(
            Line2D(
                [], [], color=CONSOLIDATION, marker="|", ls="", label="consolidation, a row a seed"
            )
        )
    figure.legend(
        handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8, frameon=False
    )
