"""The HTML page of a report: tables and figures in one file that needs no other.

It begins with the result, a short table a stream; what the columns mean is said at its end. Here
cells are made, and page.html is the page. What the figures mean is said in metrics/ and tables.py.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.methods import row_of
from benchmarks.metrics.scores import METRICS, Summary, learners
from benchmarks.metrics.spread import LEVEL, RESAMPLES, Difference, paired
from benchmarks.reports.palette import CONTROL, GIVEN, SAL, TASK_FREE
from benchmarks.reports.tables import CAPTION, COLUMNS, SCORES, cells, percent
from sal_optim.utils.palette import BLUE, VERMILLION

COMPARED = ("average", "worst", "learned", "online")
FRONT = ("average", "worst", "learned")
# Kinds of rows: the class of their line, and what the page calls them.
KINDS = {"sal": "SAL", "given": "boundaries given", "free": "task-free", "control": "control"}
COLORS = {"sal": SAL, "given": GIVEN, "free": TASK_FREE, "control": CONTROL}


@dataclass(frozen=True)
class Figure:
    """A caption, and the SVG that goes into the page."""

    caption: str
    path: Path


@dataclass(frozen=True)
class Section:
    """One comparison on one stream."""

    title: str
    summaries: Sequence[Summary]
    results: Mapping[str, Sequence[dict[str, Any]]]
    seeds: Mapping[str, Sequence[int]]
    reference: str
    figures: Sequence[Figure]
    equal: Sequence[tuple[str, float, float]]


def page(sections: Sequence[Section]) -> str:
    """The whole document."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return templates.get_template("page.html").render(
        sections=[_filled(section) for section in sections],
        front_heads=[SCORES[name] for name in FRONT],
        compared=[SCORES[name] for name in COMPARED],
        caption=CAPTION,
        level=f"{100 * LEVEL:g}",
        resamples=f"{RESAMPLES:,}",
        kinds=KINDS,
        colors=COLORS,
        better=BLUE,
        worse=VERMILLION,
    )


def _filled(section: Section) -> dict[str, Any]:
    """What the template shows of a section."""
    first, *others = COLUMNS
    rows = []
    for summary in section.summaries:
        label, *figures = cells(summary)
        rows.append(_row(summary.label, [label, str(summary.seeds), *figures]))
    front, left_out = _front(section)
    return {
        "title": section.title,
        "reference": section.reference,
        "heads": (first, "seeds", *others),
        "rows": rows,
        "front": front,
        "left_out": left_out,
        "differences": list(_differences(section)),
        "equal": [
            _row(label, [label, f"{100 * learned:.1f}", f"{way:.2f}"])
            for label, learned, way in section.equal
        ],
        "figures": [
            {"caption": figure.caption, "source": _embedded(figure.path)}
            for figure in section.figures
        ],
    }


def _front(section: Section) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the first screen, best average first, and the labels of those that never learned.

    Points of a grid are left to the table of all rows, where there are other rows.
    """
    main = [one for one in section.summaries if one.label == row_of(one.label).name]
    wanted = main or section.summaries
    able = set(learners(section.results))
    shown = sorted(
        (one for one in wanted if one.label in able), key=lambda one: -one.scores["average"].mean
    )
    rows = [
        _row(
            one.label,
            [
                one.label,
                "yes" if row_of(one.label).told else "no",
                *(percent(one.scores[name], one.seeds > 1) for name in FRONT),
            ],
        )
        for one in shown
    ]
    return rows, [one.label for one in wanted if one.label not in able]


def _row(label: str, made: Sequence[str]) -> dict[str, Any]:
    row = row_of(label)
    kind = "given" if row.told else "free"
    if row.is_sal:
        kind = "sal"
    if row.summary.startswith("control"):
        kind = "control"
    return {"kind": kind, "cells": made}


def _differences(section: Section) -> list[dict[str, Any]]:
    """Every row against the reference, where both have the same seeds."""
    rows = []
    for label in section.results:
        gaps = {} if label == section.reference else differences_of(section, label)
        if gaps:
            shown = [_difference(gap) for gap in gaps.values()]
            seeds = gaps["average"].count
            rows.append({**_row(label, []), "label": label, "seeds": seeds, "gaps": shown})
    return rows


def differences_of(section: Section, label: str) -> dict[str, Difference]:
    """A row less the reference, paired by the seeds that both have; empty if they share none."""
    other = section.reference
    shared = [seed for seed in section.seeds[label] if seed in section.seeds[other]]
    return {
        name: paired(
            _values(name, section.results[label], section.seeds[label], shared),
            _values(name, section.results[other], section.seeds[other], shared),
        )
        for name in COMPARED
        if shared
    }


def _values(
    name: str, results: Sequence[dict[str, Any]], seeds: Sequence[int], shared: Sequence[int]
) -> list[float]:
    by_seed = dict(zip(seeds, results, strict=True))
    return [METRICS[name](by_seed[seed]) for seed in shared]


def _difference(gap: Difference) -> dict[str, str]:
    kind = ("better" if gap.mean > 0 else "worse") if gap.excludes_zero else ""
    interval = f" [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]" if gap.count > 1 else ""
    return {"kind": kind, "text": f"{100 * gap.mean:+.1f}{interval}"}


def _embedded(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
