"""Short and old paths of modules. An old one works for one minor release, and says its new path.

A module of an old path is the very module of the new one, imported when it is asked for. When the
table is empty, this file goes.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

PACKAGE = __name__.rpartition(".")[0]

# Old path: new path, both inside the package; files of an old folder are in the new one.
MOVED = {
    "communication": "layer",  # pickles name it
    "live": "monitoring.live_view",
    "monitors": "companions",
    "objectives": "companions",
    "plot": "monitoring.plot",
    "reporting": "monitoring.report",
    "writers": "monitoring.writers",
}
# Of these, names that stay: short, public, and alike. The others warn.
PUBLIC = frozenset({"monitors", "plot", "writers"})
# The version that has the new paths and the public names alone.
REMOVAL = "0.3.0"


def old_module(name: str) -> ModuleType:
    """The module that had a name of :data:`MOVED`, for a ``__getattr__`` of the package."""
    _warn(name, stacklevel=4)
    return importlib.import_module(f"{PACKAGE}.{MOVED[name]}")


def install() -> None:
    """Let ``import`` find old paths, too. Calling it twice is harmless."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # First: in a folder that is known by two names, Python would find its files twice.
        sys.meta_path.insert(0, _Finder())


def _warn(name: str, stacklevel: int) -> None:
    if name in PUBLIC:
        return
    warnings.warn(
        f"{PACKAGE}.{name} is now {PACKAGE}.{MOVED[name]}; the old path is removed in {REMOVAL}",
        FutureWarning,
        stacklevel=stacklevel,
    )


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, inside = fullname.partition(".")
        first, dot, rest = inside.partition(".")
        if package != PACKAGE or first not in MOVED:
            return None
        new = f"{PACKAGE}.{MOVED[first]}{dot}{rest}"
        found = importlib.util.find_spec(new)
        if found is None:
            return None
        is_package = found.submodule_search_locations is not None
        return importlib.machinery.ModuleSpec(fullname, _Loader(new), is_package=is_package)


class _Loader(importlib.abc.Loader):
    def __init__(self, new: str) -> None:
        self._new = new

    def exec_module(self, module: ModuleType) -> None:
        _, first, *rest = module.__name__.split(".")
        if not rest:  # a folder is always imported before what is in it
            _warn(first, stacklevel=3)
        # Python takes what it finds here for the module.
        sys.modules[module.__name__] = importlib.import_module(self._new)
