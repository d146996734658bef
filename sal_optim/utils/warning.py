"""One warning, at the line of the user's that led to it."""

import contextlib
import sys
import warnings
from pathlib import Path

import torch

# Frames that are passed over: this package, torch with its decorators, and context managers.
INSIDE = (
    str(Path(__file__).resolve().parents[1]),
    str(Path(torch.__file__).resolve().parent),
    str(contextlib.__file__),
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, past the frames of this package and of torch."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
