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
    limit,
    observe,
)

# Losses that a window has at least.
FEWEST = 8.0
# The decay of the mean of recent losses, and what its deviation is of that of a single one.
RECENT = 0.9
SHARE = math.sqrt((1.0 - RECENT) / (1.0 + RECENT))
# Deviations above the mean of the segment at which it has risen, and at which that bears out a
# change that the norm has told of. Two bad batches come to less.
RISEN, BORNE_OUT = 3.0, 4.0


class Told:
    """What was told since the last step: numbers by signal, of which the step hears the mean."""

    def __init__(self) -> None:
        self._numbers: dict[str, list[float]] = {}

    def add(self, name: str, number: float) -> None:
        """Take one number; one that is not finite tells nothing."""
        if math.isfinite(number):
            self._numbers.setdefault(name, []).append(number)

    def means(self) -> list[tuple[str, float]]:
        """The mean of each signal, as of the batches of one step; what was told is then heard."""
        found = [(name, sum(of) / len(of)) for name, of in self._numbers.items()]
        self._numbers.clear()
        return found

    def clear(self) -> None:
        """Forget what was told."""
        self._numbers.clear()


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
        _follow(state, min(value, limit(state, settings, signal)))
        state["told_sum"] += value
        state["told_steps"] += 1.0
    verdict = observe(state, value, settings, signal)
    if verdict.change:
        begin_segment(state, signal)
    return verdict.change


def _follow(state: DetectorState, loss: float) -> None:
    """Take the loss into the recent ones, and see whether these fall or rise."""
    recent = state["told_recent"] or loss
    state["told_recent"] = recent = RECENT * recent + (1.0 - RECENT) * loss
    state["calm"] = float(is_ready(state, TOLD["loss"]) and recent <= state["loss_mean"])
    if has_risen(state, RISEN):
        # The data may be changing: what waited for a loss that falls is in force again.
        state["begun_told"] = 0.0


def has_risen(state: DetectorState, deviations: float) -> bool:
    """Whether recent losses are so far above the mean of their segment."""
    deviation = SHARE * math.sqrt(state["loss_variance"])
    above = state["told_recent"] - state["loss_mean"]
    return is_ready(state, TOLD["loss"]) and above > deviations * deviation


def bears_out(state: DetectorState) -> bool:
    """Whether losses have risen with a change that the norm has told of some steps before."""
    return state["consolidations"] > 0.0 and not is_ready(state) and has_risen(state, BORNE_OUT)


def begin_window(state: DetectorState) -> None:
    """Forget the losses of a window, and of the one before."""
    state.update(dict.fromkeys(("told_sum", "told_steps", "told_before"), 0.0))


def close_window(state: DetectorState) -> float:
    """The share by which the mean loss fell from one window to the next; 0 where that is unknown.

    Of a few losses nothing is told, and the window goes on.
    """
    count, before = state["told_steps"], state["told_before"]
    if count < FEWEST:
        return 0.0
    mean = state["told_sum"] / count
    begin_window(state)
    state["told_before"] = mean
    return max(0.0, 1.0 - mean / before) if before > 0.0 else 1.0
