"""Signals that a training loop may tell: its loss, or the gradient's norm before it was clipped.

Both rise at a change of the data, whatever becomes of the gradient on its way to the optimizer. The
published threshold judges them as it judges the norm of the gradient that the optimizer sees. A
signal is a line of :data:`TOLD`: positive numbers, one a step, larger where the data is new.
"""

import math
from typing import Any

from sal_optim.detection.change_detector import (
    CONFIRMATIONS,
    DetectorState,
    Signal,
    begin_segment,
    observe,
)

# A change that is told puts protection at its whole strength, and takes three loud steps: a bad
# batch that is shown twice is no other data.
AT_MOST = CONFIRMATIONS / 3.0
TOLD = {
    "loss": Signal("loss_", 10.0, 30.0, AT_MOST),
    "norm": Signal("norm_", 10.0, 30.0, AT_MOST),
}


def hear(state: DetectorState, name: str, value: float, settings: dict[str, Any]) -> bool:
    """Judge one number; return whether it confirms a change.

    Args:
        name: a key of :data:`TOLD`.
        value: the number. Zero and what is not finite tell nothing.
    """
    signal = TOLD[name]
    if not 0.0 < value < math.inf:
        return False
    if signal.prefix + "steps" not in state:
        begin_segment(state, signal)
    verdict = observe(state, value, settings, signal)
    if verdict.change:
        begin_segment(state, signal)
    return verdict.change
