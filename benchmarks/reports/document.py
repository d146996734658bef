"""The tables of a report as Markdown: one of all streams, and one a stream with differences.

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
    """A summary where there are several streams, and one table for each."""
    tables = [_table(section) for section in sections]
    return "\n".join([_summary(sections), *tables] if len(sections) > 1 else tables)


def _summary(sections: Sequence[Section]) -> str:
    """Average / minimum at the end, and learning accuracy, of each method on each stream."""
    by_stream = [{one.label: one for one in section.summaries} for section in sections]
    labels = dict.fromkeys(label for found in by_stream for label in found)
    head = ["method", "boundaries", *[section.title.partition(":")[0] for section in sections]]
    lines = [
        "Average / minimum accuracy over tasks at the end (accuracy when just learned), in %.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|---|" + "---:|" * len(sections),
    ]
    for label in labels:
        cells = [_three(found[label]) if label in found else "" for found in by_stream]
        told = "yes" if row_of(label).told else "no"
        lines.append("| " + " | ".join([label, told, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _three(summary: Summary) -> str:
    average, worst, learned = (
        percent(summary.scores[name], False) for name in ("average", "worst", "learned")
    )
    return f"{average} / {worst} ({learned})"


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
