"""What is compared: methods, each as tuned, at its default, or at the points of a grid.

A variant's label begins with the method's name; what follows says how it is set.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.data.errors import UserError, require_choice
from benchmarks.data.sets import Dataset
from benchmarks.methods import METHODS, Row, renamed
from benchmarks.methods.sal import current_option
from benchmarks.runs.plan import literal, settings_for
from benchmarks.runs.settings import NO_FILE, Settings
from benchmarks.runs.spaces import RATE


@dataclass(frozen=True)
class Variant:
    """A row of a comparison. `default` leaves out what was tuned."""

    label: str
    row: Row
    options: Mapping[str, Any]
    default: bool = False
    # Names of options that the command line gave, and by which argument.
    origins: Mapping[str, str] = field(default_factory=dict)

    def settings(self, stream: str, seed: int, data: Dataset, args: argparse.Namespace) -> Settings:
        if self.default:
            args = argparse.Namespace(**{**vars(args), "tuned": NO_FILE})
        return settings_for(self.row, stream, seed, data, args, options=dict(self.options))


def variants(
    methods: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    grids: Sequence[str],
    also_default: bool,
) -> list[Variant]:
    """Each method, or each point of its grid; and with `also_default` its defaults beside it."""
    axes = _axes(grids, methods)
    found = []
    for method in methods:
        row, own = METHODS[method], axes.get(method, {})
        for values in itertools.product(*own.values()):
            point = dict(zip(own, values, strict=True))
            shown = [f"{name}={_short(value)}" for name, value in point.items()]
            label = " ".join([method, *shown])
            origins = dict.fromkeys(options[method], "--set") | dict.fromkeys(point, "--grid")
            found.append(Variant(label, row, {**options[method], **point}, origins=origins))
        if also_default:
            found.append(Variant(f"{method} (default)", row, {}, default=True))
    return found


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _axes(grids: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """`[METHOD.]NAME=V,V` as {method: {name: values}}, for all methods that have the option."""
    axes: dict[str, dict[str, list[Any]]] = {}
    for text in grids:
        target, equals, values = text.partition("=")
        only, dot, name = target.rpartition(".")
        pairs = [current_option(name, literal(value)) for value in values.split(",") if value]
        name, chosen = pairs[0][0] if pairs else name, [value for _, value in pairs]
        if not (equals and name and chosen):
            raise UserError(f"--grid: {text!r} is no grid; allowed: [METHOD.]NAME=VALUE,VALUE")
        only = renamed(only)
        if dot:
            require_choice("--grid", only, methods)
        for method in takers("--grid", text, name, [only] if dot else methods):
            axes.setdefault(method, {})[name] = list(dict.fromkeys(chosen))
    return axes


def takers(argument: str, text: str, name: str, methods: Sequence[str]) -> list[str]:
    """Those of the methods that have the option.

    Raises:
        UserError: none has it. The line says so, and which method it is a part of by its name.
    """
    found = [m for m in methods if name == RATE or name in METHODS[m].allowed()]
    if found:
        return found
    allowed = f"allowed: {RATE}, and " + "; ".join(
        f"{method}: {', '.join(METHODS[method].allowed()) or 'none'}" for method in methods
    )
    for method in methods:
        if name in METHODS[method].fixed:
            fixed = f"{name}={METHODS[method].fixed[name]}"
            raise UserError(f"{argument}: {text!r}: {method} has {fixed} by its name; {allowed}")
    if len(methods) == 1:
        raise UserError(f"{argument}: {methods[0]} has no option {name!r}; {allowed}")
    raise UserError(f"{argument}: {name!r} is an option of no chosen method; {allowed}")
