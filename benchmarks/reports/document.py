"""The tables of a report as Markdown: a row a method, with its difference from the reference.

The page has all figures; a document has what a reader compares. What they mean is in
metrics/scores.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.methods import row_of
from benchmarks.metrics.scores import Summary
from benchmarks.metrics.spread import Difference
from benchmarks.reports.page import Section, differences_of
from benchmarks.reports.tables import SCORES, percent

SHOWN = ("average", "worst", "learned", "lowest")
COMPARED = ("average", "worst")
# With fewer seeds a bootstrap interval says nothing.
LEAST_SEEDS = 5


def document(sections: Sequence[Section]) -> str:
    """One table for each stream."""
    return "\n".join(_table(section) for section in sections)


def _table(section: Section) -> str:
    shown = [SCORES[name] for name in SHOWN]
    versus = [f"{SCORES[name]}, difference to {section.reference}" for name in COMPARED]
    found = ["changes detected", "false alarms"]
    head = ["method", "boundaries", "seeds", *shown, *versus, *found]
    lines = [
        f"### {section.title}",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---" if place < 2 else "---:" for place in range(len(head))) + "|",
        *[_row(section, summary) for summary in section.summaries],
    ]
    return "\n".join(lines) + "\n"


def _row(section: Section, summary: Summary) -> str:
    row, many = row_of(summary.label), summary.seeds > 1
    gaps = {} if summary.label == section.reference else differences_of(section, summary.label)
    return (
        "| "
        + " | ".join(
            [
                summary.label,
                "yes" if row.told else "no",
                str(summary.seeds),
                *[percent(summary.scores[name], many) for name in SHOWN],
                *[_gap(gaps[name]) if gaps else "" for name in COMPARED],
                f"{summary.found:.3g}/{summary.changes:g}" if row.is_sal else "",
                f"{summary.false_alarms:.3g}" if row.is_sal else "",
            ]
        )
        + " |"
    )


def _gap(gap: Difference) -> str:
    """In points, with its interval where there are seeds enough."""
    return f"{100 * gap.mean:+.1f}" if gap.count < LEAST_SEEDS else gap.text(100)
