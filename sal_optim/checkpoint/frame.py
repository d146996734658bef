"""The outer form of a state dict: its parts, and its groups beside those of an optimizer.

What is inside of them is checked in ``validation.py``.
"""

from collections.abc import Hashable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

StateDict = dict[str, Any]

_ADVICE = (
    "; groups that differ are matched by name where both optimizers were made of "
    "model.named_parameters(); importance alone is passed on by save_importance() and "
    "load_importance()"
)


def check_frame(optimizer: Optimizer, state_dict: StateDict) -> None:
    for name, kind in (("state", dict), ("param_groups", list)):
        if name not in state_dict:
            raise KeyError(f"state_dict has no {name!r}; it must come from an optimizer")
        if not isinstance(state_dict[name], kind):
            raise TypeError(
                f"state_dict[{name!r}] is a {type(state_dict[name]).__name__}; "
                f"it must be a {kind.__name__}"
            )
    sizes: list[int] = []
    ids: list[Any] = []
    for index, group in enumerate(state_dict["param_groups"]):
        where = f"state_dict['param_groups'][{index}]"
        if not isinstance(group, dict):
            raise TypeError(f"{where} is a {type(group).__name__}; it must be a dict")
        if "params" not in group:
            raise KeyError(f"{where} has no 'params'")
        params = group["params"]
        if not isinstance(params, (list, tuple)) or not all(
            isinstance(key, Hashable) and not isinstance(key, (Tensor, tuple)) for key in params
        ):
            raise TypeError(
                f"{where}['params'] is {params!r:.80}; it must be a list of numbers or names"
            )
        sizes.append(len(params))
        ids += params
    expected = [len(group["params"]) for group in optimizer.param_groups]
    if len(sizes) != len(expected):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: param_groups has "
            f"{len(sizes)}; this optimizer has {len(expected)}{_ADVICE}"
        )
    if sizes != expected:
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            f"optimizer's group: params per group {sizes}; this optimizer has {expected}{_ADVICE}"
        )
    if len(set(ids)) != len(ids):
        raise ValueError("state_dict['param_groups'] lists the same entry of 'params' twice")
    strangers = [key for key in state_dict["state"] if key not in set(ids)]
    if strangers:
        raise KeyError(
            f"state_dict['state'] has the key {strangers[0]!r}, which is in no group's 'params'"
        )
