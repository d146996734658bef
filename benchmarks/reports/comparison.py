"""A comparison that is on record: its results read back, and what a page shows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.methods import GROUPS, row_of
from benchmarks.metrics.scores import Summary, learners, summarize
from benchmarks.reports.page import Figure, Section
from benchmarks.runs.manifest import Manifest
from benchmarks.runs.records import Store
from benchmarks.runs.settings import Settings

REFERENCE = "sal-adam"
# Figures with a panel a method show these, where they were run; the tables show all.
PANELS = [row.name for group in ("quick", "controls") for row in GROUPS[group]]


@dataclass(frozen=True)
class Comparison:
    """One manifest with its results: rows whose runs are all on record."""

    title: str
    settings: dict[str, list[Settings]]
    results: dict[str, list[dict[str, Any]]]
    summaries: dict[str, Summary]

    @property
    def main(self) -> dict[str, list[dict[str, Any]]]:
        """Rows that are no points of a grid."""
        return {label: found for label, found in self.results.items() if "=" not in label}


def read(manifest: Manifest, out: Path, messages: Console) -> Comparison | None:
    """The results of a manifest; None where no row is whole."""

    def warn(line: str) -> None:
        messages.print(line.replace("computing it anew", "its row is left out"),
                       style="yellow", soft_wrap=True, highlight=False)  # fmt: skip

    store = Store(out / "records", warn)
    results: dict[str, list[dict[str, Any]]] = {}
    for label, settings in manifest.rows.items():
        try:
            row_of(label)
        except KeyError:
            warn(f"{manifest.title}: {label} is no method of this version; its row is left out")
            continue
        runs = [store.read(one) for one in settings]
        whole = [run for run in runs if run is not None]
        if len(whole) == len(runs):
            results[label] = whole
        else:
            warn(f"{manifest.title}: {label} lacks {len(runs) - len(whole)} of {len(runs)} runs "
                 "made by this code; run `continual` again; its row is left out")  # fmt: skip
    if not results:
        return None
    summaries = {label: summarize(label, runs) for label, runs in results.items()}
    kept = {label: manifest.rows[label] for label in results}
    return Comparison(manifest.title, kept, results, summaries)


def section_of(
    one: Comparison, reference: str | None, panels: Sequence[str] | None, stem: Path
) -> Section:
    """What the page shows of a comparison. Its figures' paths begin with `stem`."""
    chosen = reference or (REFERENCE if REFERENCE in one.results else next(iter(one.results)))
    if chosen not in one.results:
        chosen = next(iter(one.results))
    seeds = {label: [s.seed for s in settings] for label, settings in one.settings.items()}
    return Section(
        one.title,
        list(one.summaries.values()),
        one.results,
        seeds,
        chosen,
        _figures(one, chosen, panels, stem),
        equal_learning(one, chosen),
    )


def equal_learning(one: Comparison, reference: str) -> list[tuple[str, float, float]]:
    """Of each method's rows the one that learned most like the reference: label, learned, drift."""
    goal = one.summaries[reference].scores["learned"].mean
    nearest: dict[str, str] = {}
    for label, summary in one.summaries.items():
        method, gap = row_of(label).name, abs(summary.scores["learned"].mean - goal)
        other = nearest.get(method)
        if other is None or gap < abs(one.summaries[other].scores["learned"].mean - goal):
            nearest[method] = label
    found = []
    for label in nearest.values():
        ways = [result["drift"][-1] for result in one.results[label]]
        learned = one.summaries[label].scores["learned"].mean
        if abs(learned - goal) <= 0.01 and None not in ways:
            found.append((label, learned, sum(ways) / len(ways)))
    return sorted(found, key=lambda item: item[2])


def _figures(
    one: Comparison, reference: str, panels: Sequence[str] | None, stem: Path
) -> list[Figure]:
    # matplotlib is slow to import
    from benchmarks.reports import figures, figures_inside, figures_tradeoff

    wanted = panels or PANELS
    shown = {label: found for label, found in one.results.items() if label in wanted}
    shown = shown or dict(list(one.main.items())[:10]) or dict(list(one.results.items())[:10])
    lines = {label: found for label, found in shown.items() if not label.startswith("published")}
    by_label, rows = one.summaries, list(one.summaries.values())
    made: list[Figure] = []

    def add(name: str, caption: str, drawn: Any) -> None:
        """`drawn` draws to the path that it is given, and says False if there is nothing to."""
        path = stem.parent / f"{stem.name}-{name}.png"
        if drawn(path) is not False:
            made.append(Figure(caption, path.with_suffix(".svg")))

    add(
        "tradeoff",
        "Stability against plasticity. Small points are grid points; no method lies beyond the "
        "dashed front, on which methods that never learned are not. Rows may have different "
        "numbers of seeds: the table has them.",
        lambda path: figures_tradeoff.tradeoff(
            "Stability against plasticity", rows, learners(one.results), path
        ),
    )
    add(
        "matrix",
        "Accuracy on each task (across) after training each (down), mean over seeds.",
        lambda path: figures.matrices("Accuracy matrices and final average", shown, path),
    )
    add(
        "curves",
        "Accuracy on each task over steps, mean over seeds.",
        lambda path: figures.curves("Accuracy over steps", shown, path),
    )
    add(
        "zoom",
        "The stability gap: what a switch does to the tasks before it, step by step.",
        lambda path: figures_inside.zoom("Around a switch of task", lines, path),
    )
    add(
        "sensitivity",
        "How much hangs on one setting: each line varies one, all else as labelled.",
        lambda path: figures_tradeoff.sensitivity("Sensitivity", one.settings, by_label, path),
    )
    add(
        "spectrum",
        "Weights by stability over time: volatile (s < 1/3), neutral, protected (s > 2/3), and the "
        "mean gate 1 - s.",
        lambda path: figures_inside.spectrum("Stability spectrum", shown, path),
    )
    add(
        "suppressed",
        "What is held back of an update, by layer and task.",
        lambda path: figures_inside.suppressed("Update held back, by layer", shown, path),
    )
    add(
        "drift",
        "How far the weights went since the first task.",
        lambda path: figures_tradeoff.drift("Drift and learning", one.results, by_label, path),
    )
    add(
        "online",
        "Accuracy on each batch before it is trained on, by task: plasticity.",
        lambda path: figures_tradeoff.online("Online accuracy by task", lines, path),
    )
    return made
