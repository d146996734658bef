"""Loading a checkpoint: nothing half changed, and statistics in the precision they were saved in.

A state dict may come from this class, an older or newer version of it, its base in ``torch.optim``,
or from anywhere: it is checked whole before any of it is used. torch casts every loaded float
tensor but ``step`` to the dtype of its parameter, so that float32 evidence beside bfloat16 weights
would lose 16 bits a reload; that is undone here.
"""

import contextlib
import copy
import math
from collections.abc import Hashable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sal_optim import checks
from sal_optim.distributed import is_distributed, refuse_factored
from sal_optim.evidence import GRANULARITIES
from sal_optim.threshold import new_threshold

if TYPE_CHECKING:
    from sal_optim.optimizer import SALOptimizer

StateDict = dict[str, Any]

_STATISTICS = ("pending", "evidence", "anchor")
# Containers nested deeper are no state of an optimizer.
_DEPTH = 16


class Checkpoint:
    """One call of ``load_state_dict``."""

    def __init__(self, optimizer: "SALOptimizer") -> None:
        self._optimizer = optimizer
        self._loaded: StateDict = {}

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Within, a load is checked after the user's hooks before it, and finished before theirs.

        A hook of the user's that raises after the load finds the load complete.
        """
        before = self._optimizer.register_load_state_dict_pre_hook(self._check)
        after = self._optimizer.register_load_state_dict_post_hook(self._restore, prepend=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _check(self, _: Any, state_dict: StateDict) -> StateDict:
        self._loaded = fitted(self._optimizer, state_dict)
        return self._loaded

    def _restore(self, _: Any) -> None:
        for _index, param, saved in _paired(self._optimizer, self._loaded):
            state = self._optimizer.state[param]
            for name, value in saved.items():
                if isinstance(value, Tensor) and name.startswith(_STATISTICS):
                    # A copy: state dicts share their tensors with the optimizer they came from.
                    state[name] = value.detach().to(device=param.device, copy=True)


def _paired(
    optimizer: "SALOptimizer", state_dict: StateDict
) -> Iterator[tuple[int, Tensor, dict[str, Any]]]:
    """Each parameter with its index and the state saved for it."""
    saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for index, (key, param) in enumerate(zip(saved_ids, params, strict=True)):
        if key in state_dict["state"]:
            yield index, param, state_dict["state"][key]


def fitted(optimizer: "SALOptimizer", state_dict: StateDict) -> StateDict:
    """The state dict in the form of this optimizer; nothing is changed, neither of the two.

    Settings that it lacks are those of the optimizer's own group; unknown ones are kept.

    Raises:
        KeyError: a part is missing.
        TypeError: a value is not of its type.
        ValueError: a value, a shape or the number of parameters does not fit.
    """
    _check_frame(optimizer, state_dict)
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
        for index, param, saved in _paired(optimizer, frame)
    }
    return {**frame, "state": state}


def _check_frame(optimizer: "SALOptimizer", state_dict: StateDict) -> None:
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
            f"{len(sizes)}; this optimizer has {len(expected)}"
        )
    if sizes != expected:
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            f"optimizer's group: params per group {sizes}; this optimizer has {expected}"
        )
    if len(set(ids)) != len(ids):
        raise ValueError("state_dict['param_groups'] lists the same entry of 'params' twice")
    strangers = [key for key in state_dict["state"] if key not in set(ids)]
    if strangers:
        raise KeyError(
            f"state_dict['state'] has the key {strangers[0]!r}, which is in no group's 'params'"
        )


def _fitted_group(
    optimizer: "SALOptimizer", index: int, own: dict[str, Any], saved: dict[str, Any]
) -> dict[str, Any]:
    where = f"state_dict['param_groups'][{index}]"
    if index == 0:
        threshold = _fitted_threshold(f"{where}['threshold']", saved.get("threshold"))
    _check_copies(where, saved)
    group = {**{name: own.get(name, optimizer.defaults[name]) for name in optimizer.defaults}}
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
        group["threshold"] = threshold
    refuse_factored(group["granularity"], own["params"])
    return group


def _check_copies(where: str, settings: dict[str, Any]) -> None:
    """Refuse what can't be copied, as torch will."""
    for name, value in settings.items():
        try:
            copy.deepcopy(value)
        except Exception as error:
            raise TypeError(f"{where}[{name!r}] cannot be copied: {error!s:.120}") from error


def _fitted_threshold(where: str, saved: Any) -> dict[str, Any]:
    fresh: dict[str, Any] = dict(new_threshold())
    if saved is None:
        return fresh
    if not isinstance(saved, dict):
        raise TypeError(f"{where} is a {type(saved).__name__}; it must be a dict")
    _check_copies(where, saved)
    known = {
        name: checks.number(f"{where}[{name!r}]", saved[name]) for name in fresh if name in saved
    }
    return {**fresh, **saved, **known}


def _fitted_state(
    optimizer: "SALOptimizer", index: int, group: dict[str, Any], param: Tensor, saved: Any
) -> dict[str, Any]:
    where = f"the state of parameter {index}"
    if not isinstance(saved, dict):
        raise TypeError(f"{where} is a {type(saved).__name__}; it must be a dict")
    for name, value in saved.items():
        if not isinstance(name, str):
            raise TypeError(f"{where} has the key {name!r}; it must be text")
        _check_plain(f"{where}, {name!r},", value)
    # Optimizers without momentum save None for its buffer.
    state = {name: value for name, value in saved.items() if value is not None}
    for name in ("step", "evidence_weight"):
        if name in state:
            number = checks.number(f"{name!r} in {where}", state[name])
            if name == "evidence_weight" or not isinstance(state[name], Tensor):
                state[name] = number
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
    names, kind = statistics(param, group), group["granularity"]
    if "evidence_weight" in state:
        for name in names:
            if name not in state:
                raise KeyError(f"{where} has no {name!r}; granularity {kind!r} needs it")
    shapes = {**dict.fromkeys((*optimizer._moment_names(group), "anchor"), param.shape), **names}
    for name, shape in shapes.items():
        if name in state:
            _check_tensor(f"{where}, {name!r},", name, state[name], shape, param)
    return state


def statistics(param: Tensor, group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a parameter's evidence."""
    real = torch.view_as_real(param) if param.is_complex() else param
    return GRANULARITIES[group["granularity"]].shapes(real)


def _check_plain(where: str, value: Any, depth: int = 0) -> None:
    """Refuse what torch can't load: it takes tensors, numbers and containers of these."""
    if depth > _DEPTH:
        raise ValueError(f"{where} is nested more than {_DEPTH} deep")
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested or value.is_quantized or value.is_meta:
            raise ValueError(f"{where} must be a dense tensor with values")
    elif isinstance(value, dict):
        for item in value.values():
            _check_plain(where, item, depth + 1)
    elif type(value) in (list, tuple):
        for item in value:
            _check_plain(where, item, depth + 1)
    elif not (value is None or isinstance(value, (bool, int, float))):
        raise TypeError(
            f"{where} is a {type(value).__name__}; it must be a tensor, a number or a container "
            "of these"
        )


def _check_tensor(where: str, name: str, value: Any, shape: tuple[int, ...], param: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}; it must be a tensor")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(
            f"{where} has shape {tuple(value.shape)}; for a parameter of shape "
            f"{tuple(param.shape)} it must have {tuple(shape)}"
        )
    if param.is_complex() and not name.startswith(("pending", "evidence")):
        right = value.dtype == param.dtype
    else:
        right = value.is_floating_point() and value.dtype.itemsize >= 2
    if not right:
        raise ValueError(f"{where} is of {value.dtype}, which does not fit {param.dtype}")
    if is_distributed(value) != is_distributed(param) or (
        is_distributed(param) and value.placements != param.placements  # type: ignore[attr-defined]
    ):
        raise ValueError(
            f"{where} is not cut over processes as its parameter is; load it by "
            "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
        )


def check_ready(optimizer: "SALOptimizer", group: dict[str, Any], param: Tensor) -> None:
    """Refuse a step that would fail halfway.

    Raises:
        RuntimeError: the gradient is sparse.
        ValueError: the parameter was resized, cast or moved, and its state was not.
    """
    if param.grad is not None and param.grad.is_sparse:
        raise RuntimeError(
            f"{type(optimizer).__name__} does not support sparse gradients; "
            "use a dense gradient (sparse=False)"
        )
    shape, dtype, device = param.shape, param.dtype, param.device
    for name, value in optimizer.state.get(param, {}).items():
        if not isinstance(value, Tensor) or name == "step":
            continue
        statistic = name.startswith(_STATISTICS)
        if value.shape == shape and value.device == device and (statistic or value.dtype == dtype):
            continue
        names = (*optimizer._moment_names(group), "anchor")
        known = {**dict.fromkeys(names, tuple(shape)), **statistics(param, group)}
        fits = statistic or value.dtype == dtype
        if name in known and not (fits and value.shape == known[name] and value.device == device):
            raise ValueError(
                f"Invalid params value: the state {name!r} is of shape {tuple(value.shape)}, "
                f"{value.dtype} on {value.device}, its parameter of shape {tuple(shape)}, {dtype} "
                f"on {device}; when a parameter is resized, cast or moved, delete its entry of "
                "optimizer.state"
            )
