"""Registers the family in a Python that a launcher has started, as ``torchrun`` does its workers.

``sal_optim.run`` puts this folder on ``PYTHONPATH`` of the commands that it starts, and Python
imports a file of this name by itself. Not for any other use.
"""

import contextlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_HERE = str(Path(__file__).parent)


def _next() -> ModuleType | None:
    """Run the file of this name that would have been found without this one."""
    rest = [path for path in sys.path if path != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_following = _next()  # kept, with what it holds
# A Python that can't import the package is none that trains.
with contextlib.suppress(ImportError):
    from sal_optim.integrations import register

    register()
