"""What a state dict must be for the family of optimizers: it is checked whole before it is used.

It may come from this class, an older or newer version of it, its base in ``torch.optim``, or from
anywhere.
"""

import copy
import math
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sal_optim.checkpoint import (
    StateDict,
    check_frame,
    check_plain,
    check_statistics,
    check_tensor,
    fitted_threshold,
    paired,
)
from sal_optim.distributed import refuse_factored
from sal_optim.utils import checks

if TYPE_CHECKING:
    from sal_optim.optimizer import SALOptimizer


def fitted(optimizer: "SALOptimizer", state_dict: StateDict) -> StateDict:
    """The state dict in the form of this optimizer; nothing is changed, neither of the two.

    Settings that it lacks are those of the optimizer's own group; unknown ones are kept.

    Raises:
        KeyError: a part is missing.
        TypeError: a value is not of its type.
        ValueError: a value, a shape or the number of parameters does not fit.
    """
    check_frame(optimizer, state_dict)
    groups = [
        _fitted_group(optimizer, index, own, saved)
        for index, (own, saved) in enumerate(
            zip(optimizer.param_groups, state_dict["param_groups"], strict=True)
        )
    ]
    frame = {**state_dict, "param_groups": groups}
    owners = [group for group in groups for _ in group["params"]]
    ids = list(chain.from_iterable(group["params"] for group in groups))
    state = {
        ids[index]: _fitted_state(optimizer, index, owners[index], param, saved)
        for index, param, saved in paired(optimizer, frame)
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
    optimizer: "SALOptimizer", index: int, own: dict[str, Any], saved: dict[str, Any]
) -> dict[str, Any]:
    where = f"state_dict['param_groups'][{index}]"
    _check_copyable(where, saved)
    group = {name: own.get(name, default) for name, default in optimizer.defaults.items()}
    # What the optimizer can't do, or is by its class, no checkpoint of another one turns on.
    fixed = ("capturable", "differentiable", "decoupled_weight_decay")
    group = {**group, **saved, **{name: group[name] for name in fixed if name in group}}
    lr = group["lr"]
    try:
        # Schedulers may leave a learning rate that is, by rounding, below 0.
        if isinstance(lr, Tensor) and lr.numel() == 1:
            checks.number("lr", lr, low=-math.inf, label="learning rate")
            group["lr"] = lr.detach().abs()
        elif not isinstance(lr, Tensor):
            group["lr"] = abs(checks.number("lr", lr, low=-math.inf, label="learning rate"))
        group = optimizer._checked(group)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error
    group["lr"] = lr if isinstance(lr, Tensor) else float(lr)
    if index == 0:
        group["threshold"] = fitted_threshold(f"{where}['threshold']", saved.get("threshold"))
    refuse_factored(group["granularity"], own["params"])
    return group


def _fitted_state(
    optimizer: "SALOptimizer", index: int, group: dict[str, Any], param: Tensor, saved: Any
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
    moments = optimizer._moments
    present = [name for name in moments if name in state]
    if present and len(present) < len(moments):
        missing = next(name for name in moments if name not in state)
        raise ValueError(
            f"{where} has {present[0]!r} but no {missing!r}: it is another optimizer's"
        )
    if optimizer._bias_correction and present and "step" not in state:
        raise KeyError(f"{where} has {present[0]!r} but no 'step'")
    if moments and not present:
        state.pop("step", None)  # it counted another optimizer's steps
    check_statistics(where, param, group, state)
    for name in (*optimizer._moment_names(group), "anchor"):
        if name in state:
            check_tensor(f"{where}, {name!r},", name, state[name], tuple(param.shape), param)
    return state
