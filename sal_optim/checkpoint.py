"""Loading a checkpoint: nothing half changed, and statistics in the precision they were saved in.

torch casts every loaded float tensor but ``step`` to the dtype of its parameter, so that float32
evidence beside bfloat16 weights would lose 16 bits a reload; that is undone here. What a state dict
must be for the family of optimizers is in ``fitting.py``.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sal_optim.distributed import is_distributed
from sal_optim.evidence import GRANULARITIES
from sal_optim.kronecker import SIDES
from sal_optim.threshold import new_threshold
from sal_optim.utils import checks

if TYPE_CHECKING:
    from sal_optim.protection import Protection

StateDict = dict[str, Any]
# Returns the state dict in the form of an optimizer, or raises; changes neither of the two.
Fit = Callable[[StateDict], StateDict]

# State that is real and keeps its own precision.
_EVIDENCE = ("pending", "evidence", *SIDES)
_STATISTICS = (*_EVIDENCE, "anchor", "update_norm", "gradient_norm")
# Containers nested deeper are no state of an optimizer.
_DEPTH = 16


class Checkpoint:
    """Hooks around ``load_state_dict`` that check a state dict and keep its precision."""

    def __init__(self, optimizer: Optimizer, fit: Fit) -> None:
        self._optimizer = optimizer
        self._fit = fit
        self._loaded: StateDict = {}

    def attach(self) -> tuple[Any, Any]:
        """Check each load after the user's hooks before it, and finish it before theirs.

        A hook of the user's that raises after the load finds the load complete. Returns the
        handles by which the hooks are removed.
        """
        return (
            self._optimizer.register_load_state_dict_pre_hook(self._check),
            self._optimizer.register_load_state_dict_post_hook(self._restore, prepend=True),
        )

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Within, loads are checked and finished."""
        handles = self.attach()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check(self, _: Any, state_dict: StateDict) -> StateDict:
        self._loaded = self._fit(state_dict)
        return self._loaded

    def _restore(self, _: Any) -> None:
        for _index, param, saved in paired(self._optimizer, self._loaded):
            state = self._optimizer.state[param]
            for name, value in saved.items():
                if isinstance(value, Tensor) and name.startswith(_STATISTICS):
                    # A copy: state dicts share their tensors with the optimizer they came from.
                    state[name] = value.detach().to(device=param.device, copy=True)
        self._loaded = {}


def paired(
    optimizer: Optimizer, state_dict: StateDict
) -> Iterator[tuple[int, Tensor, dict[str, Any]]]:
    """Each parameter with its index and the state saved for it."""
    saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for index, (key, param) in enumerate(zip(saved_ids, params, strict=True)):
        if key in state_dict["state"]:
            yield index, param, state_dict["state"][key]


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


def fitted_threshold(where: str, saved: Any) -> dict[str, Any]:
    fresh: dict[str, Any] = dict(new_threshold())
    if saved is None:
        return fresh
    if not isinstance(saved, dict):
        raise TypeError(f"{where} is a {type(saved).__name__}; it must be a dict")
    known = {
        name: checks.number(f"{where}[{name!r}]", saved[name]) for name in fresh if name in saved
    }
    return {**fresh, **saved, **known}


def check_statistics(where: str, param: Tensor, group: dict[str, Any], state: StateDict) -> None:
    """Refuse evidence that does not fit a parameter.

    Raises:
        KeyError: a part is missing.
        TypeError: a value is no number, or no tensor.
        ValueError: a value or a shape does not fit.
    """
    if "evidence_weight" not in state:
        return
    state["evidence_weight"] = checks.number(
        f"'evidence_weight' in {where}", state["evidence_weight"]
    )
    names = statistics(param, group)
    for name in names:
        if name not in state:
            raise KeyError(
                f"{where} has no {name!r}; granularity {group['granularity']!r} needs it"
            )
    for name, shape in {"anchor": tuple(param.shape), **names}.items():
        if name in state:
            check_tensor(f"{where}, {name!r},", name, state[name], shape, param)


def statistics(param: Tensor, group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a parameter's evidence."""
    real = torch.view_as_real(param) if param.is_complex() else param
    return GRANULARITIES[group["granularity"]].shapes(real, group["rank"])


def check_plain(where: str, value: Any, depth: int = 0) -> None:
    """Refuse what torch can't load: it takes tensors, numbers and containers of these."""
    if depth > _DEPTH:
        raise ValueError(f"{where} is nested more than {_DEPTH} deep")
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
    if param.is_complex() and not name.startswith(_EVIDENCE):
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


def check_ready(protection: "Protection", group: dict[str, Any], param: Tensor) -> None:
    """Refuse a step that would fail halfway.

    Raises:
        RuntimeError: the gradient is sparse.
        ValueError: the parameter was resized, cast or moved, and its state was not.
    """
    grad = param.grad
    if grad is not None and grad.is_sparse:
        raise RuntimeError(
            f"{type(protection).__name__} does not support sparse gradients; "
            "use a dense gradient (sparse=False)"
        )
    shape, dtype, device = param.shape, param.dtype, param.device
    for name, value in protection._state_of(param).items():
        if not isinstance(value, Tensor) or name == "step":
            continue
        alike = value.shape == shape and value.device == device
        if alike and value.dtype is dtype:
            continue
        statistic = name.startswith(_STATISTICS)
        if alike and statistic:
            continue
        names = (*protection._moment_names(group), "anchor")
        known = {**dict.fromkeys(names, tuple(shape)), **statistics(param, group)}
        fits = statistic or value.dtype == dtype
        if name in known and not (fits and value.shape == known[name] and value.device == device):
            raise ValueError(
                f"Invalid params value: the state {name!r} is of shape {tuple(value.shape)}, "
                f"{value.dtype} on {value.device}, its parameter of shape {tuple(shape)}, {dtype} "
                f"on {device}; when a parameter is resized, cast or moved, delete its entry of "
                "optimizer.state"
            )
