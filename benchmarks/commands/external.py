"""`python -m benchmarks external NAME`: harnesses that others wrote, given our optimizers.

It reads the command line, chooses strengths on validation data where a method has any, and prints
one table a benchmark. What a harness is, and how it is run, is in external/.
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

from benchmarks.commands.options import check_data_dir, check_folder, names, parser
from benchmarks.data.errors import UserError, require_choice, require_range
from benchmarks.data.sets import SOURCES, Dataset, load
from benchmarks.external import HARNESSES, AbsentError, Harness, harness
from benchmarks.external.idx import write_folder
from benchmarks.external.jobs import Job, Place, complete, grouped, label
from benchmarks.external.optimizers import OURS, SAL
from benchmarks.metrics.scores import average, backward_transfer, learned, worst
from benchmarks.metrics.spread import Spread, paired
from benchmarks.runs.plan import literal
from benchmarks.runs.records import write_atomically
from benchmarks.runs.settings import TUNING_SEED

EXAMPLES = """\
examples:
  python -m benchmarks external avalanche --data mnist
  python -m benchmarks external avalanche --benchmark permuted --data fashion-mnist \\
      --methods adam ewc sal-adam --seeds 3 --set dropout=0 --set epochs=5
  python -m benchmarks external vandeven --checkout ~/continual-learning --data mnist
  python -m benchmarks external upgd --checkout ~/upgd --set steps=100000
  python -m benchmarks external idx --data mnist --to ~/mnist
"""
IDX = "idx"
# A score's name in a table, and how it is taken from an accuracy matrix. The first two need only
# its last row, which is all there is of a harness that looks at the stream alone.
SCORES = {
    "average accuracy": average,
    "minimum": worst,
    "learning accuracy": learned,
    "BWT": backward_transfer,
}
REFERENCE = "sal-adam"


def arguments() -> argparse.ArgumentParser:
    made = parser(
        "python -m benchmarks external",
        "Run a harness that others wrote, with our optimizers beside its own methods.",
        EXAMPLES,
    )
    add = made.add_argument
    listed = ", ".join(f"{name} ({what})" for name, (_, what) in HARNESSES.items())
    add("name", metavar="NAME", help=f"{listed}; or {IDX}: write a data set as IDX files")
    add("--checkout", type=Path, help="folder of the harness's repository, where it is no package")
    add("--benchmark", action="append", metavar="NAME", help="repeatable (default: all)")
    add("--methods", nargs="+", metavar="NAME", help="the harness's and ours (default: all)")
    add("--seeds", type=int, default=5, help="seeds 0 … N-1 are run (default: %(default)s)")
    add("--set", action="append", default=[], metavar="[METHOD.]NAME=VALUE",
        help="a setting of the harness, or an option of one method; repeatable")  # fmt: skip
    add("--data", default="mnist", help=f"{', '.join(SOURCES)}, a folder (default: %(default)s)")
    add("--data-dir", help="where to look for the data first")
    add("--jobs", type=int, default=1, help="runs at a time (default: %(default)s)")
    add("--out", type=Path, default=Path("results"), help="folder for results (default: results)")
    add("--to", type=Path, help=f"folder that `{IDX}` writes its four files to")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    require_choice("NAME", args.name, [*HARNESSES, IDX])
    for name in ("seeds", "jobs"):
        require_range(f"--{name}", getattr(args, name), 1)
    check_data_dir(args.data_dir)
    if args.name == IDX:
        return _write(args)
    check_folder(args.out)
    if args.checkout is not None:
        if not args.checkout.expanduser().is_dir():
            raise UserError(f"--checkout: {str(args.checkout)!r} is no folder; allowed: a checkout")
        args.checkout = args.checkout.expanduser().resolve()
    chosen = harness(args.name)
    try:
        version = chosen.version(args.checkout)
    except AbsentError as reason:
        print(f"skipped: {args.name}: {reason}")
        return 0
    data = load(args.data, args.data_dir)
    chosen.check(data)
    for benchmark in names(
        "--benchmark", args.benchmark, [*chosen.BENCHMARKS], [*chosen.BENCHMARKS]
    ):
        _compare(chosen, version, benchmark, data, args)
    return 0


def _write(args: argparse.Namespace) -> int:
    if args.to is None:
        raise UserError(f"--to: missing; allowed with {IDX}: a folder, made if missing")
    check_folder(args.to, "--to")
    data = load(args.data, args.data_dir)
    write_folder(data, args.to)
    print(f"written: {args.to}: {len(data.train_y)} train and {len(data.test_y)} test images")
    return 0


def _compare(
    chosen: Harness, version: str, benchmark: str, data: Dataset, args: argparse.Namespace
) -> None:
    """One benchmark: its runs, and its table on the output and as a file."""
    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)

    place = Place(args.out / "records" / "external", args.data, args.data_dir, args.checkout)
    methods = names("--methods", args.methods, [*chosen.METHODS], [*chosen.METHODS])
    settings, options = _settings(chosen, methods, args)
    first = {
        method: Job(args.name, version, benchmark, method, 0, data.name, data.fingerprint(),
                    settings=settings, options=options[method])
        for method in methods
    }  # fmt: skip
    jobs = []
    for method, job in first.items():
        strengths = chosen.METHODS[method]
        if strengths and "strength" not in job.options:
            job = _best(job, strengths, place, args.jobs, say)
        jobs += [replace(job, seed=seed) for seed in range(args.seeds)]
    rows = dict(grouped(jobs, complete(jobs, place, args.jobs, say)))
    said = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    title = (f"{args.name} {version}, {benchmark}, {data.name} ({len(data.train_y)} train): "
             f"{said}; {args.seeds} seed{'s' * (args.seeds > 1)}")  # fmt: skip
    own = next((label(job) for job in jobs if job.method == REFERENCE), None)
    text = table(title, rows, own)
    stem = (
        args.out / "external" / f"{args.name}-{benchmark}-{data.name}-{first[methods[0]].key()[:8]}"
    )
    write_atomically(stem.with_suffix(".md"), text)
    write_atomically(stem.with_suffix(".json"), json.dumps(rows))
    print(f"{text}\nwritten: {stem}.md, .json")


def _settings(
    chosen: Harness, methods: Sequence[str], args: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The harness's settings and each method's options, from --set."""
    settings = dict(chosen.SETTINGS)
    options: dict[str, dict[str, Any]] = {method: {} for method in methods}
    for text in args.set:
        target, equals, value = text.partition("=")
        method, dot, name = target.rpartition(".")
        if not (equals and name and value):
            raise UserError(f"--set: {text!r} is no assignment; allowed: [METHOD.]NAME=VALUE")
        if dot:
            require_choice("--set", method, methods)
            if method not in SAL and (method in OURS or name != "strength"):
                allowed = "none" if method in OURS else "strength"
                raise UserError(f"--set: {method} has no option {name!r}; allowed: {allowed}")
            options[method][name] = literal(value)
            continue
        require_choice("--set", name, settings)
        usual = chosen.SETTINGS[name]
        given = literal(value)
        if isinstance(usual, (int, float)) and not isinstance(given, (int, float)):
            raise UserError(f"--set: {name}={value} is no number; allowed: a number")
        settings[name] = given
    return settings, options


def _best(job: Job, strengths: Sequence[float], place: Place, workers: int, say: Any) -> Job:
    """The job with the strength of the best average on the tuning seed and validation data."""
    tried = [
        replace(job, seed=TUNING_SEED, split="validation", options={**job.options, "strength": s})
        for s in strengths
    ]
    scores = [average(result["matrix"]) for result in complete(tried, place, workers, say)]
    best = max(range(len(scores)), key=scores.__getitem__)
    if best in (0, len(scores) - 1) and len(scores) > 1:
        say(f"{job.method}: strength {strengths[best]:g} is at the edge of those tried")
    return replace(job, options=tried[best].options)


def table(title: str, rows: dict[str, list[dict[str, Any]]], own: str | None) -> str:
    """Rows of results as Markdown, in %: mean ± SD, and `own` less each row, paired by seed."""
    some = next(iter(rows.values()))[0]
    scores = list(SCORES.items())[: None if "matrix" in some else 2]
    heads = [
        *[name for name, _ in scores],
        *(["online accuracy"] if "online" in some else []),
        "seconds",
    ]
    if own is not None:
        heads.insert(len(heads) - 1, f"{own} less it, average [95%]")
    lines = [f"## {title}\n", f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, results in rows.items():
        matrices = [_matrix(result) for result in results]
        cells = [_spread([score(matrix) for matrix in matrices]) for _, score in scores]
        if "online" in some:
            cells.append(_spread([fmean(result["online"]) for result in results]))
        if own is not None:
            ours = [average(_matrix(result)) for result in rows[own]]
            gap = paired(ours, [average(matrix) for matrix in matrices])
            cells.append("" if name == own else gap.text(100))
        cells.append(f"{fmean(result['seconds'] for result in results):.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _matrix(result: dict[str, Any]) -> Any:
    """Of accuracies; its last row alone where a harness has no other."""
    return result["matrix"] if "matrix" in result else [result["final"]]


def _spread(values: Sequence[float]) -> str:
    found = Spread.of([100 * value for value in values])
    return f"{found.mean:.1f} ± {found.sd:.1f}" if found.count > 1 else f"{found.mean:.1f}"
