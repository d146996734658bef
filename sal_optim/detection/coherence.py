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
from sal_optim.importance.low_rank import projection
from sal_optim.sharding.dtensor import Sharding, real_shape
from sal_optim.sharding.places import where_of
from sal_optim.utils.rounding import wide

WIDTH = len(PROJECTIONS)


def listens(state: DetectorState, every: Any) -> bool:
    """Whether coherence is to be measured: where protection rises with the clock.

    Args:
        every: the setting of the clock; None where there is none.
    """
    return every is not None and state["firm"] == 0.0


def projected(
    params: Sequence[Tensor], grads: Sequence[Tensor], shardings: Sequence[Sharding | None]
) -> Tensor:
    """Projections of all gradients together, the same in every process.

    Args:
        params: whose gradients they are.
        grads: real local parts.
        shardings: where the rest of each is; None if all of it is here.

    Returns:
        A vector; the mean square of its numbers is an estimate of the gradients' squared norm.
    """
    found = [_projected(param, grad) for param, grad in zip(params, grads, strict=True)]
    meshes: dict[Sharding, list[int]] = {}
    for index, where in enumerate(shardings):
        if where is not None:
            meshes.setdefault(where, []).append(index)
    for where, indices in meshes.items():
        rows = where.total(torch.stack([found[index] for index in indices]))
        for index, row in zip(indices, rows.unbind(), strict=True):
            found[index] = row
    device = found[-1].device
    rows = torch.stack([row.to(device, torch.float32, non_blocking=True) for row in found])
    # Tensors of one shape have the same projections, and signs of their own.
    return (rows * projection(len(rows), WIDTH, rows.dtype, device).sign()).sum(0)


def _projected(param: Tensor, grad: Tensor) -> Tensor:
    grad = grad.to(wide(grad.dtype))
    if not grad.numel():
        return grad.new_zeros(WIDTH)
    shape = real_shape(param)
    rows, columns = shape[0] if shape else 1, math.prod(shape[1:])
    matrix = grad.reshape(len(grad) if shape else 1, -1)
    left = projection(rows, 2 * WIDTH, grad.dtype, grad.device)[:, :WIDTH]
    right = projection(columns, 2 * WIDTH, grad.dtype, grad.device)[:, WIDTH:]
    if matrix.shape != (rows, columns):  # a part of it
        down, across = where_of(param, grad.device)
        left, right = left[down], right[across]
    if columns == 1:
        return matrix.T[0] @ left
    return ((matrix @ right) * left).sum(0)


def hear(state: DetectorState, values: Sequence[float]) -> None:
    """Take the projections of one step's gradients into the window."""
    energy = sum(value * value for value in values)
    if 0.0 < energy < math.inf:
        for name, value in zip(PROJECTIONS, values, strict=True):
            state[name] += value
        state["energy"] += energy
        state["projected"] += 1.0


def close_window(state: DetectorState) -> float:
    """The coherence of the window that ends, at most 1; the next begins.

    It is without bias: gradients that have nothing in common have a coherence of 0 in the mean, and
    so below 0 now and then. Of one gradient it is 0.
    """
    count, energy = state["projected"], state["energy"]
    lasting = sum(state[name] ** 2 for name in PROJECTIONS)
    state.update(dict.fromkeys((*PROJECTIONS, "energy", "projected"), 0.0))
    if count > 1.0:
        state["coherence"] = (lasting / energy - 1.0) / (count - 1.0)
    return state["coherence"] if count > 1.0 else 0.0
