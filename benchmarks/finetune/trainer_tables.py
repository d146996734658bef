"""What runs of the real model came to, as a table: a row a look. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich.table import Table

from benchmarks.finetune.analysis import CHOSEN, forgetting, gain, target

# Shares of the change that are kept after the last step, by averages with the pretrained weights
# (WiSE-FT) and, where there is evidence, by restore().
KEPT = (0.75, 0.5, 0.25)


def _point(losses: dict[str, float]) -> list[float]:
    """Loss of the new text, and the mean of all others'."""
    return [losses["new"], fmean(value for name, value in losses.items() if name != "new")]


def points(found: dict[str, Any]) -> list[list[float]]:
    """Over the run."""
    return [_point(losses) for losses in found["losses"]]


def back(found: dict[str, Any], by: str) -> list[list[float]] | None:
    """From the last weights to the pretrained ones; None: that was not done."""
    kept = found.get("kept", {}).get(by)
    if kept is None:
        return None
    return [points(found)[0], *(_point(losses) for losses in reversed(kept)), points(found)[-1]]


def rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row a look and a share, with the head first."""
    texts = list(next(iter(results.values()))["losses"][0])
    head = ["way", "step", *texts, f"rise at {CHOSEN:.0%}"]
    made = [[*head, "facts", "instructions", "distance", "bytes", "s a step"]]
    plain = [points(found) for name, found in results.items() if name.startswith("adamw ")]
    gained = gain(plain or [points(found) for found in results.values()])
    for label, found in results.items():

        def row(where: str, losses: dict[str, float], *more: str, of: str = label) -> None:
            cells = [of, where, *(f"{losses[text]:.3f}" for text in texts), *more]
            made.append([*cells, *[""] * (len(made[0]) - len(cells))])

        for step, losses in zip(found["steps"], found["losses"], strict=True):
            if step not in (0, found["steps"][-1]):
                row(str(step), losses)
                continue
            known = [f"{part:.0%}" for part in found["knowledge"][int(step > 0)].values()]
            costs = [found["distance"], found["bytes_per_parameter"], found["seconds_step"]]
            told = [f"{cost:.1f}" for cost in costs] if step else []
            row(str(step), losses, _rise(points(found), gained) if step else "", *known, *told)
        for by, kept in found.get("kept", {}).items():
            for share, losses in zip(KEPT, kept, strict=True):
                curve = back(found, by)
                risen = _rise(curve, gained) if share == KEPT[-1] and curve else ""
                row(f"{share:g} kept by {by}", losses, risen)
    return made


def _rise(curve: list[list[float]], gained: float) -> str:
    """Of the old texts' mean loss where CHOSEN of AdamW's gain is reached."""
    risen = forgetting(curve, target(curve, gained, CHOSEN))
    return "-" if risen is None else f"{risen:.3f}"


def table(made: Sequence[Sequence[str]]) -> Table:
    """For rich."""
    shown = Table(title="SmolLM2-135M-Instruct", title_justify="left")
    for place, name in enumerate(made[0]):
        shown.add_column(name, justify="left" if place < 2 else "right")
    for row in made[1:]:
        shown.add_row(*row)
    return shown


def markdown(made: Sequence[Sequence[str]], results: dict[str, dict[str, Any]]) -> str:
    """The same for a document, and how the model goes on before and after."""
    lines = ["| " + " | ".join(row) + " |" for row in made]
    parts = ["## SmolLM2-135M-Instruct", "", lines[0], "|---|---|" + "---:|" * (len(made[0]) - 2)]
    parts += lines[1:]
    for label, found in results.items():
        for when, texts in zip(("before", "after"), found["examples"], strict=True):
            for text in texts:
                quoted = text.replace("```", "'''")
                parts += ["", f"{label}, {when}:", "", "```text", quoted, "```"]
    return "\n".join(parts) + "\n"
