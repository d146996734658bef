"""A parameter that gains rows, as the last layer does that is given new classes.

What is known of the rows that stay goes into the state of the larger parameter; new rows are free.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS

from sal_optim.importance import State
from sal_optim.protection.block import NUMBERS, kind_of_param, local_state, prepare
from sal_optim.protection.clock import INTERVAL, window
from sal_optim.protection.consolidation import anchor_memory, consolidate_param
from sal_optim.protection.holder import Holder
from sal_optim.sharding.dtensor import PLAIN


def grow(holder: Holder, old: Tensor, new: Tensor) -> None:
    """Put ``new`` into the place of ``old``, with the state of the rows that both have."""
    for name, value in (("old", old), ("new", new)):
        if not isinstance(value, Tensor):
            raise TypeError(f"Invalid {name} value: a {type(value).__name__}; {name} is a tensor")
    if any(new is param for group in holder.groups for param in group["params"]):
        raise ValueError("Invalid new value: it is a parameter of this optimizer already")
    params = next((g["params"] for g in holder.groups if any(p is old for p in g["params"])), None)
    if params is None:
        raise ValueError(
            f"Invalid old value: a tensor of shape {tuple(old.shape)}; old must be one of this "
            "optimizer's parameters"
        )
    _check(old, new)
    if not torch.allclose(new[: len(old)], old, rtol=0.0, atol=0.0, equal_nan=True):
        raise ValueError(
            f"Invalid new value: its first {len(old)} rows are not those of old, whose importance "
            "they get; copy old's rows into new before"
        )
    if isinstance(holder.optimizer, LBFGS):
        raise ValueError(
            "Invalid old value: a parameter of LBFGS, whose state is of all parameters together; "
            "old must be of another optimizer"
        )
    state = holder.state_of(old)
    params[:] = [new if param is old else param for param in params]
    holder.optimizer.state.pop(old, None)
    if holder.early.pop(old, None) is not None:
        holder.early[new] = {}
    move(holder, old, state, new)


def move(holder: Holder, old: Tensor, state: State, new: Tensor) -> None:
    """Give a parameter the state that one with fewer rows had.

    What was gathered is consolidated first: it is of the rows that stay.

    Args:
        old: no longer a parameter.
        state: that it had.
        new: a parameter of the optimizer.
    """
    _check(old, new)
    if not state:
        return
    group = next(g for g in holder.groups if any(p is new for p in g["params"]))
    detector = holder.detector
    usual = window(detector, group["consolidate_every"]) / INTERVAL
    memory = anchor_memory(detector["steps"])
    consolidate_param(old, state, group, usual, detector, memory)
    found: State = {}
    if "pending_steps" in state:
        kind = kind_of_param(new, group)
        prepare(new, found, group, kind)
        found.update({name: state[name] for name in NUMBERS})
        getattr(kind, "grow", _lead)(local_state(state), local_state(found))
    moments = {name: value for name, value in state.items() if name not in found}
    for name in found:
        if name.startswith("anchor"):
            found[name][: len(old)] = state[name]  # that of new rows is where they begin
    fit = all(_fits(value, old) for value in moments.values())
    for name, value in moments.items() if fit else ():
        found[name] = value
        if isinstance(value, Tensor) and value.shape == old.shape:
            found[name] = torch.zeros_like(new, dtype=value.dtype)
            found[name][: len(old)] = value
    # Where the optimizer has to begin anew it must find nothing.
    early = new in holder.early or not fit
    target: dict[Any, State] = holder.early if early else holder.optimizer.state
    target[new] = found


def _fits(value: Any, old: Tensor) -> bool:
    """Whether a moment is a number, or has rows that a parameter's new ones can be added to."""
    return not isinstance(value, Tensor) or value.numel() == 1 or value.shape == old.shape


def _lead(state: State, larger: State) -> None:
    """Each tensor becomes the leading part of the larger one; what is new of it is 0."""
    for name, value in larger.items():
        if isinstance(value, Tensor) and not name.startswith("anchor"):
            value[tuple(slice(size) for size in state[name].shape)] = state[name]


def grows(old: Tensor, new: Tensor) -> bool:
    """Whether a parameter has the shape of another one, with as many rows or more."""
    same = old.dim() == new.dim() > 0 and new.shape[1:] == old.shape[1:]
    return same and len(new) >= len(old)


def _check(old: Tensor, new: Tensor) -> None:
    if type(old) not in PLAIN or type(new) not in PLAIN:
        raise ValueError(
            f"Invalid old value: {type(old).__name__} to {type(new).__name__}; a parameter that "
            "grows must be a torch.nn.Parameter, neither distributed nor of a subclass"
        )
    if not new.is_leaf:
        raise ValueError(
            "Invalid new value: it was computed from other tensors, so that no step would move the "
            "model; new must be a torch.nn.Parameter of it"
        )
    if not grows(old, new) or (new.dtype, new.device) != (old.dtype, old.device):
        raise ValueError(
            f"Invalid new value: {tuple(new.shape)}, {new.dtype} on {new.device}; new must be "
            f"{tuple(old.shape)}, {old.dtype} on {old.device}, with as many rows or more"
        )
