"""What a layer around an optimizer reads off its steps, and the hold that follows from it.

Functions of one parameter, its state and its group's settings; they know nothing of hooks. An
optimizer that can't be looked into shows how it moves: ``update_norm`` over ``gradient_norm``, both
exponential means over a tensor, is the step that it takes for a gradient of size 1.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sal_optim import kronecker, stability
from sal_optim.consolidation import INTERVAL
from sal_optim.evidence import GRANULARITIES, scaled_gradients
from sal_optim.pieces import Work, plain
from sal_optim.state import State, pull_by_direction
from sal_optim.utils.rounding import Number

Group = dict[str, Any]


def prepare_norms(param: Tensor, state: State) -> None:
    """Create the running norms that are missing: 0-dim float32 tensors on the device."""
    for name in ("update_norm", "gradient_norm"):
        if name not in state:
            state[name] = plain(param.detach()).new_zeros((), dtype=torch.float32)


def measure_gradient(item: Work, group: Group, loss_scale: float) -> None:
    """Take the norm of a gradient into its running mean."""
    norm = torch.linalg.vector_norm(item.grad, dtype=_wide(item.grad)) / loss_scale
    _track(item.state["gradient_norm"], norm, group["stats_beta"])


def measure_update(param: Tensor, old: Tensor, state: State, group: Group) -> None:
    """Take the norm of the optimizer's own update into its running mean."""
    norm = torch.linalg.vector_norm(param - old, dtype=_wide(param))
    _track(state["update_norm"], norm, group["stats_beta"])


def gather(item: Work, group: Group, scale: float, at: float) -> None:
    """Add a gradient to the pending evidence, rounded at ``at``."""
    granularity = GRANULARITIES[group["granularity"]]
    lists = {name: [value] for name, value in item.state.items()}
    granularity.gather(lists, [item.grad], scale, at)
    if item.sides is not None:
        kronecker.gather(item.sides, item.grad, scale, at)


def hold(
    item: Work,
    old: Tensor,
    state: State,
    group: Group,
    *,
    scale: float,
    unit: float,
    active: bool,
    unit_update: bool,
    pulls: bool,
) -> None:
    """Gate the update from ``old`` to ``item.param``, and pull it to its anchor, in place.

    Args:
        item: the parameter as the optimizer left it.
        old: its values before.
        state: its state.
        group: settings of the protection.
        scale: 1 / rms of all gradients.
        unit: the typical size of one scalar's gradient; 1 with ``unit_update``.
        active: whether the gate sees the activity.
        unit_update: updates do not scale with gradients.
        pulls: whether the pull is due.
    """
    lists = {name: [value] for name, value in item.state.items()}
    granularity = GRANULARITIES[group["granularity"]]
    evidence = granularity.evidence(lists, [item.param])
    activity = None
    if active:
        activity = scaled_gradients([item.grad], granularity.dtype(lists), scale)
        stability.square(activity)
    # The gate lets 1 - s of an update through: it is a pull to the old values by s, in the same
    # formula. Where s = 0 the parameter stays, bit for bit, where the optimizer put it.
    stability.pull([item.param], [old], _weights(evidence, group["protection"], activity, old))
    if pulls and "anchor" in lists and group["pull"] > 0.0:
        step = state["update_norm"]
        if unit_update:
            step = step / math.sqrt(max(item.param.numel(), 1))
        else:
            step = step / state["gradient_norm"].clamp_min(torch.finfo(torch.float32).tiny)
        stiffness = step * (group["protection"] * group["pull"] * unit * INTERVAL)
        if item.sides is not None:
            pull_by_direction(item, stiffness)
            return
        weights = _weights(evidence, stiffness, None, old)
        stability.pull([item.param], lists["anchor"], weights)


def _weights(
    evidence: list[Tensor],
    stiffness: Number,
    denominators: list[Tensor] | None,
    like: Tensor,
) -> list[Tensor]:
    weights = stability.pull_weights(evidence, stiffness, denominators)
    return [weight.expand_as(like) for weight in weights]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _track(mean: Tensor, value: Tensor, beta: float) -> None:
    """An exponential mean that begins at its first value; on the device, without a wait."""
    value = value.to(mean.dtype)
    mean.copy_(torch.where(mean == 0.0, value, torch.lerp(value, mean, beta)))
