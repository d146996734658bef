"""`python -m benchmarks ordinary`: on one distribution SAL must lose nothing.

A perceptron on digits and a small GPT on Python's own standard library, each trained by a base
optimizer and by its SAL counterpart with the same seeds. Nothing changes in the data, so both
should end at the same loss. `--cases` has everyday situations on digits instead, in which gradients
leap though the data stays: `python -m benchmarks ordinary --cases all --seeds 10 --steps 900`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

import torch
from joblib import Parallel, delayed
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import sal_optim
from benchmarks.commands.options import parser
from benchmarks.data.characters import corpus, next_loss, windows
from benchmarks.data.errors import UserError, require_choice, require_range
from benchmarks.data.sets import load
from benchmarks.methods.plain import lion
from benchmarks.metrics.spread import Spread, paired
from benchmarks.runs.gpt import GPT
from benchmarks.runs.networks import mlp
from benchmarks.runs.situations import SITUATIONS, Outcome, run

Pair = tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]
PAIRS: dict[str, Pair] = {
    "Adam": (torch.optim.Adam, sal_optim.SALAdam, {"lr": 1e-3}),
    "AdamW": (torch.optim.AdamW, sal_optim.SALAdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    "SGD": (torch.optim.SGD, sal_optim.SALSGD, {"lr": 0.05, "momentum": 0.9}),
}
# Of the situations.
BASES: dict[str, Pair] = {
    "Adam": PAIRS["Adam"],
    "SGD, momentum": PAIRS["SGD"],
    "SGD": (torch.optim.SGD, sal_optim.SALSGD, {"lr": 0.1}),
    "Lion": (lion, sal_optim.SALLion, {"lr": 3e-4}),
}
BATCH = 16
EXAMPLES = """\
examples:
  python -m benchmarks ordinary
  python -m benchmarks ordinary --seeds 4 --steps 900
"""
# A situation is worse where the difference exceeds this share of the base's loss by two standard
# errors.
TOLERATED = 0.02


def gpt_loss(seed: int, make: Callable[..., Any], options: dict[str, Any], steps: int) -> Any:
    torch.manual_seed(seed)
    text, model = corpus(), GPT()
    split = int(0.9 * len(text))
    held, optimizer = text[split:], make(model.parameters(), **options)
    draw = torch.Generator().manual_seed(seed)

    def loss(source: Tensor, batch: int) -> Tensor:
        return next_loss(model, windows(source, batch, draw))

    return _train(
        model, optimizer, lambda: loss(text[:split], BATCH), steps, lambda: loss(held, 64)
    )


def digits_loss(seed: int, make: Callable[..., Any], options: dict[str, Any], steps: int) -> Any:
    data = load("digits", None)
    model = mlp(data.features, (100, 100), 10, seed=seed)
    optimizer, draw = make(model.parameters(), **options), torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        rows = torch.randint(len(data.train_x), (64,), generator=draw)
        return functional.cross_entropy(model(data.train_x[rows]), data.train_y[rows])

    return _train(
        model,
        optimizer,
        loss,
        steps,
        lambda: functional.cross_entropy(model(data.test_x), data.test_y),
    )


def _train(
    model: nn.Module,
    optimizer: Any,
    loss: Callable[[], Tensor],
    steps: int,
    held_out: Callable[[], Tensor],
) -> tuple[float, float]:
    """Final loss on held-out data, and detected changes."""
    torch.set_num_threads(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    sal = isinstance(optimizer, sal_optim.SALOptimizer)
    with torch.no_grad():
        final = held_out().item()
    return final, optimizer.diagnostics()["changes"] if sal else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("python -m benchmarks ordinary", "SAL beside its base on one task.", EXAMPLES)
    add = made.add_argument
    add("--seeds", type=int, default=5, help="seeds 0 … N-1 are run (default: %(default)s)")
    add("--steps", type=int, default=1500, help="digits; the GPT trains a third (%(default)s)")
    add("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    known = "; ".join(f"{name}: {situation.hint}" for name, situation in SITUATIONS.items())
    add("--cases", nargs="+", metavar="NAME", help=f"all, or some of {known}")
    add("--told", action="store_true", help="tell SAL the loss of each step, in --cases")
    args = made.parse_args(argv)
    if args.told and not args.cases:
        raise UserError("--told: it is for --cases; give --cases all, or some of them")
    for name, least in (("seeds", 1), ("steps", 3), ("jobs", 1)):
        require_range(f"--{name}", getattr(args, name), least)
    if args.cases:
        return compare_situations(args)
    runs = [
        (task, name, which, seed)
        for task in (digits_loss, gpt_loss)
        for name in PAIRS
        for which in (0, 1)
        for seed in range(args.seeds)
    ]
    results = Parallel(n_jobs=args.jobs)(
        delayed(task)(
            seed,
            PAIRS[name][which],
            PAIRS[name][2],
            args.steps if task is digits_loss else args.steps // 3,
        )
        for task, name, which, seed in runs
    )
    found = dict(zip(runs, results, strict=True))
    table = Table("data", "base", "base loss", "SAL loss", "changes detected", "SAL less base")
    for task in (digits_loss, gpt_loss):
        for name in PAIRS:
            base, sal = (
                [found[task, name, which, seed] for seed in range(args.seeds)] for which in (0, 1)
            )
            losses = [[loss for loss, _ in column] for column in (base, sal)]
            table.add_row(
                "digits" if task is digits_loss else "text",
                name,
                *(f"{fmean(x):.4f} ± {stdev(x) if len(x) > 1 else 0:.4f}" for x in losses),
                f"{sum(count for _, count in sal):.0f}",
                f"{fmean(b - a for a, b in zip(*losses, strict=True)):+.4f}",
            )
    Console().print(table)
    return 0


def compare_situations(args: argparse.Namespace) -> int:
    """Run the situations asked for and print a Markdown table of them."""
    for name in args.cases:
        require_choice("--cases", name, ["all", *SITUATIONS])
    names = list(SITUATIONS) if "all" in args.cases else args.cases
    head = ("situation", "base", "base's held-out loss", "SAL less base, %", "base's training loss",
            "SAL less base, %", "false alarms", "worse")  # fmt: skip
    print(f"| {' | '.join(head)} |", "|---|---|" + 5 * "---:|" + "---|", sep="\n", flush=True)
    for name in names:
        for base, (plain, protected, options) in BASES.items():
            rates = SITUATIONS[name].rates.get(base, 2 * (options["lr"],))
            found = Parallel(n_jobs=args.jobs)(
                delayed(run)(
                    name,
                    seed,
                    make,
                    {**options, "lr": lr},
                    args.steps,
                    told=args.told and make is protected,
                )
                for make, lr in zip((plain, protected), rates, strict=True)
                for seed in range(args.seeds)
            )
            cells = situation_cells(found[: args.seeds], found[args.seeds :])
            print(f"| {' | '.join((name, base, *cells))} |", flush=True)
    return 0


def situation_cells(base: Sequence[Outcome], sal: Sequence[Outcome]) -> list[str]:
    """Both losses and their paired differences in percent, alarms, and what is worse."""
    cells, worse = [], []
    for loss in ("held_out", "training"):
        theirs, ours = ([getattr(outcome, loss) for outcome in runs] for runs in (base, sal))
        mean = fmean(theirs)
        gaps = Spread.of([b - a for a, b in zip(theirs, ours, strict=True)])
        cells += [f"{mean:.4f} ± {Spread.of(theirs).sd:.4f}"]
        cells += [paired(ours, theirs).text(100 / mean)]
        if gaps.mean - 2.0 * gaps.sem > TOLERATED * mean:
            worse.append(loss.replace("_", "-"))
    return [*cells, f"{fmean(o.changes for o in sal):.1f}", ", ".join(worse) or "no"]
