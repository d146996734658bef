"""What is imported when it is first asked for: names of a package, and packages of an extra.

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


def extra_package(package: str, needs: str, extra: str) -> Any:
    """A package that an extra brings, or an ImportError that begins with ``needs`` ("x needs")."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{needs} the package {package}: pip install sal_optim[{extra}]"
        ) from error
