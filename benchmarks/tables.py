"""One table a stream, for the terminal and as Markdown: the same cells in both."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, JustifyMethod
from rich.table import Table

from benchmarks.baselines import METHODS
from benchmarks.metrics import Spread, Summary

COLUMNS = (
    "method",
    "told",
    "average",
    "worst task",
    "learned",
    "forgetting",
    "BWT",
    "found",
    "false",
    "ms opt",
    "ms step",
)
# Left out of a narrow terminal, in this order; the Markdown has them all.
EXPENDABLE = ("ms step", "BWT", "told", "false", "forgetting", "found")
CAPTION = (
    "Mean ± SD over seeds, accuracies in %. average, worst task: at the end. learned: each task "
    "just after it was trained. forgetting: fall from a task's best. BWT: change since just "
    "learned. told: whether the method is told the boundaries. found, false: changes of task that "
    "SAL consolidated at, and consolidations elsewhere, per run. ms opt, ms step: time of the "
    "optimizer's part and of a training step, one thread a run, beside other runs."
)


def cells(summary: Summary) -> list[str]:
    """The row of a method."""
    many = summary.seeds > 1
    scores = [_percent(spread, many) for spread in summary.scores.values()]
    row = METHODS[summary.method]
    found = f"{summary.found:.3g}/{summary.changes:g}" if row.is_sal else ""
    return [
        summary.method,
        "yes" if row.told else "no",
        *scores,
        found,
        f"{summary.false_alarms:.3g}" if row.is_sal else "",
        f"{summary.ms_optimizer.mean:.2f}",
        f"{summary.ms_training.mean:.2f}",
    ]


def terminal(title: str, summaries: Sequence[Summary], width: int) -> Table:
    """For rich: best average and worst task bold, and only the columns that fit into `width`."""
    rows = [cells(summary) for summary in summaries]
    for place, name in enumerate(("average", "worst"), start=2):
        best = max(summary.scores[name].mean for summary in summaries)
        for summary, row in zip(summaries, rows, strict=True):
            if summary.scores[name].mean == best:
                row[place] = f"[bold]{row[place]}[/bold]"
    shown = _filled(rows)
    for spare in (None, *EXPENDABLE):
        shown = [index for index in shown if COLUMNS[index] != spare]
        table = Table(title=title, title_justify="left", header_style="bold")
        for index in shown:
            side: JustifyMethod = "left" if index < 2 else "right"
            table.add_column(COLUMNS[index], justify=side, no_wrap=True)
        for row in rows:
            table.add_row(*[row[index] for index in shown])
        if Console(width=1000).measure(table).maximum <= width:
            break
    return table


def markdown(title: str, summaries: Sequence[Summary]) -> str:
    """The same table for a document."""
    rows = [cells(summary) for summary in summaries]
    filled = _filled(rows)
    lines = [
        f"## {title}",
        "",
        _line([COLUMNS[index] for index in filled]),
        _line(["---" if index < 2 else "---:" for index in filled]),
        *[_line([row[index] for index in filled]) for row in rows],
    ]
    return "\n".join(lines) + "\n"


def _filled(rows: Sequence[Sequence[str]]) -> list[int]:
    """Columns that somebody fills."""
    return [index for index in range(len(COLUMNS)) if any(row[index] for row in rows)]


def _line(parts: Sequence[str]) -> str:
    return "| " + " | ".join(parts) + " |"


def _percent(spread: Spread, many: bool) -> str:
    mean = f"{100 * spread.mean:.1f}"
    return f"{mean} ± {100 * spread.sd:.1f}" if many else mean
