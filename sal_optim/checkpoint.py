"""Loading a checkpoint: nothing half changed, and statistics in the precision they were saved in.

torch casts every loaded float tensor but ``step`` to the dtype of its parameter, so that float32
evidence beside bfloat16 weights would lose 16 bits a reload.
"""

import contextlib
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_STATISTICS = ("pending", "evidence", "anchor")


class Checkpoint:
    """One call of ``load_state_dict``."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._loaded: dict[str, Any] = {}

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Within, look at the state dict after the user's own hooks have changed it."""
        handle = self._optimizer.register_load_state_dict_pre_hook(self._capture)
        try:
            yield
        finally:
            handle.remove()

    def _capture(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        validate(optimizer, state_dict)
        self._loaded = state_dict

    def restore_precision(self) -> None:
        for param, saved in _paired(self._optimizer, self._loaded):
            state = self._optimizer.state[param]
            for name, value in saved.items():
                if isinstance(value, Tensor) and name.startswith(_STATISTICS):
                    # A copy: state dicts share their tensors with the optimizer they came from.
                    state[name] = value.to(device=param.device, copy=True)


def _paired(
    optimizer: Optimizer, state_dict: dict[str, Any]
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Each parameter with the state saved for it."""
    saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for key, param in zip(saved_ids, params, strict=False):
        if key in state_dict["state"]:
            yield param, state_dict["state"][key]


def validate(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Refuse a state dict that does not fit, before anything is changed.

    Raises:
        KeyError: it lacks ``"state"``, ``"param_groups"`` or a group's ``"params"``.
        TypeError: one of these is not of its type.
        ValueError: the groups or a state tensor's shape do not fit.
    """
    for name, kind in (("state", dict), ("param_groups", list)):
        if name not in state_dict:
            raise KeyError(f"state_dict has no {name!r}; it must come from an optimizer")
        if not isinstance(state_dict[name], kind):
            raise TypeError(
                f"state_dict[{name!r}] is a {type(state_dict[name]).__name__}; "
                f"it must be a {kind.__name__}"
            )
    sizes = []
    for index, group in enumerate(state_dict["param_groups"]):
        if not isinstance(group, dict) or "params" not in group:
            raise KeyError(f"state_dict['param_groups'][{index}] has no 'params'")
        sizes.append(len(group["params"]))
    expected = [len(group["params"]) for group in optimizer.param_groups]
    if len(sizes) != len(expected):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: "
            f"{len(sizes)}; this optimizer has {len(expected)}"
        )
    if sizes != expected:
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            f"optimizer's group: parameters per group {sizes}; this optimizer has {expected}"
        )
    for index, (param, saved) in enumerate(_paired(optimizer, state_dict)):
        if not isinstance(saved, dict):
            raise TypeError(
                f"the state of parameter {index} is a {type(saved).__name__}; it must be a dict"
            )
        for name, value in saved.items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                continue
            if not _fits(name, value, param):
                raise ValueError(
                    f"the state {name!r} of parameter {index} has shape {tuple(value.shape)}, "
                    f"which does not fit the parameter's shape {tuple(param.shape)}"
                )


def _fits(name: str, value: Tensor, param: Tensor) -> bool:
    shape = torch.view_as_real(param).shape if param.is_complex() else param.shape
    if name.endswith("_row"):
        return tuple(value.shape) == (shape[0],)
    if name.endswith("_column"):
        return tuple(value.shape) == (shape[1:].numel(),)
    return value.shape in (shape, param.shape)
