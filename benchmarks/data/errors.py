"""The error that a user can act on, and the checks that raise it.

The command line prints a UserError as one line and exits with status 2. Anything else that goes
wrong is a fault of the program and keeps its traceback.
"""

from __future__ import annotations

import math
from collections.abc import Iterable


class UserError(Exception):
    """What was asked for cannot be done; the message says what would be."""


def require_choice(argument: str, value: str, allowed: Iterable[str]) -> None:
    """Raise a UserError unless `value` is one of `allowed`."""
    choices = list(allowed)
    if value not in choices:
        raise UserError(f"{argument}: {value!r} is unknown; allowed: {', '.join(choices)}")


def require_range(
    argument: str, value: float, low: float, high: float = float("inf"), *, open_low: bool = False
) -> None:
    """Raise a UserError unless low <= value <= high (low < value with `open_low`)."""
    inside = (low < value if open_low else low <= value) and value <= high and value < math.inf
    if not inside:
        sign = ">" if open_low else ">="
        upper = ", finite" if math.isinf(high) else f" and <= {high:g}"
        raise UserError(f"{argument}: {value:g} is out of range; allowed: {sign} {low:g}{upper}")
