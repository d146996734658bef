"""`python -m benchmarks tune`: the same number of trials for every method, by Optuna.

It sees tuning seeds and validation data only (runs/settings.py says which). Each method on each
stream has a study of its own, over its learning rate and one or two options (runs/spaces.py), whose
first trial is the default and whose second what the file to be written has already. Studies go
forward together, a trial of each at a time, so that all cores are busy though each study waits for
its own results; and a command that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.commands.options import (
    add_common,
    check_common,
    check_file,
    method_names,
    names,
    parser,
    read_data,
)
from benchmarks.data.errors import UserError, require_choice
from benchmarks.data.sets import Dataset
from benchmarks.methods import METHODS
from benchmarks.metrics.scores import METRICS
from benchmarks.runs.plan import settings_for
from benchmarks.runs.records import write_atomically
from benchmarks.runs.settings import (
    NO_FILE,
    TUNED,
    TUNING_SEED,
    Settings,
    default_lr,
    moved,
    tuned_options,
)
from benchmarks.runs.spaces import RATE, space
from benchmarks.runs.studies import SAMPLERS, Study
from benchmarks.runs.suite import complete, default_jobs
from benchmarks.streams import STREAMS

DEFAULT_SEEDS, DEFAULT_TRIALS = 2, 20
OBJECTIVES = ("average", "worst", "learned", "online")
# What a command says that differs from a data set's own scale.
ASKED = ("tasks", "steps", "batch", "hidden", "order", "clip", "dropout")
EXAMPLES = """\
examples:
  python -m benchmarks tune --stream permuted --methods adam ewc si sal-adam --trials 20
  python -m benchmarks tune --stream split-domain --methods all --write results/tuned.json
  python -m benchmarks tune --stream label-permuted --methods upgd adam --objective online
  python -m benchmarks continual --stream split-domain --tuned results/tuned.json --also-default
"""
ABOUT = (
    "Learning rates and options chosen by `python -m benchmarks tune`, which writes this file: "
    "tuning seeds 1000 and up, validation data cut from train, ranges in runs/spaces.py. What is "
    "not listed has the defaults in methods/."
)


def arguments() -> argparse.ArgumentParser:
    made = parser(
        "python -m benchmarks tune", "Choose learning rates and options by Optuna.", EXAMPLES
    )
    add_common(made)
    add = made.add_argument
    add("--stream", action="append", metavar="NAME", help=f"repeatable; {', '.join(STREAMS)}")
    add("--methods", nargs="+", metavar="NAME", help="methods or groups (default: quick)")
    add("--seeds", type=int, help=f"seeds {TUNING_SEED} and up (default: {DEFAULT_SEEDS})")
    add("--trials", type=int, default=DEFAULT_TRIALS, help="for each method (default: 20)")
    add("--sampler", default="tpe", help=f"{', '.join(SAMPLERS)} (default: tpe)")
    add(
        "--objective",
        default="average",
        help=f"what is maximized: {', '.join(OBJECTIVES)} (default: average)",
    )
    add(
        "--write",
        type=lambda path: Path(moved(path)),
        default=TUNED,
        help="file to update (default: the benchmark's own)",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    if args.lr is not None:
        raise UserError(f"--lr: {args.lr:g}; allowed here: none, for it is what is chosen")
    if args.tuned != str(TUNED):
        raise UserError(
            f"--tuned: {args.tuned!r}; allowed here: none, for every study begins with the "
            "defaults; --write names the file whose settings are tried after them"
        )
    check_common(args)
    check_file(args.write, "--write")
    require_choice("--sampler", args.sampler, SAMPLERS)
    require_choice("--objective", args.objective, OBJECTIVES)
    args.seeds, args.tuned = args.seeds or DEFAULT_SEEDS, NO_FILE
    streams = names("--stream", args.stream, ["permuted"], list(STREAMS))
    methods = method_names(args.methods)
    output, messages = Console(), Console(stderr=True)
    data = read_data(args, streams)
    studies = [
        Study(
            args.out / "optuna" / "journal.log",
            _settings(method, stream, TUNING_SEED, data, args, {}),
            space(METHODS[method]),
            sampler=args.sampler,
            trials=args.trials,
            seeds=args.seeds,
            objective=args.objective,
            known=_known(args, stream, method),
        )
        for stream in streams
        for method in methods
    ]
    while waiting := [study for study in studies if study.left]:
        messages.print(
            f"{sum(study.left for study in studies)} trials of {args.seeds} runs left",
            highlight=False,
        )
        _round(waiting, data, args, messages)
    output.print(_table(studies, args.objective))
    for line in at_edges(studies):
        messages.print(line, style="yellow", soft_wrap=True, highlight=False)
    _write(args, studies, streams, methods)
    output.print(f"written: {args.write}", highlight=False, markup=False)
    return 0


def _known(args: argparse.Namespace, stream: str, method: str) -> dict[str, Any] | None:
    """What the file to be updated has for a method here, within its ranges; None if nothing."""
    file, ranges = str(args.write) if args.write.is_file() else NO_FILE, space(METHODS[method])
    rate = default_lr(args.data, METHODS[method].base, file)
    found = {RATE: rate, **tuned_options(args.data, stream, method, file)}
    kept = {
        name: min(max(value, ranges[name].low), ranges[name].high)
        for name, value in found.items()
        if name in ranges
    }
    return kept if file != NO_FILE else None


def _settings(
    method: str,
    stream: str,
    seed: int,
    data: Dataset,
    args: argparse.Namespace,
    options: dict[str, Any],
) -> Settings:
    row = METHODS[method]
    return settings_for(row, stream, seed, data, args, options=options, split="validation")


def _round(
    studies: Sequence[Study], data: Dataset, args: argparse.Namespace, messages: Console
) -> None:
    """One trial of each study, all their runs in parallel."""
    asked = [study.ask() for study in studies]
    plan = [
        _settings(study.plain.method, study.plain.stream, seed, data, args, dict(values))
        for study, (_, values) in zip(studies, asked, strict=True)
        for seed in range(TUNING_SEED, TUNING_SEED + args.seeds)
    ]
    results = complete(
        plan,
        args.out / "records",
        data_dir=args.data_dir,
        jobs=args.jobs or default_jobs(),
        console=messages,
    )
    score = METRICS[args.objective]
    for place, (study, (number, _)) in enumerate(zip(studies, asked, strict=True)):
        mine = results[place * args.seeds : (place + 1) * args.seeds]
        study.tell(number, fmean(score(result) for result in mine))


def _table(studies: Sequence[Study], objective: str) -> Table:
    table = Table("stream", "method", f"default {objective} %", "tuned %", "tuned to", "trial")
    for study in studies:
        best, first = study.best, study.first
        values = ", ".join(f"{name} {value:.3g}" for name, value in best.params.items())
        table.add_row(
            study.plain.stream,
            study.plain.method,
            f"{100 * (first.value or 0):.1f}",
            f"{100 * (best.value or 0):.1f}",
            values,
            f"{study.finished.index(best) + 1} of {len(study.finished)}",
        )
    return table


def at_edges(studies: Sequence[Study]) -> list[str]:
    """A line for each best value at an edge of its range: what is outside may be better."""
    return [
        f"{study.plain.stream}, {study.plain.method}: {name} {value:.3g} is at the edge of "
        f"{study.ranges[name].low:g} to {study.ranges[name].high:g}"
        for study in studies
        for name, value in study.best.params.items()
        if study.ranges[name].at_edge(value)
    ]


def _write(
    args: argparse.Namespace,
    studies: Sequence[Study],
    streams: Sequence[str],
    methods: Sequence[str],
) -> None:
    """Put the choices into the file, keeping what others are in it."""
    found = json.loads(args.write.read_text()) if args.write.is_file() else {}
    found = {"about": ABOUT, "made_by": [], "lr": {}, "options": {}, **found}
    for study in studies:
        place = found["options"].setdefault(args.data, {}).setdefault(study.plain.stream, {})
        place[study.plain.method] = dict(study.best.params)
    asked = {name: getattr(args, name) for name in ASKED}
    extra = "".join(f" --{name} {value}" for name, value in asked.items() if value)
    extra += f" --preset {args.preset}" if args.preset else ""
    command = (
        f"python -m benchmarks tune --data {args.data} "
        + " ".join(f"--stream {stream}" for stream in streams)
        + f" --methods {' '.join(methods)} --seeds {args.seeds} --trials {args.trials}"
        + f" --sampler {args.sampler} --objective {args.objective} --net {args.net}{extra}"
    )
    if command not in found["made_by"]:
        found["made_by"].append(command)
    write_atomically(args.write, json.dumps(found, indent=2) + "\n")
