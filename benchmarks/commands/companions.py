"""`python -m benchmarks companions NAME`: runs an experiment, and writes what came of it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from benchmarks.commands.options import check_data_dir, check_folder, parser
from benchmarks.companions import EXPERIMENTS
from benchmarks.companions.page import FOLDER, Options, Outcome
from benchmarks.data.errors import UserError, require_choice, require_range

EXAMPLES = """\
experiments:
{names}

examples:
  python -m benchmarks companions residual
  python -m benchmarks companions self-model --seeds 3 --data-dir ~/Downloads --only mnist
"""


def main(argv: Sequence[str] | None = None) -> int:
    names = "\n".join(f"  {name:<22} {said}" for name, (_, _, said) in EXPERIMENTS.items())
    made = parser(
        "python -m benchmarks companions",
        "Experiments with what goes beside the optimizers (docs/companions.md).",
        EXAMPLES.format(names=names),
    )
    add = made.add_argument
    add("name", metavar="NAME", nargs="?", default="", help="one of those below")
    shown = "seeds 0 … N-1 are run (default: 10; collapse: 20; correction: 15)"
    add("--seeds", type=int, help=shown)
    add("--steps", type=int, help="steps of a run (default: the experiment's own)")
    add("--only", nargs="+", default=[], metavar="PART", help="some parts of the experiment")
    add("--data-dir", help="where to look for the data first (then $SAL_OPTIM_DATA, ./data, …)")
    add("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add("--out", type=Path, default=Path("results"), help="folder for results (default: results)")
    args = made.parse_args(argv)
    require_choice("NAME", args.name, EXPERIMENTS)
    module_name, seeds, _ = EXPERIMENTS[args.name]
    for name in ("seeds", "steps", "jobs"):
        if getattr(args, name) is not None:
            require_range(f"--{name}", getattr(args, name), 1)
    check_folder(args.out)
    check_data_dir(args.data_dir)
    module = importlib.import_module(module_name)
    for part in args.only:
        require_choice("--only", part, module.PARTS)
    options = Options(args.seeds or seeds, args.steps, args.data_dir, args.jobs, tuple(args.only))
    torch.set_num_threads(1)
    try:
        outcome: Outcome = module.run(options)
    except ImportError as error:  # an extra is missing; the message says which
        raise UserError(f"{args.name}: {error}") from error
    path = outcome.write(
        args.out, args.name, module.PREDICTION, _command(args.name, options), f"{date.today()}"
    )
    print(path.read_text())
    print(f"written: {path}; {args.name}.json and figures are beside it in {FOLDER}/")
    return 0


def _command(name: str, options: Options) -> str:
    """As it can be given again, without what is this machine's."""
    parts = [f"python -m benchmarks companions {name} --seeds {options.seeds}"]
    if options.steps is not None:
        parts.append(f"--steps {options.steps}")
    if options.only:
        parts.append(f"--only {' '.join(options.only)}")
    return " ".join(parts)
