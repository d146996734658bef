"""`--protect NAME`: an optimizer alone and in a CommunicationLayer, two rows of one comparison.

Here names are checked; what the rows are is in baselines/.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.baselines import METHODS, ROWS, SUFFIX, Method, Row
from benchmarks.baselines.packages import UNFIT, base, optimizer_names
from benchmarks.errors import UserError
from benchmarks.streams import Batch

ALL, PACKAGE = "all", "torch_optimizer"
PLAIN = [row.name for row in ROWS if row.kind is Method]
ALLOWED = (
    f"{', '.join(PLAIN)}, MODULE.CLASS of an installed optimizer, as {PACKAGE}.Yogi, "
    f"and {ALL} of {PACKAGE}'s"
)


def protected(given: Sequence[str]) -> list[str]:
    """Names of methods: each optimizer that was asked for, and the same in a layer after it."""
    asked = [part for item in given for part in item.split(",") if part]
    if not asked:
        raise UserError(f"--protect: no name given; allowed: {ALLOWED}")
    chosen = dict.fromkeys(name for one in asked for name in (_all() if one == ALL else [one]))
    for name in chosen:
        _check(name)
    return [method for name in chosen for method in (name, f"{name}{SUFFIX}")]


def _all() -> list[str]:
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            f"--protect: {ALL!r} needs {PACKAGE}, which is not installed; "
            "install it with `pip install torch-optimizer`, or name others"
        )
    return optimizer_names(PACKAGE)


def _check(name: str) -> None:
    """Raise a UserError unless the optimizer takes a step here, alone and in a layer."""
    if name not in PLAIN and "." not in name:
        raise UserError(f"--protect: {name!r} is unknown; allowed: {ALLOWED}")
    if name in UNFIT:
        raise UserError(f"--protect: {name!r} cannot be used ({UNFIT[name]}); allowed: {ALLOWED}")
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            for method in (name, f"{name}{SUFFIX}"):
                _step(METHODS[method])
    except UserError:
        raise
    except Exception as error:  # whatever a package's class may raise
        said = str(error).partition("\n")[0]
        raise UserError(
            f"--protect: {name!r} cannot be used ({said}); allowed: {ALLOWED}"
        ) from None


def _step(row: Row) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    method = row.build(model, base(row.base).lr, {})
    batch = Batch(torch.ones(2, 3), torch.tensor([0, 1]), None)
    nn.functional.cross_entropy(model(batch.x), batch.y).backward()  # type: ignore[no-untyped-call]
    method.optimizer.step()
