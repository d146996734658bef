"""What a state dict must be: it is checked whole before any of it is used.

It may come from this version, an older one, the base in ``torch.optim``, or from anywhere.
"""

import copy
import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sal_optim.checkpoint.frame import StateDict, check_frame
from sal_optim.checkpoint.naming import regrouped
from sal_optim.checkpoint.resharding import IMPORTANCE_STATE, of_own_layout
from sal_optim.checkpoint.upgrading import upgraded_group, upgraded_state
from sal_optim.config import check_alike, check_protection
from sal_optim.detection.change_detector import SIGNED, new_detector
from sal_optim.protection import anchor, buffers
from sal_optim.protection.block import NUMBERS, Group, shapes
from sal_optim.sharding.dtensor import is_distributed
from sal_optim.sharding.stacked import layout_of, stacked_placements
from sal_optim.utils import checks

Family = Any  # an instance of SALOptimizer, which imports this file

# State that is real and keeps its own precision.
STATISTICS = (*IMPORTANCE_STATE, "anchor")
# Containers nested deeper are no state of an optimizer.
DEPTH = 16


def is_own(name: str) -> bool:
    """Whether the protection keeps a parameter's state of this name, whatever its importance."""
    return name in NUMBERS or name.startswith(STATISTICS)


def fitted(optimizer: Family, state_dict: StateDict) -> StateDict:
    """The state dict in the form of this optimizer; nothing is changed, neither of the two.

    Settings that it lacks are those of the optimizer's own group; unknown ones are kept.
    """
    state_dict = regrouped(optimizer.param_groups, state_dict)
    check_frame(optimizer, state_dict)
    groups = [
        _fitted_group(optimizer, index, own, saved)
        for index, (own, saved) in enumerate(
            zip(optimizer.param_groups, state_dict["param_groups"], strict=True)
        )
    ]
    for index, group in enumerate(groups):
        try:
            check_alike(group, groups[0])
        except ValueError as error:
            raise ValueError(f"state_dict['param_groups'][{index}]: {error}") from error
    frame = {**state_dict, "param_groups": groups}
    detector = groups[0]["threshold"]
    owners = [group for group in groups for _ in group["params"]]
    state = {
        key: _fitted_state(optimizer, index, owners[index], param, saved, detector)
        for key, index, param, saved in paired(optimizer, frame)
    }
    return {**frame, "state": state}


def _check_copyable(where: str, saved: dict[str, Any]) -> None:
    """Refuse what torch will fail to copy; the error names it, down to the field of a field."""
    for name, value in saved.items():
        if isinstance(value, dict):
            _check_copyable(f"{where}[{name!r}]", value)
            continue
        try:
            copy.deepcopy(value)
        except Exception as error:
            raise TypeError(f"{where}[{name!r}] cannot be copied: {error!s:.120}") from error


def _fitted_group(
    optimizer: Family, index: int, own: dict[str, Any], saved: dict[str, Any]
) -> dict[str, Any]:
    where = f"state_dict['param_groups'][{index}]"
    _check_copyable(where, saved)
    buffers.checked(where, saved)
    saved = upgraded_group(saved)
    group = {name: own.get(name, default) for name, default in optimizer.defaults.items()}
    # What the optimizer can't do, or is by its class, no checkpoint of another one turns on.
    fixed = ("capturable", "differentiable", "decoupled_weight_decay")
    group = {**group, **saved, **{name: group[name] for name in fixed if name in group}}
    lr = group["lr"]
    try:
        # Schedulers may leave a learning rate that is, by rounding, below 0.
        if not isinstance(lr, Tensor) or lr.numel() == 1:
            rate = checks.number("lr", lr, low=-math.inf, label="learning rate")
            group["lr"] = lr.detach().abs() if isinstance(lr, Tensor) else abs(rate)
        group = {**group, **optimizer._checked_base(group), **check_protection(group)}
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error
    group["lr"] = lr if isinstance(lr, Tensor) else float(lr)
    saved_detector = saved.get("threshold")
    if index == 0 or saved_detector is not None:
        group["threshold"] = fitted_threshold(f"{where}['threshold']", saved_detector)
    return group


def _fitted_state(
    optimizer: Family, index: int, group: Group, param: Tensor, saved: Any, detector: Any
) -> dict[str, Any]:
    where = f"the state of parameter {index}"
    if not isinstance(saved, dict):
        raise TypeError(f"{where} is a {type(saved).__name__}; it must be a dict")
    for name, value in saved.items():
        if not isinstance(name, str):
            raise TypeError(f"{where} has the key {name!r}; it must be text")
        check_plain(f"{where}, {name!r},", value)
    # Optimizers without momentum save None for its buffer.
    state = {name: value for name, value in saved.items() if value is not None}
    if "step" in state:
        number = checks.number(f"'step' in {where}", state["step"])
        if not isinstance(state["step"], Tensor):
            state["step"] = number
    moments = optimizer._moments_of(param, group)
    present = [name for name in moments if name in state]
    if present and len(present) < len(moments):
        missing = next(name for name in moments if name not in state)
        raise ValueError(
            f"{where} has {present[0]!r} but no {missing!r}: it is another optimizer's"
        )
    if "exp_avg_sq" in present and "step" not in state:
        raise KeyError(f"{where} has {present[0]!r} but no 'step'")
    if moments and not present:
        # Another optimizer's, its count of steps too: the base makes its own where it finds none.
        state = {name: value for name, value in state.items() if is_own(name)}
    if present and group.get("amsgrad") and "max_exp_avg_sq" not in state:
        raise KeyError(f"{where} has no 'max_exp_avg_sq', which amsgrad needs")
    state = upgraded_state(param, state, detector)
    state = of_own_layout(where, param, group, state)
    check_statistics(where, param, group, state)
    for name in (*moments, "max_exp_avg_sq", "momentum_buffer", "anchor"):
        if name in state:
            check_tensor(f"{where}, {name!r},", name, state[name], tuple(param.shape), param)
    return state


def fitted_around(optimizer: Optimizer, groups: list[Group], state_dict: StateDict) -> StateDict:
    """A state dict for an optimizer that a layer is around, the layer's part checked."""
    state_dict = regrouped(optimizer.param_groups, state_dict)
    saved = state_dict.get("param_groups", [])
    sizes = [len(group.get("params", ())) for group in saved]
    if sizes != [len(group["params"]) for group in groups]:
        return state_dict  # torch says what is wrong
    fitted_groups = []
    for index, group in enumerate(saved):
        where = f"state_dict['param_groups'][{index}]"
        buffers.checked(where, group)
        if "threshold" in group:
            threshold = fitted_threshold(f"{where}['threshold']", group["threshold"])
            group = {**group, "threshold": threshold}
        fitted_groups.append(group)
    state_dict = {**state_dict, "param_groups": fitted_groups}
    owners = [group for group in groups for _ in group["params"]]
    states = dict(state_dict["state"])
    for key, index, param, state in paired(optimizer, state_dict):
        if isinstance(state, dict):
            where = f"the state of parameter {index}"
            upgraded = upgraded_state(param, state, fitted_groups[0].get("threshold"))
            upgraded = of_own_layout(where, param, owners[index], upgraded)
            check_statistics(where, param, owners[index], upgraded)
            states[key] = upgraded
    return {**state_dict, "state": states}


def paired(
    optimizer: Optimizer, state_dict: StateDict
) -> Iterator[tuple[Any, int, Tensor, dict[str, Any]]]:
    """Each parameter with its key in the state dict, its index and the state saved for it."""
    saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for index, (key, param) in enumerate(zip(saved_ids, params, strict=True)):
        if key in state_dict["state"]:
            yield key, index, param, state_dict["state"][key]


def fitted_threshold(where: str, saved: Any) -> dict[str, Any]:
    fresh: dict[str, Any] = dict(new_detector())
    if saved is None:
        return fresh
    if not isinstance(saved, dict):
        raise TypeError(f"{where} is a {type(saved).__name__}; it must be a dict")
    lows = dict.fromkeys(SIGNED, -math.inf)
    known = {
        name: checks.number(f"{where}[{name!r}]", saved[name], low=lows.get(name, 0.0))
        for name in fresh
        if name in saved
    }
    if "firm" not in saved and saved.get("consolidations", 0.0):
        fresh["firm"] = 1.0  # before 0.2 every consolidation was a change, or declared
    return {**fresh, **saved, **known}


def check_statistics(where: str, param: Tensor, group: dict[str, Any], state: StateDict) -> None:
    """Refuse importance that does not fit a parameter."""
    if "evidence_weight" not in state:
        if "pending_steps" in state:
            raise KeyError(f"{where} has 'pending_steps' but no 'evidence_weight'")
        return
    for name in NUMBERS:
        state[name] = checks.number(f"{name!r} in {where}", state.get(name, 0.0))
    names = shapes(param, group)
    for name in names:
        if name not in state:
            raise KeyError(
                f"{where} has no {name!r}, which {group['importance']} importance has; it was "
                "saved with another importance, which has to be given here too, or of parameters "
                "that were sharded otherwise, which needs importance='diagonal'"
            )
    if isinstance(state.get("anchor"), Tensor):
        names = {**names, **anchor.shapes(state, param)}
        if "anchor_scale" in names and "anchor_scale" not in state:
            raise KeyError(f"{where} has no 'anchor_scale', which an anchor in eight bits needs")
    for name, shape in {"anchor": tuple(param.shape), **names}.items():
        if name in state:
            check_tensor(f"{where}, {name!r},", name, state[name], shape, param)


def check_plain(where: str, value: Any, depth: int = 0) -> None:
    """Refuse what torch can't load: it takes tensors, numbers and containers of these."""
    if depth > DEPTH:
        raise ValueError(f"{where} is nested more than {DEPTH} deep")
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested or value.is_quantized or value.is_meta:
            raise ValueError(f"{where} must be a dense tensor with values")
    elif isinstance(value, dict):
        for item in value.values():
            check_plain(where, item, depth + 1)
    elif type(value) in (list, tuple):
        for item in value:
            check_plain(where, item, depth + 1)
    elif not (value is None or isinstance(value, (bool, int, float))):
        raise TypeError(
            f"{where} is a {type(value).__name__}; it must be a tensor, a number or a container "
            "of these"
        )


def check_tensor(where: str, name: str, value: Any, shape: tuple[int, ...], param: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}; it must be a tensor")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(
            f"{where} has shape {tuple(value.shape)}; for a parameter of shape "
            f"{tuple(param.shape)} it must have {tuple(shape)}"
        )
    if param.is_complex() and not name.startswith(IMPORTANCE_STATE):
        right = value.dtype == param.dtype
    else:
        right = value.is_floating_point() and value.dtype.itemsize >= 2
        right = right or (name == "anchor" and value.dtype == torch.int8)
    if not right:
        raise ValueError(f"{where} is of {value.dtype}, which does not fit {param.dtype}")
    if is_distributed(value) != is_distributed(param) or not _is_cut_alike(name, value, param):
        raise ValueError(
            f"{where} is not cut over processes as its parameter is; load it by "
            "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
        )


def _is_cut_alike(name: str, value: Tensor, param: Tensor) -> bool:
    layout = layout_of(param)
    if layout is None:
        return True
    placements = param.placements  # type: ignore[attr-defined]
    if layout.lead and name.endswith(layout.suffix):
        placements = stacked_placements(param)
    return tuple(value.placements) == tuple(placements)  # type: ignore[attr-defined]
