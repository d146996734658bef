"""The HTML page of a report: tables and figures in one file that needs no other.

It formats what it is given; what the figures mean is said in metrics/ and tables.py.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.methods import row_of
from benchmarks.metrics.scores import METRICS, Summary
from benchmarks.metrics.spread import LEVEL, RESAMPLES, Difference, paired
from benchmarks.reports.tables import CAPTION, COLUMNS, SCORES, cells

COMPARED = ("average", "worst", "learned", "online")
PAGE = Template("""\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Forgetting: report</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 1180px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 3rem; border-bottom: 2px solid #ddd; }
h3 { margin: 1.8rem 0 .4rem; font-size: 1.05rem; }
nav ul { columns: 2; padding-left: 1.2rem; }
.wide { overflow-x: auto; border: 1px solid #e3e3e3; border-radius: 6px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .6rem; white-space: nowrap; text-align: right; }
th { background: #f4f4f4; position: sticky; top: 0; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
th:first-child { background: #f4f4f4; }
tr:nth-child(even) td { background: #fafafa; }
tr.sal td:first-child { border-left: 4px solid #d62728; }
tr.told td:first-child { border-left: 4px solid #1f77b4; }
tr.control td:first-child { border-left: 4px solid #9467bd; }
td.better { color: #0a7a2f; font-weight: 600; } td.worse { color: #b3261e; font-weight: 600; }
figure { margin: 1.6rem 0; } figure img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: 13px; max-width: 80ch; }
</style></head><body>
<h1>Forgetting</h1>
<p class="note">$caption</p>
<p class="note">Rows are marked by kind: red SAL, blue given the boundaries,
violet controls. Differences are paired
by seed, in points, with a percentile bootstrap interval of $level% over seeds ($resamples
resamples); colored where it excludes 0. With fewer than ten seeds such an interval is too narrow.
Labels with = are points of a grid; (default) is a method without what was tuned for it.</p>
<nav><ul>$links</ul></nav>
$sections
</body></html>
""")


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
    links = "".join(
        f'<li><a href="#s{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(sections)
    )
    return PAGE.substitute(
        caption=escape(CAPTION),
        level=f"{100 * LEVEL:g}",
        resamples=f"{RESAMPLES:,}",
        links=links,
        sections="\n".join(_section(f"s{n}", section) for n, section in enumerate(sections)),
    )


def _section(anchor: str, section: Section) -> str:
    parts = [f'<section id="{anchor}"><h2>{escape(section.title)}</h2>', _table(section)]
    parts += ["<h3>Differences</h3>", differences(section)]
    if len(section.equal) > 1:
        parts += ["<h3>Drift at equal learning</h3>", _equal(section)]
    parts += [
        f'<figure><img alt="{escape(figure.caption)}" src="{_embedded(figure.path)}">'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
        for figure in section.figures
    ]
    return "\n".join([*parts, "</section>"])


def _table(section: Section) -> str:
    first, *others = COLUMNS
    head = "".join(f"<th>{escape(name)}</th>" for name in (first, "seeds", *others))
    rows = []
    for summary in section.summaries:
        label, *figures = cells(summary)
        made = [f"<td>{escape(cell)}</td>" for cell in (label, str(summary.seeds), *figures)]
        rows.append(_row(summary.label, made))
    body = "".join(rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _row(label: str, made: Sequence[str]) -> str:
    row = row_of(label)
    kind = "told" if row.told else "untold"
    if row.is_sal:
        kind = "sal"
    if row.name.startswith("control"):
        kind = "control"
    return f'<tr class="{kind}">{"".join(made)}</tr>'


def differences(section: Section) -> str:
    """Every row against the reference, where both have the same seeds."""
    head = "".join(f"<th>{SCORES[name]}</th>" for name in COMPARED)
    rows = []
    for label in section.results:
        if label == section.reference:
            continue
        gaps = differences_of(section, label)
        if gaps:
            made = [f"<td>{escape(label)}</td><td>{gaps['average'].count}</td>"]
            rows.append(_row(label, made + [_difference(gap) for gap in gaps.values()]))
    note = (
        f'<p class="note">Difference to {escape(section.reference)}, in points of accuracy '
        "[interval]: green is better than it, red worse.</p>"
    )
    return (
        f'{note}<div class="wide"><table><tr><th>row</th><th>seeds</th>{head}</tr>'
        f"{''.join(rows)}</table></div>"
    )


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


def _difference(gap: Difference) -> str:
    kind = ""
    if gap.excludes_zero:
        kind = ' class="better"' if gap.mean > 0 else ' class="worse"'
    interval = f" [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]" if gap.count > 1 else ""
    return f"<td{kind}>{100 * gap.mean:+.1f}{interval}</td>"


def _equal(section: Section) -> str:
    rows = "".join(
        _row(label, [f"<td>{escape(label)}</td><td>{100 * learned:.1f}</td><td>{way:.2f}</td>"])
        for label, learned, way in section.equal
    )
    return (
        '<p class="note">Of each method the row that learned most like '
        f"{escape(section.reference)}, if within a point of it; drift is the way of the weights "
        "since the end of the first task, over their size then.</p>"
        '<div class="wide"><table><tr><th>row</th><th>learning accuracy</th><th>drift</th></tr>'
        f"{rows}</table></div>"
    )


def _embedded(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
