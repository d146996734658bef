"""Names of a package that are imported when they are first asked for: importing it stays quick.

What those names are is each package's own.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, str], scope: Mapping[str, Any]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """A ``__getattr__`` and a ``__dir__`` for a package.

    Args:
        package: its name.
        names: each name with the module, inside the package, that has it; a name that is its
            module's stands for the module.
        scope: the package's ``globals()``, with its ``__all__``.
    """

    def get(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{names[name]}")
        return module if name == names[name] else getattr(module, name)

    def listed() -> list[str]:
        return sorted({*scope, *scope["__all__"]})

    return get, listed
