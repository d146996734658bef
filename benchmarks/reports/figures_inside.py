"""Figures of what SAL does inside, and of what a switch does from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.reports.drawing import Results, panels_of, save
from benchmarks.reports.palette import SEQUENTIAL, line
from sal_optim.utils.palette import SPECTRUM

# Steps before and after a switch that the zoom shows.
BEFORE, AFTER = 20, 60
SHARES = dict(reversed(SPECTRUM.items()))


def zoom(title: str, by_label: Mapping[str, Results], path: Path) -> bool:
    """The mean accuracy on the tasks before a switch, around it, averaged over switches and seeds.

    False where the stream has no switch or the curves do not look closely at one.
    """
    figure, (panel,) = panels_of(1, width=8.4, height=4.6, title=title)
    drawn = False
    for number, (label, results) in enumerate(by_label.items()):
        sums: dict[int, list[float]] = {}
        for result in results:
            switches = [last for _, last in result["changes"]]
            for step, row in zip(result["curve_steps"], result["curves"], strict=True):
                for task, switch in enumerate(switches, start=1):
                    if -BEFORE <= step - switch <= AFTER:
                        sums.setdefault(step - switch, []).append(float(np.mean(row[:task])))
        # A look that some switches lack would make the mean jump.
        most = max((len(values) for values in sums.values()), default=0)
        kept = sorted(offset for offset, values in sums.items() if len(values) == most)
        if len(kept) < 3:
            continue
        drawn = True
        panel.plot(kept, [100 * np.mean(sums[offset]) for offset in kept], lw=1.3, marker="o",
                   ms=2.5, label=label, **line(number))  # fmt: skip
    panel.axvline(0, color="0.6", lw=0.8, ls=":")
    panel.set_xlabel("steps after a switch of task")
    panel.set_ylabel("accuracy on the tasks before it (%)")
    panel.grid(color="0.93", lw=0.6)
    if drawn:
        figure.legend(loc="outside right center", fontsize=8, frameon=False)
        save(figure, path)
    return drawn


def spectrum(title: str, by_label: Mapping[str, Results], path: Path) -> bool:
    """Shares of weights by stability over steps, and the mean gate; False without SAL."""
    sal = {label: results for label, results in by_label.items() if results[0]["spectrum"]}
    if not sal:
        return False
    width = 4.3 if len(sal) > 1 else 8.4
    figure, panels = panels_of(len(sal), width=width, height=2.4, title=title, across=2)
    for panel, (label, results) in zip(panels, sal.items(), strict=True):
        steps = results[0]["curve_steps"]
        shares = {
            name: 100 * np.mean([result["spectrum"][name] for result in results], axis=0)
            for name in (*SHARES, "mean_gate")
        }
        panel.stackplot(steps, [shares[name] for name in SHARES], colors=list(SHARES.values()),
                        labels=list(SHARES))  # fmt: skip
        panel.plot(steps, shares["mean_gate"], color="black", lw=1.1, label="mean gate")
        for _, last in results[0]["changes"]:
            panel.axvline(last, color="white", lw=0.8, ls=":")
        panel.set_xlim(0, steps[-1])
        panel.set_ylim(0, 100)
        panel.set_title(label, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.set_ylabel("% of weights", fontsize=8)
    figure.supxlabel("training step (dotted: change of task)", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=4,
                  fontsize=8, frameon=False)  # fmt: skip
    save(figure, path)
    return True


def suppressed(title: str, by_label: Mapping[str, Results], path: Path) -> bool:
    """The share of an update that is held back, by parameter tensor and task; False without SAL."""
    sal = {label: results for label, results in by_label.items() if results[0]["suppressed"]}
    if not sal:
        return False
    names = list(next(iter(sal.values()))[0]["suppressed"][0])
    height = 0.9 + 0.24 * len(names)
    width = 3.1 if len(sal) > 1 else 5.0
    figure, panels = panels_of(len(sal), width=width, height=height, title=title, across=3)
    shown = None
    for place, (panel, (label, results)) in enumerate(zip(panels, sal.items(), strict=True)):
        values = 100 * np.mean(
            [[[layers[name] for name in names] for layers in r["suppressed"]] for r in results],
            axis=0,
        )
        tasks = len(values)
        shown = panel.imshow(values.T, cmap=f"{SEQUENTIAL}_r", vmin=0, vmax=100, aspect="auto")
        panel.set_title(label, fontsize=9)
        panel.set_yticks(range(len(names)), names if place % 3 == 0 else [], fontsize=7)
        ticks = range(0, tasks, max(1, tasks // 10))
        panel.set_xticks(ticks, [str(task + 1) for task in ticks], fontsize=7)
        if tasks <= 10:
            for (task, layer), value in np.ndenumerate(values):
                panel.text(task, layer, f"{value:.0f}", ha="center", va="center", fontsize=6.5,
                           color="white" if value > 55 else "black")  # fmt: skip
    figure.supxlabel("during task", fontsize=9)
    if shown is not None:
        bar = figure.colorbar(shown, ax=panels, shrink=0.8, pad=0.015, aspect=25)
        bar.set_label("update held back (%)", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    save(figure, path)
    return True
