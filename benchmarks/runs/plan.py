"""The settings of one run from what a command was asked for: the rest are documented defaults."""

from __future__ import annotations

import argparse
import ast
from typing import Any

from benchmarks.data.errors import UserError
from benchmarks.data.sets import Dataset
from benchmarks.methods import Row
from benchmarks.runs.networks import default_hidden
from benchmarks.runs.presets import PRESETS
from benchmarks.runs.settings import Settings, Split, default_lr, scale, tuned_options
from benchmarks.streams import STREAMS
from benchmarks.streams.split import SplitClass

CURVE_POINTS, LONG_CURVE_POINTS = 10, 2  # looks at the accuracies per task


def settings_for(
    row: Row,
    stream: str,
    seed: int,
    data: Dataset,
    args: argparse.Namespace,
    *,
    options: dict[str, Any],
    split: Split = "test",
) -> Settings:
    """The settings of one run: what was asked for, and the documented defaults for the rest.

    `options` may hold `lr`. They go before the preset's, and these before what was tuned.
    """
    defaults = scale(args.data)
    steps = args.steps or defaults.steps
    tasks = tasks_of(stream, data, args)
    kind = STREAMS[stream](data, seed=seed, tasks=tasks, order=args.order)
    preset = PRESETS[args.preset] if args.preset else None
    batch = args.batch or defaults.batch
    if args.steps is None and preset is not None and preset.epochs:
        steps = max(1, round(preset.epochs * len(kind.members("train", 0)) / batch))
    # What was tuned for a control by itself goes before what it is a control of.
    own = tuned_options(args.data, stream, row.name, args.tuned)
    chosen = {
        **(own or tuned_options(args.data, stream, row.tuned_as, args.tuned)),
        **(preset.options(stream, row.tuned_as) if preset else {}),
        **options,
    }
    lr = chosen.pop("lr", default_lr(args.data, row.base, args.tuned))
    return Settings(
        data=args.data,
        fingerprint=data.fingerprint(),
        stream=stream,
        method=row.name,
        seed=seed,
        tasks=kind.tasks,
        steps=steps,
        batch=batch,
        hidden=widths(args.hidden, data, args.net),
        lr=float(options.get("lr", args.lr or lr)),
        order=kind.order,
        every=max(1, steps // (LONG_CURVE_POINTS if kind.long else CURVE_POINTS)),
        net=args.net,
        split=split,
        options=chosen,
        clip=args.clip,
        dropout=args.dropout,
    )


def pairs_of(stream: str, data: Dataset) -> int | None:
    """How many tasks of two classes the data have for a split stream; None for other streams."""
    return data.classes // 2 if issubclass(STREAMS[stream], SplitClass) else None


def tasks_of(stream: str, data: Dataset, args: argparse.Namespace) -> int:
    """Tasks of a stream: as asked for, else its own number as far as the data reach."""
    pairs, kind = pairs_of(stream, data), STREAMS[stream]
    asked: int | None = args.tasks
    if asked is None:
        return kind.default_tasks if kind.long else min(pairs or kind.default_tasks, most(args))
    if pairs is not None and asked > pairs:
        by_preset = "tasks" in getattr(args, "by_preset", ())
        said = f"--preset: {args.preset!r} has {asked} tasks" if by_preset else f"--tasks: {asked}"
        raise UserError(
            f"{said}; allowed for {stream} on {data.name}: --tasks 1 to {pairs} (pairs of classes)"
        )
    return asked


def most(args: argparse.Namespace) -> int:
    """Tasks that a stream of this data set has at the most where nobody says how many."""
    return scale(args.data).most_tasks


def widths(text: str | None, data: Dataset, net: str = "mlp") -> tuple[int, ...]:
    """`256-256` as (256, 256); `0` or `linear` is a network without hidden layers."""
    if text is None:
        return default_hidden(data.features, net)
    if text in ("0", "linear"):
        return ()
    parts = text.replace(",", "-").split("-")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--hidden: {text!r} is no list of widths; allowed: 256-256, 100, 0 (none)")
    return tuple(int(part) for part in parts)


def literal(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
