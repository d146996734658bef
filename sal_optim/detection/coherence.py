"""Coherence: whether the gradients of a window agree, as they do while a network learns.

The coherence of gradients is ``|mean g|^2 / mean |g|^2``, the share of their energy that lasts
(Chatterjee and Zielinski 2020, arXiv 2008.01217). A network that learns goes one way for many
steps; of what is learned only noise is left. Held while it learns, a network would not get there.

A few random projections ``u' G v`` stand for the whole gradient, so that no mean of it is kept.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sal_optim.detection.change_detector import PROJECTIONS, DetectorState
from sal_optim.detection.grad_norm import joined
from sal_optim.importance.low_rank import projection
from sal_optim.sharding.dtensor import Sharding, real_shape, totals
from sal_optim.sharding.places import where_of
from sal_optim.utils.rounding import wide

WIDTH = len(PROJECTIONS)
# Gradients that a window has at least: fewer say little.
FEWEST = 8.0
# Of a longer side a sample is projected: random directions take 64 bytes a row.
LONGEST = 1 << 16


def listens(state: DetectorState, every: Any) -> bool:
    """Whether coherence is to be measured: where protection rises with the clock.

    Args:
        every: the setting of the clock; None where there is none.
    """
    return every is not None and state["firm"] == 0.0


def projected(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    shardings: Sequence[Sharding | None],
    places: Sequence[int],
    count: int,
) -> Tensor:
    """Projections of all gradients together, the same in every process.

    Args:
        params: whose gradients they are.
        grads: real local parts.
        shardings: where the rest of each is; None if all of it is here.
        places: of these parameters among all, whether these have a gradient or not.
        count: of all parameters.

    Returns:
        A vector; the mean square of its numbers is an estimate of the gradients' squared norm.
    """
    found = [_projected(param, grad) for param, grad in zip(params, grads, strict=True)]
    rows = joined(totals(found, shardings))
    # Tensors of one shape have the same projections, and signs of their own.
    signs = projection(count, WIDTH, rows.dtype, rows.device).sign()
    return (rows * (signs if len(places) == count else signs[list(places)])).sum(0)


def _projected(param: Tensor, grad: Tensor) -> Tensor:
    grad = grad.to(wide(grad.dtype))
    if not grad.numel():
        return grad.new_zeros(WIDTH)
    shape = real_shape(param)
    whole = shape[0] if shape else 1, math.prod(shape[1:])
    matrix = grad.reshape(len(grad) if shape else 1, -1)
    part = matrix.shape != whole
    sides, factor = [], 1.0
    for dim, place in enumerate(where_of(param, grad.device) if part else (None, None)):
        # Of a long side one row in so many stands for all.
        stride = -(-whole[dim] // LONGEST)
        if stride > 1:
            factor *= stride
            seen = torch.arange(0, whole[dim], stride, device=grad.device)
            if place is not None:
                seen = (place % stride == 0).nonzero().flatten()
                place = place[seen] // stride
            matrix = matrix.index_select(dim, seen)
        drawn = projection(-(-whole[dim] // stride), 2 * WIDTH, grad.dtype, grad.device)
        sides.append(drawn if place is None else drawn[place])
    left, right = sides[0][:, :WIDTH], sides[1][:, WIDTH:]
    found = matrix.T[0] @ left if whole[1] == 1 else ((matrix @ right) * left).sum(0)
    return found if factor == 1.0 else found * math.sqrt(factor)


def hear(state: DetectorState, values: Sequence[float]) -> None:
    """Take the projections of one step's gradients into the window."""
    energy = sum(value * value for value in values)
    if 0.0 < energy < math.inf:
        for name, value in zip(PROJECTIONS, values, strict=True):
            state[name] += value
        state["energy"] += energy
        state["projected"] += 1.0


def begin_window(state: DetectorState) -> None:
    """Forget what was heard of a window."""
    state.update(dict.fromkeys((*PROJECTIONS, "energy", "projected"), 0.0))


def close_window(state: DetectorState) -> float | None:
    """The coherence of the window that ends, at most 1, and begin the next.

    It is without bias: gradients that have nothing in common have a coherence of 0 in the mean, and
    so below 0 now and then. Of a few gradients nothing is told: None, and the window goes on.
    """
    count, energy = state["projected"], state["energy"]
    if count < FEWEST:
        return None
    lasting = sum(state[name] * state[name] for name in PROJECTIONS)
    begin_window(state)
    if not (0.0 < energy < math.inf and lasting < math.inf):
        return None  # of no run, but of a file
    state["coherence"] = (lasting / energy - 1.0) / (count - 1.0)
    return state["coherence"]
