"""Tables and figures of fine-tuning: the same cells for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.finetune.analysis import CHOSEN, LEVELS, Points, front, lost, ratio
from benchmarks.finetune.choices import AVERAGE, REFERENCE
from benchmarks.finetune.methods import METHODS, Row, Trial
from benchmarks.reports.drawing import panels_of, save
from benchmarks.reports.palette import line
from sal_optim.utils.palette import BLACK

Grouped = Mapping[str, Sequence[dict[str, Any]]]
CAPTION = (
    "Least rise of the old text's loss, in nats a character, where the new text's loss has fallen "
    "by that part of what AdamW can gain; '-': not every seed gets there. Of AdamW's and of "
    "WiSE-FT's: the ratio of these rises at {level:.0%}, with a bootstrap interval of 95% over "
    "seeds. End: after the last step. Distance: of the weights from the pretrained ones. Bytes: "
    "kept per parameter beyond weight and gradient. ms: processor time of a whole training step."
)


def rows(grouped: Grouped, trials: Mapping[str, Trial], gained: float) -> list[list[str]]:
    """A row a method, with the head first."""
    levels = [f"{level:.0%}" for level in LEVELS]
    head = [
        "method",
        "setting",
        *levels,
        "of AdamW's",
        "of WiSE-FT's",
        "end new",
        "end rise",
        "distance",
        "bytes",
        "ms",
    ]
    compared = [
        lost(grouped[name], gained, CHOSEN) if name in grouped else None
        for name in (REFERENCE, AVERAGE)
    ]
    made = [head]
    for label, results in grouped.items():
        lr, options = trials[label]
        setting = ", ".join([f"lr {lr:.2g}", *(f"{k} {v:g}" for k, v in options.items())])
        ours = lost(results, gained, CHOSEN)
        cells = [_mean(lost(results, gained, level)) for level in LEVELS]
        ends = [result["points"][-1] for result in results]
        made.append(
            [
                label,
                setting,
                *cells,
                *(_ratio(ours, theirs) for theirs in compared),
                f"{fmean(new for new, _ in ends):.3f}",
                f"{fmean(r['points'][-1][1] - r['points'][0][1] for r in results):.3f}",
                f"{fmean(r['distance'] for r in results):.1f}",
                f"{fmean(r['bytes_per_parameter'] for r in results):.1f}",
                f"{fmean(r['ms_step'] for r in results):.0f}",
            ]
        )
    return made


def _mean(values: Sequence[float] | None) -> str:
    if values is None:
        return "-"
    return f"{fmean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0.0:.3f}"


def _ratio(ours: Sequence[float] | None, theirs: Sequence[float] | None) -> str:
    if ours is None or theirs is None or len(ours) != len(theirs):
        return "-"
    mean, low, high = ratio(ours, theirs)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]" if len(ours) > 1 else f"{mean:.2f}"


def terminal(title: str, made: Sequence[Sequence[str]]) -> Table:
    """For rich."""
    table = Table(title=title, title_justify="left", caption=caption(), caption_justify="left")
    for place, name in enumerate(made[0]):
        table.add_column(name, justify="left" if place < 2 else "right")
    for row in made[1:]:
        table.add_row(*row)
    return table


def caption() -> str:
    return CAPTION.format(level=CHOSEN)


def markdown(title: str, made: Sequence[Sequence[str]]) -> str:
    """The same for a document."""
    rule = "|---|---|" + "---:|" * (len(made[0]) - 2)
    lines = ["| " + " | ".join(row) + " |" for row in made]
    return "\n".join([f"## {title}", "", lines[0], rule, *lines[1:], "", caption(), ""])


def examples(grouped: Grouped, before: Sequence[str]) -> str:
    """How the pretrained network and each method go on from new and old text; the first seed's."""
    parts = ["## Examples", "", "The first 32 characters are held-out text."]
    written = {"pretrained": before, **{k: r[0].get("examples", ()) for k, r in grouped.items()}}
    for label, found in written.items():
        for kind, text in zip(("new", "old"), found, strict=False):
            parts += ["", f"{label}, {kind}:", "", "```text", text.replace("```", "'''"), "```"]
    return "\n".join(parts) + "\n"


def draw(title: str, grouped: Grouped, tried: Mapping[str, Sequence[Points]], path: Path) -> None:
    """Curves of the settings that were chosen, and fronts over all that were tried."""
    figure, panels = panels_of(2 if tried else 1, width=5.4, height=4.4, title=title)
    looks = _looks([*grouped])
    for label, results in grouped.items():
        points = np.mean([result["points"] for result in results], axis=0)
        panels[0].plot(points[:, 0], points[:, 1], marker="o", ms=2.5, **looks[label])
    panels[0].set_title("the whole run, at the chosen setting", fontsize=9)
    for label, runs in tried.items():
        best = np.array(front(runs))
        panels[1].plot(best[:, 0], best[:, 1], **looks[label])
        panels[1].set_title("fronts over all trials, validation text", fontsize=9)
    for panel in panels:
        panel.set_xlabel("loss on the new text")
        panel.set_ylabel("loss on the old text")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=6, frameon=False, ncols=2)
    save(figure, path)


def _looks(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A line of its own for each way: AdamW black, the others by color and dashes, SAL's thick."""
    found: dict[str, dict[str, Any]] = {}
    others = [label for label in labels if _row(label).name != REFERENCE]
    for label in labels:
        own: dict[str, Any] = {"color": BLACK, "linestyle": "-"}
        if label in others:
            own = {**line(others.index(label))}
        thick = _row(label).is_sal and not _row(label).control
        found[label] = {"label": label, "linewidth": 2.0 if thick else 1.1, **own}
    return found


def _row(label: str) -> Row:
    return METHODS[label.split(" ")[0]]
