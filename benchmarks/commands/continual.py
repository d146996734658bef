"""`python -m benchmarks continual`: who forgets how much, on streams of tasks from real data.

It reads the command line, has the runs computed or read back, and puts the table and the figures
in their places. What a run is, and what its figures mean, is said in runs/runner.py and metrics/.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.commands.options import (
    add_common,
    assignments,
    check_common,
    method_names,
    names,
    parser,
    read_data,
)
from benchmarks.commands.protect import before_and_after, protected
from benchmarks.data.errors import UserError, require_range
from benchmarks.data.sets import SOURCES, Dataset
from benchmarks.methods import GROUPS, METHODS, sal
from benchmarks.metrics.scores import summarize
from benchmarks.reports.tables import CAPTION, markdown, terminal
from benchmarks.runs.checks import check_options, check_rate
from benchmarks.runs.manifest import write_manifest
from benchmarks.runs.presets import PRESETS
from benchmarks.runs.records import write_atomically
from benchmarks.runs.settings import Settings
from benchmarks.runs.suite import complete, default_jobs
from benchmarks.runs.variants import Variant, takers, variants
from benchmarks.streams import STREAMS

DEFAULT_STREAMS, DEFAULT_SEEDS = ("permuted", "split-domain", "split-task"), 5
EXAMPLES = """\
examples:
  python -m benchmarks continual                       digits, three streams, five seeds
  python -m benchmarks continual --list                data, streams and methods
  python -m benchmarks continual --data mnist --data-dir ~/Downloads --seeds 3
  python -m benchmarks continual --stream rotated --stream fuzzy --methods adam ewc si sal-adam
  python -m benchmarks continual --methods sal-adam --protection 30.0 --out results/strong
  python -m benchmarks continual --protect adam torch_optimizer.Yogi --stream permuted
  python -m benchmarks continual --data fashion-mnist --stream permuted --steps 600 --jobs 2
  python -m benchmarks continual --preset vandeven-split --data-dir ~/Downloads
  python -m benchmarks continual --methods all --seeds 10 --also-default
  python -m benchmarks continual --stream permuted --methods adam sal-adam controls
  python -m benchmarks continual --stream permuted --clip 1.0 --out results/clipped
  python -m benchmarks continual --stream permuted --batch 4 --dropout 0.5 --out results/noisy
  python -m benchmarks continual --methods sal-adam --grid protection=3,10,30 --grid lr=3e-4,1e-3
"""


def arguments() -> argparse.ArgumentParser:
    made = parser(
        "python -m benchmarks continual",
        "Compare methods on streams of tasks: average and minimum accuracy, forgetting.",
        EXAMPLES,
    )
    add_common(made)
    add = made.add_argument
    add("--stream", action="append", metavar="NAME", help=f"repeatable; {', '.join(STREAMS)}")
    add(
        "--methods",
        nargs="+",
        metavar="NAME",
        help=f"methods, or groups of them: all, {', '.join(GROUPS)} (default: quick; see --list)",
    )
    add(
        "--protect",
        nargs="+",
        metavar="NAME",
        help="optimizers, each alone and in a CommunicationLayer: a plain one of --list, an "
        "installed MODULE.CLASS, all of torch_optimizer's; alone or beside --methods",
    )
    add("--seeds", type=int, help=f"seeds 0 … N-1 are run (default: {DEFAULT_SEEDS})")
    add("--protection", type=float, help="protection of the SAL methods (default: the package's)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="[METHOD.]NAME=VALUE",
        help="an option of one method, or of every method that has it; repeatable",
    )
    add(
        "--grid",
        action="append",
        default=[],
        metavar="[METHOD.]NAME=V,V",
        help="run every point of a grid of options or lr, each a row; repeatable",
    )
    add("--also-default", action="store_true", help="a row for each method without what was tuned")
    add("--no-figures", action="store_true", help="tables only")
    add("--list", action="store_true", help="list data, streams, methods, presets, and stop")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    output, messages = _consoles()
    if args.list:
        _list(output)
        return 0
    check_common(args)
    args.seeds = args.seeds or DEFAULT_SEEDS
    if args.protection is not None:
        require_range("--protection", args.protection, 0)
    streams = names("--stream", args.stream, DEFAULT_STREAMS, list(STREAMS))
    own = _available(args.methods, messages) if args.methods or not args.protect else []
    methods = list(dict.fromkeys([*own, *(protected(args.protect) if args.protect else [])]))
    rows = variants(methods, _options(methods, args), args.grid, args.also_default)
    data = read_data(args, streams)
    _check_options(rows, streams, data, args)
    plan = {
        (stream, row.label, seed): row.settings(stream, seed, data, args)
        for stream in streams
        for row in rows
        for seed in range(args.seeds)
    }
    found = complete(
        list(plan.values()),
        args.out / "records",
        data_dir=args.data_dir,
        jobs=args.jobs or default_jobs(),
        console=messages,
    )
    results = dict(zip(plan, found, strict=True))
    for stream in streams:
        _report(args, stream, rows, plan, results, output)
    _finish(args, streams, output)
    return 0


def _available(given: Sequence[str] | None, messages: Console) -> list[str]:
    """The methods to run. Without sal_optim the default goes on with the baselines alone."""
    kept = []
    for method in method_names(given):
        if METHODS[method].uses_sal:
            try:
                sal.optimizer_class(METHODS[method].base)
            except UserError as error:
                if given is not None:
                    raise
                messages.print(f"skipped: {error}", style="yellow", soft_wrap=True)
                continue
        kept.append(method)
    return kept


def _options(methods: Sequence[str], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What --protection and --set give to each method."""
    chosen: dict[str, dict[str, Any]] = {method: {} for method in methods}
    if args.protection is not None:
        takers("--protection", f"{args.protection:g}", "protection", methods)
        for method in methods:
            if METHODS[method].uses_sal:
                chosen[method]["protection"] = args.protection
    for only, name, value in assignments(args.set, methods):
        meant = [only] if only is not None and only in methods else methods
        for method in takers("--set", f"{name}={value}", name, meant):
            chosen[method][name] = value
    return chosen


def _check_options(
    rows: Sequence[Variant], streams: Sequence[str], data: Dataset, args: argparse.Namespace
) -> None:
    """Raise a UserError where a method cannot take a step with what was given to it."""
    seen = set()
    for row in rows:
        if "lr" in row.options:
            check_rate(row.options["lr"], row.origins["lr"])
        origins = dict(row.origins)
        if origins.get("protection") == "--set" and args.protection is not None:
            origins["protection"] = "--protection"
        for stream in streams:
            options = row.settings(stream, 0, data, args).options
            if (row.row.name, repr(options)) not in seen:
                check_options(row.row.name, options, origins)
            seen.add((row.row.name, repr(options)))


Key = tuple[str, str, int]


def _report(
    args: argparse.Namespace,
    stream: str,
    rows: Sequence[Variant],
    plan: dict[Key, Settings],
    results: dict[Key, dict[str, Any]],
    output: Console,
) -> None:
    """One stream: its table, its figures, and its part of the suite's manifest."""
    shape = plan[stream, rows[0].label, 0]
    name = _name(args)
    # A manifest's rows may come from several commands, each with its own number of seeds.
    what = f"{name}, {stream}: {shape.shape()}"
    title = f"{what}, {args.seeds} seed{'s' * (args.seeds > 1)}"
    seeds = range(args.seeds)
    grouped = {row.label: [results[stream, row.label, seed] for seed in seeds] for row in rows}
    summaries = [summarize(label, found) for label, found in grouped.items()]
    output.print(terminal(title, summaries, output.width))
    settings = {row.label: [plan[stream, row.label, seed] for seed in seeds] for row in rows}
    write_manifest(args.out, what, settings)
    write_atomically(_part(args, stream, ".md"), markdown(title, summaries))
    if args.protect:
        write_atomically(_part(args, stream, "-protected.md"), before_and_after(title, grouped))
    plain = {row.label: {**asdict(row), "settings": settings[row.label][0].plain()}
             for row in summaries}  # fmt: skip
    write_atomically(_part(args, stream, ".json"), json.dumps(plain, indent=1))
    if not args.no_figures:
        _draw(title, grouped, args.out / "figures", f"{name}-{stream}")


def _part(args: argparse.Namespace, stream: str, suffix: str) -> Path:
    folder: Path = args.out / "tables"
    return folder / f"{_name(args)}-{stream}{suffix}"


def _name(args: argparse.Namespace) -> str:
    """Of the data set; a folder's is its last part."""
    return Path(args.data).expanduser().resolve().name


def _finish(args: argparse.Namespace, streams: Sequence[str], output: Console) -> None:
    """All streams of the command in one document each, and where everything is."""
    output.print(CAPTION, style="dim")
    stem = f"continual-{_name(args)}"
    sections = [_part(args, stream, ".md").read_text() for stream in streams]
    text = "# Forgetting\n\n" + "\n".join(sections) + f"\n{CAPTION}\n"
    write_atomically(args.out / f"{stem}.md", text)
    plain = {stream: json.loads(_part(args, stream, ".json").read_text()) for stream in streams}
    write_atomically(args.out / f"{stem}.json", json.dumps(plain, indent=1))
    output.print(
        f"written: {args.out}/{stem}.md, .json, {'' if args.no_figures else 'figures/, '}records/",
        highlight=False,
        markup=False,
    )


def _draw(title: str, grouped: dict[str, Any], folder: Path, stem: str) -> None:
    from benchmarks.reports import figures  # matplotlib is slow to import

    figures.matrices(
        f"{title}\naccuracy matrix (mean over seeds) and final average",
        grouped,
        folder / f"{stem}-matrix.png",
    )
    figures.curves(
        f"{title}\naccuracy on each task over steps, mean over seeds",
        grouped,
        folder / f"{stem}-curves.png",
    )
    figures.surprise(
        f"{title}\ngradient norm over its running mean against the threshold, seed 0",
        grouped,
        folder / f"{stem}-surprise.png",
    )


def _list(output: Console) -> None:
    output.print("[bold]data[/bold] (--data)")
    for name, summary in SOURCES.items():
        output.print(f"  {name:<20} {summary}", highlight=False)
    output.print("[bold]streams[/bold] (--stream)")
    for name, stream in STREAMS.items():
        output.print(f"  {name:<20} {stream.summary}", highlight=False)
    for group, rows in GROUPS.items():
        output.print(f"[bold]methods[/bold], {group} (--methods)")
        for row in rows:
            given = "boundaries given" if row.told else "task-free"
            options = ", ".join(row.options or ())
            suffix = f"; --set {options}" if options else ""
            output.print(f"  {row.name:<20} {given:<16} {row.summary}{suffix}", highlight=False)
    output.print("[bold]presets[/bold] (--preset)")
    for name, preset in PRESETS.items():
        output.print(f"  {name:<20} {preset.summary}", highlight=False)


def _consoles() -> tuple[Console, Console]:
    """Tables on stdout, wide enough to be whole where there is no terminal; messages on stderr."""
    output = Console()
    if not output.is_terminal:
        output = Console(width=150)
    return output, Console(stderr=True)
