"""The anchor: the weights that the penalty draws back to, and the forms that it is kept in.

A matrix can be kept in eight bits (``state_dtype="int8"``), with one scale a row. A consolidation
moves an anchor by less than one of 127 places, so that it is rounded up or down in turn; and a
scale stays while it fits, so that what does not move is not rounded anew. Where columns are cut
over processes, each process has a scale of its part of a row, so that none needs another's.
"""

from typing import Any

import torch
from torch import Tensor

from sal_optim.importance import State
from sal_optim.sharding.dtensor import plain
from sal_optim.sharding.places import where_of
from sal_optim.sharding.stacked import row_shape, row_zeros
from sal_optim.utils.rounding import GOLDEN

EIGHT_BITS = "int8"
LARGEST = 127
# The scale of a row is chosen for this largest value, and anew where it has fallen to a third.
CHOSEN, LEAST = 120, 40
# Nearer than this to a whole number is one: what was kept, and read with its rounding.
WHOLE = 1e-3


def dtype_of(param: Tensor, group: dict[str, Any]) -> torch.dtype:
    """The dtype of importance, and of anchors where one is set."""
    if group["state_dtype"] == EIGHT_BITS:
        return torch.bfloat16
    if group["state_dtype"] is not None:
        return getattr(torch, group["state_dtype"])  # type: ignore[no-any-return]
    return torch.float64 if param.dtype in (torch.float64, torch.complex128) else torch.float32


def begun(param: Tensor, group: dict[str, Any]) -> State:
    """The present weights as an anchor: one tensor, or two in eight bits."""
    anchor = param.detach().clone(memory_format=torch.preserve_format)
    if group["state_dtype"] == EIGHT_BITS and param.dim() > 1 and not param.is_complex():
        small = torch.zeros_like(anchor, dtype=torch.int8)
        found: State = {"anchor": small, "anchor_scale": row_zeros(param.detach(), torch.float32)}
        write({name: plain(value) for name, value in found.items()}, plain(anchor), 0.5, param)
        return found
    if group["state_dtype"] is not None and not param.is_complex():
        anchor = anchor.to(dtype_of(param, group))
    return {"anchor": anchor}


def shapes(state: State, param: Tensor) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what is kept of an anchor, in either form; empty without one."""
    if "anchor" not in state:
        return {}
    found = {"anchor": tuple(param.shape)}
    if state["anchor"].dtype == torch.int8:
        found["anchor_scale"] = row_shape(param)
    return found


def read(state: State, dtype: torch.dtype) -> Tensor:
    """The anchor in a floating dtype; the kept tensor itself where it has it."""
    anchor: Tensor = state["anchor"]
    if anchor.dtype == torch.int8:
        scale: Tensor = state["anchor_scale"]
        return (anchor * scale).to(dtype)
    return anchor.to(dtype)


def distances(states: list[State], values: list[Tensor]) -> list[Tensor]:
    """How far weights are from their anchors; new tensors."""
    found = [read(state, value.dtype) for state, value in zip(states, values, strict=True)]
    if any(one is state["anchor"] for one, state in zip(found, states, strict=True)):
        return list(torch._foreach_sub(values, found))
    # What was read is new, and is not needed a second time.
    torch._foreach_neg_(found)
    torch._foreach_add_(found, values)
    return found


def write(state: State, values: Tensor, at: float, param: Tensor) -> None:
    """Keep new values.

    Args:
        state: of one parameter, with tensors that are local and real.
        values: finite, in the shape of the anchor.
        at: where they are rounded, from :func:`sal_optim.utils.rounding.dither`.
        param: whose anchor it is: each place of the whole is rounded alike, whoever has it.
    """
    anchor: Tensor = state["anchor"]
    if anchor.dtype != torch.int8:
        anchor.copy_(values)
        return
    if not values.numel():
        return
    rows = values.flatten(1).float()
    largest = rows.abs().amax(1, keepdim=True)
    scale: Tensor = state["anchor_scale"].view(-1, 1)
    fits = (largest <= LARGEST * scale) & (largest >= LEAST * scale)
    scale.copy_(torch.where(fits, scale, largest / CHOSEN))
    places = rows / scale.clamp_min(torch.finfo(scale.dtype).tiny)
    down, across = where_of(param, rows.device)
    turn = (at + down[:, None] * GOLDEN**2 + across * GOLDEN) % 1.0
    nearest = places.round()
    found = torch.where((places - nearest).abs() < WHOLE, nearest, (places + turn).floor_())
    anchor.copy_(found.clamp_(-LARGEST, LARGEST).view(values.shape))
