"""The names of the family in other packages' registries; what trainers need is a file a trainer.

``register()`` makes the names below known to every package that has a registry, now or when it is
imported later. Packages that take a class (Lightning, Hydra, skorch, Accelerate …) need nothing.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Callable, MutableMapping, Sequence
from types import ModuleType
from weakref import WeakKeyDictionary

from sal_optim.adam import SALAdam, SALAdamW
from sal_optim.lion import SALLion
from sal_optim.monitoring.lookup import protection_of, required_protection
from sal_optim.muon import SALMuon
from sal_optim.protection.base import Protection
from sal_optim.sgd import SALSGD

__all__ = ["OPTIMIZERS", "logged", "protection_of", "register", "required_protection"]

# No underscore: timm takes "sal_adamw" for AdamW.
OPTIMIZERS = {
    "saladam": SALAdam,
    "saladamw": SALAdamW,
    "salsgd": SALSGD,
    "sallion": SALLion,
    "salmuon": SALMuon,
}


def register() -> None:
    """Make the family known to every package with a registry, imported already or not.

    Nothing is imported that the program does not import itself. Calling it twice is harmless.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for module, fill in _REGISTRIES.items():
        if module in sys.modules:
            fill()


# What callbacks have measured, beside the diagnostics of what they measured it for.
published: MutableMapping[Protection, dict[str, float]] = WeakKeyDictionary()


def logged(protection: Protection) -> dict[str, float]:
    """Diagnostics under the names that loggers show, ``sal/protected`` and so on.

    With the last ``sal/old_loss`` where a callback has a probe.
    """
    found = {**protection.diagnostics(), **published.get(protection, {})}
    return {f"sal/{name}": value for name, value in found.items()}


def name_in_transformers() -> None:
    """Add names for ``--optim`` of its TrainingArguments, a closed enumeration, where they lack.

    What a name builds is in ``transformers.py``, which needs the Trainer; command lines are parsed
    before that is imported.
    """
    from transformers.training_args import OptimizerNames

    for name in OPTIMIZERS:
        if name not in OptimizerNames._value2member_map_:
            member = str.__new__(OptimizerNames, name)
            member._name_, member._value_ = name.upper(), name
            OptimizerNames._member_names_.append(name.upper())
            OptimizerNames._member_map_[name.upper()] = member
            OptimizerNames._value2member_map_[name] = member


def _trainer() -> None:
    importlib.import_module(f"{__name__}.transformers").register()


def _timm() -> None:
    """``--opt saladamw`` in its training script, ``create_optimizer_v2(model, "saladamw")``."""
    from timm.optim._optim_factory import OptimInfo, default_registry

    for name, cls in OPTIMIZERS.items():
        arguments = inspect.signature(cls).parameters
        default_registry.register(
            OptimInfo(
                name=name,
                opt_class=cls,
                description=f"{cls.__name__}: forgets less",
                has_eps="eps" in arguments,
                has_momentum="momentum" in arguments,
                has_betas="betas" in arguments,
            )
        )


def _pytorch_optimizer() -> None:
    """``load_optimizer("saladamw")`` and ``create_optimizer(model, "saladamw")``."""
    from pytorch_optimizer import optimizer

    optimizer.OPTIMIZERS.update(OPTIMIZERS)


def _torch_optimizer() -> None:
    """``torch_optimizer.get("saladamw")``."""
    import torch_optimizer

    torch_optimizer._NAME_OPTIM_MAP.update(OPTIMIZERS)


# The module that holds a package's registry, and what fills it.
_REGISTRIES: dict[str, Callable[[], None]] = {
    "transformers.training_args": name_in_transformers,
    "transformers.trainer": _trainer,
    "timm.optim": _timm,
    "pytorch_optimizer": _pytorch_optimizer,
    "torch_optimizer": _torch_optimizer,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds a registry's module as Python would, and fills the registry once it is imported."""

    _searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _REGISTRIES or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """A module's own loader, with one thing done after it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _REGISTRIES[module.__name__]()
