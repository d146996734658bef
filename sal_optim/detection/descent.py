"""Descent: whether the loss still falls along the way that the weights have come.

The slope of the loss along the displacement from the anchor, ``<g, w - anchor>``, is below 0 in
the mean while a network learns: the way it has come goes on downhill. In a network that has learned
gradients are noise around a minimum, and the mean is 0 or above it (Yaida 2019, arXiv 1810.00004).
Held while it learns, a network would not get there.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sal_optim.detection.change_detector import SLOPE, DetectorState, begin_segment, record
from sal_optim.detection.grad_norm import joined
from sal_optim.sharding.dtensor import Sharding, totals
from sal_optim.utils.rounding import wide

# The decay of the slope's statistics, of one step in four.
RECENT = 0.9
# The least standard deviation of the cosine that is told: weights that settle still go downhill a
# little, without much noise.
LEAST = 0.05
# Of a network that learns fast: the cosine of each of so many slopes in a row. After a change of
# the data weights soon go another way than they have come.
STEEP, RUNNING = 0.1, 3.0


def listens(state: DetectorState, every: Any) -> bool:
    """Whether the slope is to be measured: where protection rises with the clock.

    Args:
        every: the setting of the clock; None where there is none.
    """
    return every is not None and state["firm"] == 0.0


def measured(
    grads: Sequence[Tensor], moved: Sequence[Tensor], shardings: Sequence[Sharding | None]
) -> Tensor:
    """Inner product of gradients and displacements, and the displacements' squared norm.

    Args:
        grads: real local parts; the loss falls against them.
        moved: how far each tensor is from its anchor.
        shardings: where the rest of each is; None if all of it is here.

    Returns:
        Two numbers of all tensors together, the same in every process.
    """
    found = []
    for grad, way in zip(grads, moved, strict=True):
        dtype = wide(grad.dtype)
        gone = way.to(dtype).flatten()
        found.append(torch.stack([grad.to(dtype).flatten().dot(gone), gone.dot(gone)]))
    return joined(totals(found, shardings)).sum(0)


def hear(state: DetectorState, slope: float, moved: float, norm: float) -> None:
    """Take the slope of one step, as a cosine.

    Args:
        slope: inner product of gradient and displacement.
        moved: the displacement's squared norm; where it is 0 nothing is told.
        norm: of the gradient.
    """
    size = norm * math.sqrt(max(moved, 0.0))
    if 0.0 < size < math.inf and math.isfinite(slope):
        cosine = slope / size
        record(state, cosine, beta=RECENT, signal=SLOPE)
        state["downhill"] = state["downhill"] + 1.0 if cosine < -STEEP else 0.0


def begin(state: DetectorState) -> None:
    """Forget what was heard: the anchor has moved to where other data begins."""
    begin_segment(state, SLOPE)
    interrupt(state)


def interrupt(state: DetectorState) -> None:
    """A gradient is surprising: its slope is not heard, and what was heard before says less."""
    state["downhill"] = 0.0


def breaks_through(state: DetectorState) -> bool:
    """Whether the network learns fast just now: the last slopes were all steep."""
    return state["downhill"] >= RUNNING


def descent(state: DetectorState) -> float | None:
    """By how many of its standard deviations the mean slope is below 0; None if not known yet.

    Without a unit: neither the learning rate nor the size of the loss is in it. The deviation
    counts as ``LEAST`` at least.
    """
    if state["slope_steps"] < SLOPE.warmup:
        return None
    return -state["slope_mean"] / max(math.sqrt(state["slope_variance"]), LEAST)
