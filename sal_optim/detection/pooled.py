"""The gradient's norm, pooled over some steps: a change that the noise of small batches hides.

The threshold on single norms is four of their standard deviations above their mean, and with
batches of a few examples other data stays below it. The mean of some norms has less noise.
"""

from typing import Any

from sal_optim.detection.change_detector import POOLED, DetectorState, observe

POOL = 8.0  # steps


def hear(state: DetectorState, norm: float, settings: dict[str, Any]) -> bool:
    """Pool one gradient norm; return whether a full pool confirms a change.

    Args:
        norm: of the gradient, at most what aroused suspicion: no single step makes a pool loud.
    """
    state["pool"] += norm
    state["pool_steps"] += 1.0
    if state["pool_steps"] < POOL:
        return False
    mean = state["pool"] / POOL
    state["pool"] = state["pool_steps"] = 0.0
    return observe(state, mean, settings, POOLED).change


def suspects(state: DetectorState) -> bool:
    """Whether a pool was loud, and nothing is confirmed yet."""
    return state[POOLED.prefix + "suspicion"] > 0.0
