"""Signals that a training loop may tell: its loss, or the gradient's norm before it was clipped.

Both rise at a change of the data, whatever becomes of the gradient on its way to the optimizer. The
published threshold judges them as it judges the norm of the gradient that the optimizer sees. A
signal is a line of ``TOLD`` in ``change_detector.py``.
"""

import math
from typing import Any

from sal_optim.detection.change_detector import (
    TOLD,
    DetectorState,
    begin_segment,
    is_ready,
    observe,
)


def hear(state: DetectorState, name: str, value: float, settings: dict[str, Any]) -> bool:
    """Judge one number; return whether it confirms a change.

    Args:
        name: a key of ``TOLD``.
        value: the number. What is not finite, or not above 0, tells nothing.
    """
    if not 0.0 < value < math.inf:
        return False
    signal = TOLD[name]
    if name == "loss":
        usual = state["loss_mean"] + math.sqrt(state["loss_variance"])
        state["calm"] = float(is_ready(state, signal) and value <= usual)
    verdict = observe(state, value, settings, signal)
    if verdict.change:
        begin_segment(state, signal)
    return verdict.change
