"""Command-line options that several sub-commands share, and their checks.

Types are checked by argparse, ranges and names here, so that each wrong value gets one line that
names the argument, the value and what is allowed.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.data.errors import UserError, require_choice, require_range
from benchmarks.data.sets import SOURCES, Dataset, load
from benchmarks.methods import GROUPS, METHODS, renamed
from benchmarks.methods.sal import current_option
from benchmarks.runs.checks import check_data
from benchmarks.runs.networks import NETWORKS
from benchmarks.runs.plan import literal
from benchmarks.runs.presets import PRESETS, Preset
from benchmarks.runs.settings import NO_FILE, TUNED, moved, tuned
from benchmarks.runs.variants import takers
from benchmarks.streams import ORDERS


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line; exit status 2."""

    def error(self, message: str) -> NoReturn:
        wrong = re.fullmatch(r"argument (\S+): invalid (int|float) value: (.+)", message)
        if wrong:
            kind = "whole number" if wrong[2] == "int" else "number"
            message = f"{wrong[1]}: {wrong[3]} is no {kind}; allowed: a {kind}"
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def parser(prog: str, summary: str, examples: str) -> Parser:
    return Parser(
        prog=prog,
        description=summary,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """What a run is made of."""
    add = parser.add_argument
    add("--preset", metavar="NAME", help=f"a published setting: {', '.join(PRESETS)}")
    add("--data", help=f"{', '.join(SOURCES)}, or a folder of IDX files (default: digits)")
    add("--data-dir", help="where to look for the data first (then $SAL_OPTIM_DATA, ./data, …)")
    add("--tasks", type=int, help="tasks a stream (default: 10, digits and rotated 5, split all)")
    add("--steps", type=int, help="steps a task (default: digits 200, mnist 300, fashion 600)")
    add("--batch", type=int, help="examples a step (default: digits 64, others 128)")
    add("--clip", type=float, help="norm that gradients are clipped to (default: none is)")
    add("--dropout", type=float, default=0.0, help="rate after each ReLU (default: %(default)g)")
    add("--lr", type=float, help="one learning rate for all methods (default: by base optimizer)")
    add("--hidden", help="widths of the hidden layers, as 256-256 (default: by image size)")
    add("--net", help=f"{' or '.join(NETWORKS)} (default: mlp); conv has --hidden after it")
    add("--order", choices=ORDERS, help="order of classes or angles (default: by stream)")
    add("--tuned", type=moved, default=str(TUNED),
        help="file of tuned settings, or none for the defaults")  # fmt: skip
    add("--jobs", type=int, help="runs at a time (default: all cores)")
    add("--out", type=Path, default=Path("results"), help="folder for results (default: results)")


def check_common(args: argparse.Namespace) -> Preset | None:
    """Check what was given, fill in what the preset says, and return the preset."""
    preset = _preset(args)
    args.data = args.data or "digits"
    args.net = args.net or "mlp"
    require_choice("--net", args.net, NETWORKS)
    for name in ("tasks", "steps", "batch", "jobs", "seeds", "trials"):
        value = getattr(args, name, None)
        if value is not None:
            require_range(f"--{name}", value, 1)
    for name in ("lr", "clip"):
        if getattr(args, name) is not None:
            require_range(f"--{name}", getattr(args, name), 0, open_low=True)
    require_range("--dropout", args.dropout, 0, 0.99)
    check_folder(args.out)
    check_data_dir(args.data_dir)
    if args.tuned != NO_FILE:
        tuned(args.tuned)
    return preset


def read_data(args: argparse.Namespace, streams: Sequence[str]) -> Dataset:
    """The data set that was asked for; raises a UserError where the streams can't be made of it."""
    try:
        data = load(args.data, args.data_dir)
    except (IndexError, RuntimeError, ValueError) as error:  # files of another shape
        said = str(error).partition("\n")[0]
        raise UserError(
            f"--data: {args.data!r} cannot be read ({said}); allowed: IDX files of images in three "
            "dimensions, with as many labels"
        ) from error
    check_data(data, streams, args)
    return data


def check_data_dir(given: str | None) -> None:
    """Raise a UserError where --data-dir is not there."""
    if given is not None and not Path(given).expanduser().exists():
        raise UserError(f"--data-dir: {given!r} does not exist; allowed: a folder or .tgz")


def check_folder(path: Path, argument: str = "--out") -> None:
    """Make a folder for results; raise a UserError where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(path, os.W_OK) else "it cannot be written to"
    except FileExistsError:
        reason = "it is a file"
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise UserError(f"{argument}: {str(path)!r} cannot be used ({reason}); "
                        "allowed: a folder, made if missing")  # fmt: skip


def check_file(path: Path, argument: str) -> None:
    """Raise a UserError unless a file can be written there; its folder is made."""
    if path.is_dir():
        raise UserError(f"{argument}: {str(path)!r} is a folder; allowed: a file to write")
    check_folder(path.parent, argument)


def _preset(args: argparse.Namespace) -> Preset | None:
    """What the command line leaves open is the preset's; what it says goes before."""
    if args.preset is None:
        return None
    require_choice("--preset", args.preset, PRESETS)
    preset = PRESETS[args.preset]
    args.by_preset = [name for name in preset.arguments if getattr(args, name, 0) is None]
    for name in args.by_preset:
        setattr(args, name, preset.arguments[name])
    return preset


def names(argument: str, given: Sequence[str] | None, default: Sequence[str],
          allowed: Sequence[str]) -> list[str]:  # fmt: skip
    """Names given one by one or with commas, checked, each once, in the order given."""
    chosen = [part for item in given or default for part in item.split(",") if part]
    if not chosen:
        raise UserError(f"{argument}: no name given; allowed: {', '.join(allowed)}")
    for name in chosen:
        require_choice(argument, name, allowed)
    return list(dict.fromkeys(chosen))


def method_names(given: Sequence[str] | None) -> list[str]:
    """Names of methods and of groups of them (`all` too), each method once; `quick` if none."""
    groups = {group: [row.name for row in rows] for group, rows in GROUPS.items()}
    groups["all"] = list(METHODS)
    current = [renamed(part) for item in given or [] for part in item.split(",") if part]
    chosen = names("--methods", current, ["quick"], [*METHODS, *groups])
    return list(dict.fromkeys(method for name in chosen for method in groups.get(name, [name])))


def assignments(
    given: Sequence[str], methods: Sequence[str] = ()
) -> list[tuple[str | None, str, Any]]:
    """`--set name=value` or `--set method.name=value` as (method or None, name, value).

    `methods` are those of `--protect`, which no table lists.
    """
    found = []
    for text in given:
        target, equals, value = text.partition("=")
        method, dot, name = target.rpartition(".")
        if not (equals and name and value):
            raise UserError(f"--set: {text!r} is no assignment; allowed: [METHOD.]NAME=VALUE")
        method = renamed(method)
        name, chosen = current_option(name, literal(value))
        if dot:
            require_choice("--set", method, list(dict.fromkeys([*METHODS, *methods])))
            takers("--set", text, name, [method])
        found.append((method or None, name, chosen))
    return found
