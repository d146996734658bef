"""`python -m benchmarks lora`: texts in turn through LoRA adapters, and what is kept of each."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from joblib import Parallel, delayed
from rich.console import Console
from rich.table import Table

from benchmarks.commands.options import check_data_dir, check_folder, names, parser
from benchmarks.data.errors import UserError, require_range
from benchmarks.finetune.adapters import TOLD, WAYS, Setting, run
from benchmarks.finetune.texts import load
from benchmarks.metrics.spread import Spread, paired
from benchmarks.runs.records import package_sources, read_result, write_atomically, write_result
from benchmarks.runs.sources import hash_of, source_hash, sources
from benchmarks.runs.suite import default_jobs

EXAMPLES = """examples:
  python -m benchmarks lora --domains code foldoc --data-dir ~/corpora
  python -m benchmarks lora --domains code brown-fiction foldoc brown-religion --seeds 5
  python -m benchmarks lora --domains code foldoc --four-bits     # QLoRA, needs bitsandbytes
"""
# Tried by every way on a tuning seed and validation text; the lowest mean loss at the end is taken.
RATES, TUNING = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), 1000


def main(argv: Sequence[str] | None = None) -> int:
    args, console = _arguments(argv), Console()
    base = Setting(
        way="adamw",
        lr=0.0,
        seed=0,
        old=args.old,
        texts=tuple(args.domains),
        fingerprints=tuple(
            load(name, args.data_dir).fingerprint() for name in (*args.domains, args.old)
        ),
        steps=args.steps,
        rank=args.rank,
        four_bits=args.four_bits,
    )
    _check_packages(args)
    trials = [
        replace(base, way=way, lr=rate, seed=TUNING, split="validation")
        for way in args.methods
        for rate in RATES
    ]
    tried = _complete(trials, args, console)
    chosen = {}
    for way in args.methods:
        ends = {
            one.lr: fmean(result["losses"][-1][:-1])
            for one, result in zip(trials, tried, strict=True)
            if one.way == way
        }
        chosen[way] = min(ends, key=lambda rate: ends[rate])
        if chosen[way] in (RATES[0], RATES[-1]):
            console.print(f"{way}: {chosen[way]:g} is the last of the rates that were tried")
    plan = [
        replace(base, way=way, lr=chosen[way], seed=seed)
        for way in args.methods
        for seed in range(args.seeds)
    ]
    results = _complete(plan, args, console)
    made = rows(plan, results)
    texts = "-".join(Path(name).stem for name in (args.old, *args.domains))
    bits = "-4bit" if args.four_bits else ""
    stem = f"lora-{texts}-{args.steps}-rank{args.rank}{bits}.md"
    text = [f"| {' | '.join(HEAD)} |", "|---" * 3 + "|---:" * (len(HEAD) - 3) + "|"]
    text += [f"| {' | '.join(row)} |" for row in made]
    write_atomically(args.out / stem, "\n".join(text) + "\n")
    table = Table(*HEAD, title=f"{', '.join(args.domains)}: {args.steps} steps each")
    for row in made:
        table.add_row(*row)
    console.print(table)
    console.print(f"written: {args.out / stem}", highlight=False, markup=False)
    return 0


HEAD = ("way", "boundaries", "lr", "loss at the end", "just learned", "last text",
        "pretraining text", "at the end, less AdamW's")  # fmt: skip


def rows(plan: Sequence[Setting], results: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Of each way: means over texts in nats a character, their spread over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one, result in zip(plan, results, strict=True):
        found.setdefault(one.way, []).append(result)
    ends = {way: [fmean(r["losses"][-1][:-1]) for r in runs] for way, runs in found.items()}
    first = found[plan[0].way]
    before = _text([fmean(r["losses"][0][:-1]) for r in first])
    made: list[tuple[str, ...]] = [("before", "", "", before, "", "", _old(first, 0), "")]
    for way, runs in found.items():
        texts = len(runs[0]["losses"]) - 1
        learned = [fmean(r["losses"][at + 1][at] for at in range(texts)) for r in runs]
        last = [r["losses"][-1][texts - 1] for r in runs]
        other = ends.get("adamw")
        less = paired(ends[way], other).text(digits=3) if other and way != "adamw" else ""
        rate = next(one.lr for one in plan if one.way == way)
        told = "given" if way in TOLD else "no"
        spread = [_text(values) for values in (ends[way], learned, last)]
        made.append((way, told, f"{rate:g}", *spread, _old(runs, -1), less))
    return made


def _old(runs: Sequence[dict[str, Any]], place: int) -> str:
    return _text([run["losses"][place][-1] for run in runs])


def _text(values: Sequence[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.mean:.3f} ± {spread.sd:.3f}"


def _complete(plan: Sequence[Setting], args: Namespace, console: Console) -> list[dict[str, Any]]:
    """All results, in order; what is on record is read."""
    code = hash_of(
        [source_hash(path) for path in (*sources((run,), "benchmarks"), *package_sources())]
    )
    versions = [version(name) for name in ("torch", "peft", "bitsandbytes")[: 2 + args.four_bits]]
    keys = [hash_of(one.plain(), code, versions) for one in plan]
    paths = [
        args.out / "records" / "lora" / f"{one.way}-seed{one.seed}-{name[:16]}.json"
        for one, name in zip(plan, keys, strict=True)
    ]
    results = [read_result(path, name, print) for path, name in zip(paths, keys, strict=True)]
    missing = [place for place, result in enumerate(results) if result is None]
    console.print(f"{len(plan)} runs, {len(missing)} to compute", highlight=False)
    # Two workers must not both pretrain the network of one seed.
    first = {plan[place].seed: place for place in reversed(missing)}.values()
    workers = Parallel(n_jobs=args.jobs, return_as="generator_unordered")
    for at in ([*first], [place for place in missing if place not in first]):
        for place, result in workers(delayed(_placed)(place, plan[place], args) for place in at):
            one, results[place] = plan[place], result
            write_result(paths[place], keys[place], result, {"setting": one.plain()})
            _say(one, result, console)
    return [result for result in results if result is not None]


def _placed(place: int, one: Setting, args: Namespace) -> tuple[int, dict[str, Any]]:
    return place, run(one, args.out / "pretrained", args.data_dir)


def _say(one: Setting, result: dict[str, Any], console: Console) -> None:
    end = ", ".join(f"{loss:.3f}" for loss in result["losses"][-1])
    console.print(f"{one.way} lr {one.lr:g} seed {one.seed}: {end}", highlight=False)


def _arguments(argv: Sequence[str] | None) -> Namespace:
    made = parser("python -m benchmarks lora", "Texts in turn through LoRA adapters.", EXAMPLES)
    add = made.add_argument
    add("--old", default="prose", help="the text to pretrain on (default: %(default)s)")
    add("--domains", nargs="+", required=True, metavar="TEXT", help="texts, see finetune --help")
    add("--methods", nargs="+", metavar="NAME", help=f"of {', '.join(WAYS)} (default: all)")
    add("--steps", type=int, default=150, help="of 8 x 64 characters (default: %(default)s)")
    add("--rank", type=int, default=8, help="of an adapter (default: %(default)s)")
    add("--seeds", type=int, default=5, help="seeds 0 … N-1 (default: %(default)s)")
    add("--four-bits", action="store_true", help="the network's own weights in four bits")
    add("--data-dir", help="where to look for texts first")
    add("--jobs", type=int, default=default_jobs(), help="runs at a time (default: %(default)s)")
    add("--out", type=Path, default=Path("results"), help="folder (default: %(default)s)")
    args = made.parse_args(argv)
    args.methods = names("--methods", args.methods, list(WAYS), list(WAYS))
    for name in ("steps", "rank", "seeds", "jobs"):
        require_range(f"--{name}", getattr(args, name), 1)
    check_data_dir(args.data_dir)
    check_folder(args.out)
    return args


def _check_packages(args: Namespace) -> None:
    needed = {"peft": True, "bitsandbytes": args.four_bits}
    for name, wanted in needed.items():
        if wanted and importlib.util.find_spec(name) is None:
            raise UserError(f"python -m benchmarks lora needs {name}: pip install {name}")
