"""What is imported when it is first asked for: names of a package, and packages of an extra.

What those names are is each package's own.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, Sequence[str]], scope: Mapping[str, Any]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """A ``__getattr__`` and a ``__dir__`` for a package.

    Args:
        names: by module, inside the package, those that it has; its own stands for itself.
        scope: the package's ``globals()``, with its ``__all__``.
    """

    def get(name: str) -> object:
        path = next((path for path, found in names.items() if name in found), None)
        if path is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{path}")
        return module if name == path else getattr(module, name)

    def listed() -> list[str]:
        return sorted({*scope, *scope["__all__"]})

    return get, listed


def extra_package(package: str, needs: str, extra: str) -> Any:
    """A package that an extra brings, or an ImportError that begins with ``needs`` ("x needs")."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{needs} the package {package}: pip install 'sal_optim[{extra}]', or '.[{extra}]' in "
            "the folder of sal_optim"
        ) from error
