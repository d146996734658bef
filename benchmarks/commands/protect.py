"""`--protect NAME`: an optimizer alone and in a CommunicationLayer, two rows of one comparison.

Here names are checked, and the two rows put side by side; what the rows are is in methods/.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.data.errors import UserError
from benchmarks.methods import METHODS, ROWS, SUFFIX, Method
from benchmarks.methods.packages import UNFIT, optimizer_names
from benchmarks.metrics.scores import METRICS, summarize
from benchmarks.metrics.spread import Spread
from benchmarks.reports.tables import SCORES, percent
from benchmarks.runs.checks import step

SHOWN = {name: SCORES[name] for name in ("average", "worst", "learned")}
ALL, PACKAGE = "all", "torch_optimizer"
PLAIN = [row.name for row in ROWS if row.kind is Method]
ALLOWED = (
    f"{', '.join(PLAIN)}, MODULE.CLASS of an installed optimizer, as {PACKAGE}.Yogi, "
    f"and {ALL} of {PACKAGE}'s"
)


def protected(given: Sequence[str]) -> list[str]:
    """Names of methods: each optimizer that was asked for, and the same in a layer after it."""
    asked = [part for item in given for part in item.split(",") if part]
    if not asked:
        raise UserError(f"--protect: no name given; allowed: {ALLOWED}")
    chosen = dict.fromkeys(name for one in asked for name in (_all() if one == ALL else [one]))
    for name in chosen:
        _check(name)
    return [method for name in chosen for method in (name, f"{name}{SUFFIX}")]


def _all() -> list[str]:
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            f"--protect: {ALL!r} needs {PACKAGE}, which is not installed; "
            "install it with `pip install torch-optimizer`, or name others"
        )
    return optimizer_names(PACKAGE)


def _check(name: str) -> None:
    """Raise a UserError unless the optimizer takes a step here, alone and in a layer."""
    if name not in PLAIN and "." not in name:
        raise UserError(f"--protect: {name!r} is unknown; allowed: {ALLOWED}")
    if name in UNFIT:
        raise UserError(f"--protect: {name!r} cannot be used ({UNFIT[name]}); allowed: {ALLOWED}")
    try:
        for method in (name, f"{name}{SUFFIX}"):
            step(METHODS[method], {})
    except UserError:
        raise
    except Exception as error:  # whatever a package's class may raise
        said = str(error).partition("\n")[0]
        raise UserError(
            f"--protect: {name!r} cannot be used ({said}); allowed: {ALLOWED}"
        ) from None


def before_and_after(title: str, grouped: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Results by label as a table: each optimizer alone, then in its layer, score by score.

    The gain of the average is paired by seed. An optimizer without its layer gets no line.
    """
    heads = [f"{shown}, {when}" for shown in SHOWN.values() for when in ("alone", "layer")]
    lines = [
        f"## {title}\n",
        f"| optimizer | {' | '.join(heads)} | gain of average accuracy | changes detected |",
        "|---|" + "---:|" * (len(heads) + 2),
    ]
    for label, alone in grouped.items():
        name, *how = label.split(" ", 1)
        layered = grouped.get(" ".join([f"{name}{SUFFIX}", *how]))
        if layered is None:
            continue
        many = len(alone) > 1
        rows = summarize(label, alone), summarize(label, layered)
        cells = [percent(row.scores[score], many) for score in SHOWN for row in rows]
        score = METRICS["average"]
        pairs = zip(alone, layered, strict=True)
        gain = percent(Spread.of([score(after) - score(before) for before, after in pairs]), many)
        found = f"{rows[1].found:.3g} of {rows[1].changes:g}"
        lines.append(f"| {' | '.join([label, *cells, gain, found])} |")
    return "\n".join(lines) + "\n"
