"""`python -m benchmarks report`: everything on record under --out as one self-contained HTML page.

It computes nothing anew: it reads the manifests that `continual` left and the records they name. A
run whose record is gone, or was made by other code, is reported and its row left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.data.errors import UserError, require_choice
from benchmarks.document import document
from benchmarks.methods import GROUPS, row_of
from benchmarks.metrics.scores import Summary, summarize
from benchmarks.options import parser
from benchmarks.page import Figure, Section, page
from benchmarks.runs.manifest import Manifest, manifests
from benchmarks.runs.records import Store, write_atomically
from benchmarks.runs.settings import Settings

EXAMPLES = """\
examples:
  python -m benchmarks continual --methods all --seeds 10
  python -m benchmarks continual --methods adam ewc sal-adam --grid lr=3e-4,1e-3,3e-3
  python -m benchmarks report
  python -m benchmarks report --reference ewc --write results/against-ewc.html
  python -m benchmarks report --markdown docs/tables.md
"""
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


def arguments() -> argparse.ArgumentParser:
    made = parser("python -m benchmarks report", "Make one HTML page of all results.", EXAMPLES)
    add = made.add_argument
    add("--out", type=Path, default=Path("results"), help="folder with results (default: results)")
    add("--write", type=Path, help="the page (default: report.html in --out)")
    add("--markdown", type=Path, help="also write the tables as Markdown, for a document")
    add("--reference", help=f"row that the others are compared with (default: {REFERENCE})")
    add("--panels", nargs="+", metavar="ROW", help="rows that get a panel in the figures")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    messages = Console(stderr=True)
    found = list(manifests(args.out))
    if not found:
        raise UserError(
            f"--out: {str(args.out)!r} has no results; allowed: a folder that "
            "`python -m benchmarks continual --out` wrote"
        )
    comparisons = [made for one in found if (made := _read(one, args.out, messages))]
    labels = list(dict.fromkeys(label for one in comparisons for label in one.results))
    for name, given in (("--reference", [args.reference]), ("--panels", args.panels or [])):
        for label in given:
            if label is not None:
                require_choice(name, label, labels)
    folder = args.out / "figures" / "report"
    sections = [
        _section(one, args.reference, args.panels, folder / f"{number:02}")
        for number, one in enumerate(comparisons)
    ]
    target = args.write or args.out / "report.html"
    write_atomically(target, page(sections))
    if args.markdown:
        write_atomically(args.markdown, document(sections))
    Console().print(f"written: {target} and its figures under {folder}", highlight=False)
    return 0


def _read(manifest: Manifest, out: Path, messages: Console) -> Comparison | None:
    def warn(line: str) -> None:
        messages.print(line.replace("computing it anew", "its row is left out"),
                       style="yellow", soft_wrap=True, highlight=False)  # fmt: skip

    store = Store(out / "records", warn)
    results: dict[str, list[dict[str, Any]]] = {}
    for label, settings in manifest.rows.items():
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


def _section(
    one: Comparison, reference: str | None, panels: Sequence[str] | None, stem: Path
) -> Section:
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
    from benchmarks import figures, figures_inside, figures_tradeoff  # matplotlib is slow to import

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
        "dashed front. Rows may have different numbers of seeds: the table has them.",
        lambda path: figures_tradeoff.tradeoff("Stability against plasticity", rows, path),
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
