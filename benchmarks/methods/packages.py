"""Optimizers of other packages by name, `MODULE.CLASS`, as torch_optimizer.Yogi.

A package is imported when one of its optimizers is made. Its learning rate is the class's own
default, but for the few in RATES. What is protected, and how, is in layered.py.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from benchmarks.methods.bases import BASES, Base

# Without momentum and weight decay these take plain gradient steps, for which their default of
# 0.001 or 0.01 is next to nothing: they have the rate of the benchmark's own plain SGD.
RATES = {
    f"torch_optimizer.{name}": BASES["plain-sgd"].lr
    for name in ("AccSGD", "LARS", "PID", "QHM", "SGDP", "SGDW")
}
# Left out of a package's list, with the reason.
UNFIT = {
    "torch_optimizer.Lookahead": "it is no optimizer by itself",
}
UNSET = 1.0  # written down for an optimizer that sets its steps itself


def base(name: str) -> Base:
    """How the base called `name` is made: one of the benchmark's, or a class of a package.

    Raises:
        ImportError, AttributeError: there is no such module or class.
        TypeError: it is no optimizer.
    """
    return BASES[name] if name in BASES else _made(name)


def optimizer_names(package: str) -> list[str]:
    """The optimizers of a package, as it lists them, without those that are unfit."""
    module = importlib.import_module(package)
    listed = {f"{package}.{name}": getattr(module, name) for name in module.__all__}
    return [name for name, found in listed.items() if _is_optimizer(found) and name not in UNFIT]


@lru_cache
def version(name: str) -> str:
    """What decides how a class of a package steps: the package's version and the class's file."""
    package = name.partition(".")[0]
    try:
        release = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        release = ""
    return f"{release} {sha256(Path(inspect.getfile(_class(name))).read_bytes()).hexdigest()}"


def _made(name: str) -> Base:
    found = _class(name)
    parameter = inspect.signature(found).parameters.get("lr")
    own = parameter.default if parameter is not None else None
    rate = float(own) if isinstance(own, (int, float)) else None

    def make(params: Any, lr: float) -> Optimizer:
        return found(params) if rate is None else found(params, lr=lr)

    return Base(make, RATES.get(name, UNSET if rate is None else rate))


def _class(name: str) -> Callable[..., Optimizer]:
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    if not _is_optimizer(found):
        raise TypeError(f"{name} is no torch.optim.Optimizer")
    return found  # type: ignore[no-any-return]


def _is_optimizer(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Optimizer)
