"""`python -m benchmarks tune`: a plain grid for learning rates and for EWC's and SI's strength.

It sees tuning seeds and validation data only (settings.py says which). Strengths are chosen by
final average accuracy, a stream at a time. Learning rates are chosen for the plain optimizers,
once for a data set, by *learned* accuracy, how well each task is learned at its time: the smallest
rate within a point of the best. By final average a rate that barely learns would win; by the best
alone, one that forgets more than learning needs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.baselines import METHODS, ROWS
from benchmarks.data import load
from benchmarks.errors import UserError
from benchmarks.metrics import average, learned
from benchmarks.options import add_common, check_common, names, parser, settings_for
from benchmarks.records import write_atomically
from benchmarks.settings import TUNED, TUNING_SEED, Settings
from benchmarks.streams import STREAMS
from benchmarks.suite import complete, default_jobs

# The published grids, by factors of about 3.
STRENGTHS = {
    "ewc": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6),
    "si": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4),
}
RATES = {
    "adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "sgd": (5e-3, 1.5e-2, 5e-2, 0.15, 0.5),
    "lion": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
}
# How far below the best learned accuracy a smaller learning rate may stay.
SLACK = 0.01
EXAMPLES = """\
examples:
  python -m benchmarks tune --stream permuted --methods adam sgd lion
  python -m benchmarks tune --stream permuted --stream rotated --methods ewc si
  python -m benchmarks tune --data mnist --stream permuted --methods ewc si --write mine.json
"""
ABOUT = (
    "Learning rates and strengths chosen by `python -m benchmarks tune`, which writes this file: "
    "tuning seeds 1000 and up, validation data cut from train, grids and criteria in tune.py. "
    "What is not listed has the defaults in settings.py (lr) and baselines/ (strength)."
)


def arguments() -> argparse.ArgumentParser:
    made = parser(
        "python -m benchmarks tune", "Choose learning rates and strengths on a grid.", EXAMPLES
    )
    add_common(made)
    add = made.add_argument
    add("--stream", action="append", metavar="NAME", help=f"repeatable; {', '.join(STREAMS)}")
    add("--methods", nargs="+", metavar="NAME", help="ewc and si (default), or adam, sgd, lion")
    add("--seeds", type=int, default=2, help=f"seeds {TUNING_SEED} and up (default: 2)")
    add(
        "--grid",
        action="append",
        default=[],
        metavar="METHOD=V,V",
        help="another grid for a method; repeatable",
    )
    add("--write", type=Path, default=TUNED, help="file to update (default: the benchmark's own)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    check_common(args)
    streams = names("--stream", args.stream, ["permuted"], list(STREAMS))
    allowed = [row.name for row in ROWS if row.name in STRENGTHS or row.name in RATES]
    methods = names("--methods", args.methods, list(STRENGTHS), allowed)
    output, messages = Console(), Console(stderr=True)
    data = load(args.data, args.data_dir)

    grids = {**STRENGTHS, **RATES, **_grids(args.grid, methods)}
    points = [(stream, method, value) for stream in streams for method in methods
              for value in grids[method]]  # fmt: skip
    plan: list[Settings] = []
    for stream, method, value in points:
        for seed in range(TUNING_SEED, TUNING_SEED + args.seeds):
            options = {"strength": value} if method in STRENGTHS else {}
            settings = settings_for(
                METHODS[method], stream, seed, data, args, options=options, split="validation"
            )
            plan.append(settings if method in STRENGTHS else replace(settings, lr=value))
    jobs = args.jobs or default_jobs()
    folder = args.out / "records"
    results = complete(plan, folder, data_dir=args.data_dir, jobs=jobs, console=messages)
    scores = _scores(plan, results)
    chosen = _choose(points, scores)
    output.print(_table(points, scores, chosen))
    _write(args, streams, methods, chosen)
    output.print(f"written: {args.write}", highlight=False)
    return 0


Point = tuple[str, str, float]


def _grids(given: Sequence[str], methods: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The grids of ``--grid``, checked."""
    grids = {}
    for text in given:
        method, _, values = text.partition("=")
        try:
            grid = tuple(float(value) for value in values.split(","))
        except ValueError:
            grid = ()
        if method not in methods or not grid or min(grid) <= 0:
            raise UserError(
                f"--grid {text}: must be METHOD=V,V with positive numbers and a method of "
                f"{', '.join(methods)}"
            )
        grids[method] = grid
    return grids


def _scores(plan: Sequence[Settings], results: Sequence[dict[str, Any]]) -> dict[Point, float]:
    """The criterion of each point of the grid, averaged over seeds."""
    sums: dict[Point, list[float]] = {}
    for settings, result in zip(plan, results, strict=True):
        strength = settings.method in STRENGTHS
        value = settings.options["strength"] if strength else settings.lr
        score = (average if strength else learned)(result["matrix"])
        sums.setdefault((settings.stream, settings.method, value), []).append(score)
    return {point: fmean(found) for point, found in sums.items()}


def _choose(points: Sequence[Point], scores: dict[Point, float]) -> dict[tuple[str, str], float]:
    """The best value of each method: per stream for strengths, over all streams for rates."""
    best: dict[tuple[str, str], float] = {}
    for method in dict.fromkeys(method for _, method, _ in points):
        streams = dict.fromkeys(stream for stream, _, _ in points)
        groups = [[stream] for stream in streams] if method in STRENGTHS else [list(streams)]
        for group in groups:
            values = sorted({value for _, name, value in points if name == method})
            means = [fmean(scores[stream, method, value] for stream in group) for value in values]
            enough = max(means) - (0 if method in STRENGTHS else SLACK)
            winner = next(v for v, mean in zip(values, means, strict=True) if mean >= enough)
            best.update({(stream, method): winner for stream in group})
    return best


def _table(
    points: Sequence[Point], scores: dict[Point, float], chosen: dict[tuple[str, str], float]
) -> Table:
    table = Table("stream", "method", "value", "criterion %", "")
    for stream, method, value in points:
        mark = "chosen" if chosen[stream, method] == value else ""
        table.add_row(
            stream, method, f"{value:g}", f"{100 * scores[stream, method, value]:.1f}", mark
        )
    return table


def _write(
    args: argparse.Namespace,
    streams: Sequence[str],
    methods: Sequence[str],
    chosen: dict[tuple[str, str], float],
) -> None:
    """Put the choices into the file, keeping what others are in it."""
    found = json.loads(args.write.read_text()) if args.write.is_file() else {}
    found = {"about": ABOUT, "made_by": [], "lr": {}, "options": {}, **found}
    for (stream, method), value in chosen.items():
        if method in STRENGTHS:
            place = found["options"].setdefault(args.data, {}).setdefault(stream, {})
            place.setdefault(method, {})["strength"] = value
        else:
            found["lr"].setdefault(args.data, {})[method] = value
    asked = {name: getattr(args, name) for name in ("tasks", "steps", "batch", "lr", "hidden")}
    extra = "".join(f" --{name} {value}" for name, value in asked.items() if value is not None)
    extra += "".join(f" --grid {grid}" for grid in args.grid)
    command = (
        f"python -m benchmarks tune --data {args.data} "
        + " ".join(f"--stream {stream}" for stream in streams)
        + f" --methods {' '.join(methods)} --seeds {args.seeds}{extra}"
    )
    if command not in found["made_by"]:
        found["made_by"].append(command)
    write_atomically(args.write, json.dumps(found, indent=2) + "\n")
