"""One parameter of a step, as plain real local tensors, and the state that the protection keeps.

What a parameter's state starts as is here; what a consolidation makes of it is in
``consolidation.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sal_optim.config import PROTECTION
from sal_optim.importance import IMPORTANCE, Importance, State, code_of, kind_of
from sal_optim.protection import anchor
from sal_optim.sharding.dtensor import PLAIN, Sharding, aligned, plain, real_shape, sharding
from sal_optim.sharding.stacked import layout_of, stacked_zeros
from sal_optim.utils.rounding import MOST, wide

Group = dict[str, Any]

# Numbers that the state of a parameter holds beside its tensors.
NUMBERS = (
    "evidence_weight",  # the sum of the weights of all consolidations
    "pending_steps",  # gathered since the last one
    "layout",  # of the blocks that they are of: a number for each way to cut a matrix; 0: whole
    "grad_norm_mean",  # exponential statistics of the norm of the tensor's gradient
    "grad_norm_var",
    "delta_w",  # the norm of the tensor's last measured update
    "delta_w_mean",
    "delta_w_var",
)


@dataclass(slots=True)
class Block:
    """One parameter that has a gradient."""

    param: Tensor  # the parameter itself
    values: Tensor  # its real local part, which shares memory with it
    grad: Tensor  # the same of its gradient
    state: State  # all that is kept for it
    local: State  # its tensors as real local parts
    kind: Importance
    group: Group
    sharding: Sharding | None
    size: int  # scalars over all processes


def in_force(group: Group, share: float) -> float:
    """A group's protection, of which a share is in force, within the range of float32.

    A protection below the default rises as fast as that does, up to where it is whole.
    """
    whole = float(group["protection"])
    return min(max(whole, PROTECTION) * share, whole, MOST)


def blocks_of(
    groups: Sequence[Group], state: Mapping[Tensor, State], early: dict[Tensor, State], owner: str
) -> list[Block]:
    """Protected parameters that have a gradient and values, as a step sees them.

    All of them are checked before state is created for any.

    Args:
        groups: with the settings of the protection.
        early: where state is kept that the optimizer does not have yet.
        owner: the name of what protects, for messages.
    """
    found = [
        (param, group)
        for group in groups
        if group["protection"] > 0.0
        for param in group["params"]
        if param.grad is not None and not param.is_meta
    ]
    for param, group in found:
        check_ready(param, state.get(param) or early.get(param, {}), group, owner)
    return [
        block_of(param, state.get(param) or early.setdefault(param, {}), group)
        for param, group in found
    ]


def block_of(param: Tensor, state: State, group: Group) -> Block:
    """A parameter as the step sees it; creates what is missing of its state."""
    grad = param.grad
    assert grad is not None
    if type(param) in PLAIN and type(grad) in PLAIN and not param.is_complex():
        kind = IMPORTANCE[group["importance"] if param.dim() > 1 else "diagonal"]
        prepare(param, state, group, kind)
        return Block(param, param.detach(), grad.detach(), state, state, kind, group, None,
                     param.numel())  # fmt: skip
    where = sharding(param)
    values, gradient = plain(param.detach()), plain(aligned(grad.detach(), param))
    if gradient.is_neg():
        gradient = gradient.resolve_neg()
    kind = kind_of_param(param, group)
    prepare(param, state, group, kind)
    size = param.numel() * (2 if param.is_complex() else 1)
    return Block(param, values, gradient, state, local_state(state), kind, group, where, size)


def kind_of_param(param: Tensor, group: Group) -> Importance:
    """The kind of importance that a parameter has."""
    name, rank = group["importance"], group["rank"]
    if type(param) in PLAIN and not param.is_complex():
        return kind_of(name, param, layout=None, rank=rank)
    return kind_of(name, plain(param.detach()), layout=layout_of(param), rank=rank)


def local_state(state: Mapping[str, Any]) -> State:
    """The state's tensors as real local parts; its numbers as they are."""
    return {
        name: plain(value) if isinstance(value, Tensor) else value for name, value in state.items()
    }


def shapes(param: Tensor, group: Group) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that importance keeps of a parameter."""
    return kind_of_param(param, group).shapes(real_shape(param), group["rank"])


def prepare(param: Tensor, state: State, group: Group, kind: Importance) -> None:
    """Create what importance needs and lacks, by key: the rest may come from another optimizer."""
    if "pending_steps" in state:
        return
    real = torch.view_as_real(param) if param.is_complex() else param
    for name, shape in kind.shapes(real_shape(param), group["rank"]).items():
        if name not in state:
            dtype = anchor.dtype_of(param, group)
            dtype = wide(dtype) if getattr(kind, "wide", False) else dtype
            if code_of(kind):
                state[name] = stacked_zeros(param, shape, dtype)
            elif shape == tuple(real.shape):
                state[name] = torch.zeros_like(real, dtype=dtype)
            else:
                state[name] = real.new_zeros(shape, dtype=dtype)
    # From the first step, though it is used only after a consolidation: a distributed checkpoint
    # loads into the state that a step makes, and no more than that.
    if group["pull"] > 0.0 and "anchor" not in state:
        state.update(anchor.begun(param, group))
    for name in NUMBERS:
        state.setdefault(name, 0.0)


def check_ready(param: Tensor, state: dict[str, Any], group: Group, owner: str) -> None:
    """Refuse a step that would fail halfway.

    Raises:
        RuntimeError: the gradient is sparse.
        ValueError: the parameter was resized, cast or moved, and its state was not.
    """
    grad = param.grad
    if grad is not None and grad.is_sparse:
        raise RuntimeError(
            f"{owner} does not support sparse gradients; use a dense gradient (sparse=False)"
        )
    if "pending_steps" not in state:
        return
    shape, device = param.shape, param.device
    named = {**shapes(param, group), **anchor.shapes(state, param)}
    for name, wanted in named.items():
        value = state.get(name)
        if value is None:
            has = "missing"
        elif tuple(value.shape) != wanted or value.device != device:
            has = f"of shape {tuple(value.shape)} on {value.device}"
        else:
            continue
        raise ValueError(
            f"Invalid params value: the state {name!r} is {has}, its parameter of shape "
            f"{tuple(shape)} on {device}; when a parameter is resized or moved, or importance or "
            "rank is changed, delete its entry of optimizer.state"
        )
