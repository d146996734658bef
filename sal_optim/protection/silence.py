"""Warnings of a protection that is asked for and does not happen."""

from typing import Any

from sal_optim.detection.change_detector import DetectorState, new_detector
from sal_optim.protection.clock import INTERVAL, window
from sal_optim.protection.holder import Holder
from sal_optim.utils.warning import warn

# Windows of the clock without a consolidation after which it is told.
PATIENCE = 4
IDLE = (
    "no parameter had a gradient, so nothing is trained or protected: where the model's parameters "
    "were replaced, as by to_empty() or load_state_dict(assign=True), make the optimizer of the "
    "new ones"
)
NOTHING_NEW = (
    "there was nothing to consolidate, so nothing new is protected: steps at lr=0, and with "
    "gradients that are zero or not finite, tell nothing; look at the gradients and the learning "
    "rate"
)


class Patience:
    """Counts the steps that one instance has seen since a consolidation, and warns once."""

    def __init__(self) -> None:
        self._steps, self._consolidations, self._told = 0, 0.0, False
        self._idle = 0

    def count_idle(self, detector: DetectorState, every: Any) -> None:
        """One more step that saw no gradient at all, after others."""
        self._idle += 1
        # It is told without a clock too, by the automatic one.
        self._tell(self._idle, detector, "auto" if every is None else every, IDLE)

    def count(self, detector: DetectorState, every: Any) -> None:
        """One more step."""
        same = detector["consolidations"] == self._consolidations
        self._steps = self._steps + 1 if same else 0
        self._consolidations = detector["consolidations"]
        self._idle = 0
        self._tell(self._steps, detector, every, NOTHING_NEW)

    def _tell(self, steps: int, detector: DetectorState, every: Any, why: str) -> None:
        if self._told or every is None:
            return
        if steps >= PATIENCE * max(window(detector, every), INTERVAL):
            self._told = True
            warn(f"in {steps} steps {why}")


def agree(holder: Holder, *, known: bool) -> bool:
    """Have the change detector agree with the state, where one of the two was lost.

    Where param groups were put back to what they were, importance is protected as that of a file
    is. Where a framework or a user emptied the state, the detector begins anew with it.

    Args:
        known: whether there is importance of a parameter that has a gradient.

    Returns:
        Whether the state was emptied.
    """
    detector = holder.detector
    if known:
        if not detector["consolidations"]:
            detector["consolidations"] = detector["firm"] = 1.0
        return False
    if not detector["consolidations"] or next(holder.held(), None) is not None:
        return False
    warn(
        f"the importance of {int(detector['consolidations'])} consolidations is gone, as "
        "optimizer.state was emptied or the parameters were replaced; protection begins anew. "
        "Load the state_dict after that, or keep the entries of optimizer.state"
    )
    detector.update(new_detector())
    return True
