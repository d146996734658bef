"""Mathematics in the precision of its tensors, whatever ``torch.autocast`` is in force.

A step may be inside of the training's autocast. Its products would then be of two-byte floats.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

DEVICES = ("cpu", "cuda", "xpu", "mps")

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def exact(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The function, without autocast inside of it."""

    @functools.wraps(function)
    def called(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        casting = [device for device in DEVICES if torch.is_autocast_enabled(device)]
        if not casting:
            return function(*args, **kwargs)
        with contextlib.ExitStack() as stack:
            for device in casting:
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return called
