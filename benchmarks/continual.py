"""`python -m benchmarks continual`: who forgets how much, on streams of tasks from real data.

It reads the command line, has the runs computed or read back, and puts the table and the figures
in their places. What a run is, and what its figures mean, is said in runner.py and metrics.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.baselines import METHODS, sal
from benchmarks.data import SOURCES, Dataset, load
from benchmarks.errors import UserError, require_range
from benchmarks.metrics import Summary, summarize
from benchmarks.options import (
    add_common,
    assignments,
    check_common,
    names,
    parser,
    settings_for,
)
from benchmarks.records import write_atomically
from benchmarks.settings import Settings
from benchmarks.streams import STREAMS
from benchmarks.suite import complete, default_jobs
from benchmarks.tables import CAPTION, markdown, terminal

DEFAULT_STREAMS = ("permuted", "split-domain", "split-task")
EXAMPLES = """\
examples:
  python -m benchmarks continual                       digits, three streams, five seeds
  python -m benchmarks continual --list                data, streams and methods
  python -m benchmarks continual --data mnist --data-dir ~/Downloads --seeds 3
  python -m benchmarks continual --stream rotated --stream fuzzy --methods adam ewc si sal-adam
  python -m benchmarks continual --methods sal-adam --protection 1.0 --out results/strong
  python -m benchmarks continual --data fashion-mnist --stream permuted --steps 600 --jobs 2
"""


def arguments() -> argparse.ArgumentParser:
    made = parser(
        "python -m benchmarks continual",
        "Compare methods on streams of tasks: average, worst task, learned, forgetting.",
        EXAMPLES,
    )
    add_common(made)
    add = made.add_argument
    add("--stream", action="append", metavar="NAME", help=f"repeatable; {', '.join(STREAMS)}")
    add("--methods", nargs="+", metavar="NAME", help="default: all (see --list)")
    add("--seeds", type=int, default=5, help="seeds 0 … N-1 are run (default: 5)")
    add("--protection", type=float, help="protection of the SAL methods (default: the package's)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="[METHOD.]NAME=VALUE",
        help="an option of one method, or of every method that has it; repeatable",
    )
    add("--no-figures", action="store_true", help="tables only")
    add("--list", action="store_true", help="list data, streams and methods, and stop")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    output, messages = _consoles()
    if args.list:
        _list(output)
        return 0
    check_common(args)
    if args.protection is not None:
        require_range("--protection", args.protection, 0)
    streams = names("--stream", args.stream, DEFAULT_STREAMS, list(STREAMS))
    methods = _available(args.methods, messages)
    options = _options(methods, args)
    data = load(args.data, args.data_dir)
    plan = [
        settings_for(METHODS[method], stream, seed, data, args, options=options[method])
        for stream in streams
        for method in methods
        for seed in range(args.seeds)
    ]
    results = complete(
        plan,
        args.out / "records",
        data_dir=args.data_dir,
        jobs=args.jobs or default_jobs(),
        console=messages,
    )
    _report(args, data, streams, methods, plan, results, output)
    return 0


def _available(given: Sequence[str] | None, messages: Console) -> list[str]:
    """The methods to run. Without sal_optim the default goes on with the baselines alone."""
    methods = names("--methods", given, list(METHODS), list(METHODS))
    kept = []
    for method in methods:
        if METHODS[method].is_sal:
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
        for method in methods:
            if METHODS[method].is_sal:
                chosen[method]["protection"] = args.protection
    for only, name, value in assignments(args.set):
        takers = [
            method
            for method in methods
            if (only is None or only == method) and name in METHODS[method].allowed()
        ]
        if not takers:
            raise UserError(
                f"--set: {name!r} is an option of no chosen method; allowed: "
                + "; ".join(f"{m}: {', '.join(METHODS[m].allowed()) or 'none'}" for m in methods)
            )
        for method in takers:
            chosen[method][name] = value
    return chosen


def _report(
    args: argparse.Namespace,
    data: Dataset,
    streams: Sequence[str],
    methods: Sequence[str],
    plan: Sequence[Settings],
    results: Sequence[dict[str, Any]],
    output: Console,
) -> None:
    sections, summaries = [], {}
    for stream in streams:
        grouped: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
        shape = next(settings for settings in plan if settings.stream == stream)
        for settings, result in zip(plan, results, strict=True):
            if settings.stream == stream:
                grouped[settings.method].append(result)
        title = (
            f"{Path(args.data).name}, {stream}: {shape.tasks} tasks x {shape.steps} steps "
            f"of {shape.batch}, {args.seeds} seed{'s' * (args.seeds > 1)}"
        )
        rows = [summarize(method, found) for method, found in grouped.items()]
        output.print(terminal(title, rows, output.width))
        sections.append(markdown(title, rows))
        summaries[stream] = {row.method: _plain(row, plan, stream) for row in rows}
        if not args.no_figures:
            _draw(title, grouped, args.out / "figures", f"{Path(args.data).name}-{stream}")
    output.print(CAPTION, style="dim")
    stem = f"continual-{Path(args.data).name}"
    text = "# Forgetting\n\n" + "\n".join(sections) + f"\n{CAPTION}\n"
    write_atomically(args.out / f"{stem}.md", text)
    write_atomically(args.out / f"{stem}.json", json.dumps(summaries, indent=1))
    output.print(f"written: {args.out}/{stem}.md, .json, figures/, records/", highlight=False)


def _draw(title: str, grouped: dict[str, Any], folder: Path, stem: str) -> None:
    from benchmarks import figures  # matplotlib is slow to import

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
        f"{title}\nsurprise against threshold, seed 0", grouped, folder / f"{stem}-surprise.png"
    )


def _plain(row: Summary, plan: Sequence[Settings], stream: str) -> dict[str, Any]:
    """A summary for JSON, with the settings it was made with."""
    first = next(s for s in plan if s.stream == stream and s.method == row.method)
    return {**asdict(row), "settings": first.plain()}


def _list(output: Console) -> None:
    output.print("[bold]data[/bold] (--data)")
    for name, summary in SOURCES.items():
        output.print(f"  {name:<20} {summary}", highlight=False)
    output.print("[bold]streams[/bold] (--stream)")
    for name, stream in STREAMS.items():
        output.print(f"  {name:<20} {stream.summary}", highlight=False)
    output.print("[bold]methods[/bold] (--methods)")
    for name, row in METHODS.items():
        told = "told boundaries" if row.told else "untold"
        options = ", ".join(row.options or ())
        suffix = f"; --set {options}" if options else ""
        output.print(f"  {name:<20} {told:<16} {row.summary}{suffix}", highlight=False)


def _consoles() -> tuple[Console, Console]:
    """Tables on stdout, wide enough to be whole where there is no terminal; messages on stderr."""
    output = Console()
    if not output.is_terminal:
        output = Console(width=150)
    return output, Console(stderr=True)
