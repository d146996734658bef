"""Running statistics of each tensor: its gradient's norm and the length of its updates.

They are ``g_norm`` and ``delta_w`` of the published stability ``s = 1 / (1 + delta_w * g_norm)``
(Self-Alignment Learning), which reports show as published.
"""

import math
from collections.abc import Sequence

from sal_optim.importance import State


def track(
    states: Sequence[State], values: Sequence[float], beta: float, *, update: bool = False
) -> None:
    """Take a number of each tensor into its exponential mean and variance.

    Args:
        values: norms of gradients, or with ``update`` of the last updates.
        beta: decay of the statistics, in [0, 1).
    """
    mean, variance = (
        ("delta_w_mean", "delta_w_var") if update else ("grad_norm_mean", "grad_norm_var")
    )
    for state, value in zip(states, values, strict=True):
        if not math.isfinite(value):
            continue  # a weight that is not finite would be in the mean for ever
        if update:
            state["delta_w"] = value
        known = state[mean]
        if known == 0.0:
            state[mean] = value
            continue
        delta = value - known
        state[mean] = known + (1.0 - beta) * delta
        state[variance] = beta * (state[variance] + (1.0 - beta) * delta * delta)


def published_stability(state: State) -> float:
    """``1 / (1 + delta_w * g_norm)`` of one tensor, in (0, 1]; 1 before it was measured."""
    length, norm = state.get("delta_w", 0.0), state.get("grad_norm_mean", 0.0)
    return 1.0 / (1.0 + float(length) * float(norm))
