"""What is checked before the first run: the data for its streams, and the options of each method.

A wrong value found here is one line at once. Found in a worker it would be a traceback later.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.data.errors import UserError, require_range
from benchmarks.data.sets import Dataset
from benchmarks.methods import METHODS, Row
from benchmarks.methods.packages import base
from benchmarks.runs.plan import pairs_of
from benchmarks.streams import Batch

# Options of the baselines: lowest and highest value, and whether the lowest is left out. Those of
# sal_optim's optimizers are checked by these.
INFINITE = float("inf")
RANGES: dict[str, tuple[float, float, bool]] = {
    "alpha": (0, INFINITE, False),
    "beta_utility": (0, 1, False),
    "damping": (0, INFINITE, True),
    "decay": (0, 1, False),
    "factor": (0, INFINITE, True),
    "max_importance": (0, INFINITE, True),
    "first_threshold": (0, 1, False),
    "noise": (0, INFINITE, False),
    "prior": (0, INFINITE, True),
    "std": (0, INFINITE, True),
    "strength": (0, INFINITE, False),
    "tau0": (0, INFINITE, False),
    "temperature": (0, INFINITE, True),
    "threshold": (0, 1, False),
    "weight_decay": (0, INFINITE, False),
    "window": (0, INFINITE, True),
    "xi": (0, INFINITE, True),
}
COUNTS = ("every", "examples", "fisher_examples", "samples")
MOST_BATCH = 10_000  # or all examples, where there are more
SMALLEST_CONV = 4  # side of an image that two poolings leave a pixel of


def check_data(data: Dataset, streams: Sequence[str], args: argparse.Namespace) -> None:
    """Raise a UserError unless the streams and the network can be made of the data."""
    said, net = f"--data: {args.data!r}", args.net
    for part, x, y in (("train", data.train_x, data.train_y), ("test", data.test_x, data.test_y)):
        if not x.numel():
            raise UserError(f"{said} has no {part} images; allowed: at least one")
        if y.dim() != 1 or x.shape[1] != data.features:
            raise UserError(f"{said}: its {part} images differ in size; allowed: one size")
    if args.batch is not None:
        require_range("--batch", args.batch, 1, max(MOST_BATCH, len(data.train_y)))
    square = f"--net {net}" if net.startswith("conv") else ""
    for stream in streams:
        if stream == "rotated":
            square = "--stream rotated"
        if pairs_of(stream, data) is not None:
            _check_classes(said, data, stream)
    if square:
        try:
            side = data.side
        except UserError:
            raise UserError(
                f"{said} has images of {data.features} pixels; allowed for {square}: square images"
            ) from None
        if net.startswith("conv") and side < SMALLEST_CONV:
            raise UserError(
                f"{said} has images of {side} x {side}; allowed for --net conv: at least "
                f"{SMALLEST_CONV} x {SMALLEST_CONV}"
            )


def _check_classes(said: str, data: Dataset, stream: str) -> None:
    if data.classes < 2:
        raise UserError(f"{said} has {data.classes} class; allowed for {stream}: at least 2")
    for part, labels in (("train", data.train_y), ("test", data.test_y)):
        counts = torch.bincount(labels, minlength=data.classes)
        if not counts.all():
            missing = int(counts.argmin())
            raise UserError(
                f"{said} has no {part} images of class {missing}; allowed for {stream}: labels "
                f"0 to {data.classes - 1} in both parts"
            )


def check_options(method: str, options: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Raise a UserError unless the method takes a step with each option, and with all of them.

    `origins` are the arguments of the command line that the options came by.
    """
    row = METHODS[method]
    for name, value in options.items():
        argument = origins.get(name, "--tuned")
        if name not in row.allowed():
            allowed = ", ".join(row.allowed()) or "none"
            raise UserError(f"{argument}: {method} has no option {name!r}; allowed: {allowed}")
        if not row.uses_sal:
            _check_range(f"{argument}: {name}", name, value)
        _try(row, {name: value}, f"{argument}: {name}={value}")
    if len(options) > 1:
        said = ", ".join(f"{name}={value}" for name, value in options.items())
        _try(row, options, f"{origins.get(next(iter(options)), '--tuned')}: {said}")


def check_rate(value: Any, argument: str) -> float:
    """A learning rate above 0 from what was given; raises a UserError where it is none."""
    _number(f"{argument}: lr", value)
    require_range(f"{argument}: lr", value, 0, open_low=True)
    return float(value)


def _number(argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{argument}: {value!r} is no number; allowed: a finite number")


def _check_range(argument: str, name: str, value: Any) -> None:
    if name in COUNTS:
        _number(argument, value)
        if value != int(value):
            raise UserError(f"{argument}: {value!r} is no whole number; allowed: >= 1")
        require_range(argument, value, 1)
    elif name in RANGES:
        _number(argument, value)
        low, high, open_low = RANGES[name]
        require_range(argument, value, low, high, open_low=open_low)


def _try(row: Row, options: Mapping[str, Any], said: str) -> None:
    try:
        step(row, options)
    except UserError:
        raise
    except Exception as error:  # whatever an optimizer may raise
        why = str(error).partition("\n")[0]
        raise UserError(f"{said} cannot be used by {row.name} ({why})") from None


def step(row: Row, options: Mapping[str, Any]) -> None:
    """One step of the method on a network of two outputs; raises what its optimizer raises."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(3, 2))
        method = row.build(model, base(row.base).lr, options)
        batch = Batch(torch.ones(2, 3), torch.tensor([0, 1]), None)
        nn.functional.cross_entropy(model(batch.x), batch.y).backward()  # type: ignore[no-untyped-call]
        method.before_step(batch)
        method.optimizer.step()
