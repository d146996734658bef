"""One table a stream, for the terminal and as Markdown: the same cells in both."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, JustifyMethod
from rich.table import Table

from benchmarks.methods import row_of
from benchmarks.metrics.scores import Summary
from benchmarks.metrics.spread import Spread

# Scores in the order of their columns.
SCORES = {
    "average": "average accuracy",
    "worst": "minimum",
    "learned": "learning accuracy",
    "forgetting": "forgetting",
    "bwt": "BWT",
    "fwt": "FWT",
    "lowest": "min-ACC",
    "gap": "gap",
    "online": "online",
    "late": "late",
}
COLUMNS = (
    "method",
    "boundaries",
    *SCORES.values(),
    "capacity",
    "SEM",
    "changes detected",
    "false alarms",
    "optimizer ms",
    "step ms",
    "bytes",
)
# Left out of a narrow terminal, in this order; the Markdown has them all.
EXPENDABLE = (
    "late",
    "capacity",
    "FWT",
    "SEM",
    "gap",
    "bytes",
    "step ms",
    "BWT",
    "min-ACC",
    "boundaries",
    "false alarms",
    "online",
    "forgetting",
    "changes detected",
)
CAPTION = (
    "Mean ± SD over seeds, accuracies in %; SEM: the standard error of the average accuracy. "
    "boundaries: whether the method is given the task boundaries. average accuracy (ACC), minimum: "
    "over tasks, at the end. learning accuracy (LA): of each task right after training it. "
    "forgetting: fall from a task's best. BWT: change since right after training it. FWT: a task "
    "just before it is trained, less an untrained network. min-ACC: the lowest accuracy of each "
    "task since it ended (De Lange et al. 2023). gap: area of the falls after switches that are "
    "made good, averaged over steps. online: of each batch before it is trained on; late: its last "
    "tenth of tasks less its first. capacity: tasks' worth above chance held at the end. changes "
    "detected, false alarms: changes of task that SAL's change detector saw, and changes that it "
    "saw elsewhere, per run. optimizer ms, step ms: time of the optimizer's part and of a training "
    "step, one thread a run, beside other runs. bytes: kept per parameter beyond weight and "
    "gradient."
)


def cells(summary: Summary) -> list[str]:
    """The row of a method."""
    many = summary.seeds > 1
    row, capacity = row_of(summary.label), summary.scores["capacity"]
    found = f"{summary.found:.3g}/{summary.changes:g}" if row.is_sal else ""
    return [
        summary.label,
        "yes" if row.told else "no",
        *[percent(summary.scores[name], many) for name in SCORES],
        f"{capacity.mean:.1f} ± {capacity.sd:.1f}" if many else f"{capacity.mean:.1f}",
        f"{100 * summary.scores['average'].sem:.2f}" if many else "",
        found,
        f"{summary.false_alarms:.3g}" if row.is_sal else "",
        f"{summary.ms_optimizer.mean:.2f}",
        f"{summary.ms_training.mean:.2f}",
        f"{summary.bytes_per_parameter:.1f}",
    ]


def terminal(title: str, summaries: Sequence[Summary], width: int) -> Table:
    """For rich: the best average and minimum bold, and only the columns that fit into `width`."""
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
            table.add_column(COLUMNS[index].replace(" ", "\n"), justify=side, no_wrap=True)
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


def percent(spread: Spread, many: bool) -> str:
    """Mean ± SD, or the value of a single seed."""
    mean = f"{100 * spread.mean:.1f}"
    return f"{mean} ± {100 * spread.sd:.1f}" if many else mean
