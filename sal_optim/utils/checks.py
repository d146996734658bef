"""Checks of what a user passes in: a clear error names the argument, its value and what is allowed.

Values may come from a command line or a YAML file, so a number may arrive as a string and a pair as
any sequence: what can be converted without loss is converted.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def number(
    name: str,
    value: Any,
    *,
    low: float = 0.0,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = True,
    label: str | None = None,
    allowed: str | None = None,
) -> float:
    """A finite float within bounds, from a number or its decimal text."""
    label = label or f"{name} value"
    interval = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
    allowed = allowed or f"{name} must be a number in {interval}"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        try:
            value = float(value)  # 0-dim tensors, numpy scalars
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise TypeError(f"Invalid {label}: {value!r}; {allowed}") from error
    try:
        result = float(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"Invalid {label}: {value!r:.80}; {allowed}") from error
    above = result > low if low_open else result >= low
    below = result < high if high_open else result <= high
    if not (math.isfinite(result) and above and below):
        raise ValueError(f"Invalid {label}: {value}; {allowed}")
    return result


def learning_rate(value: Any) -> float | Tensor:
    """A float of at least 0, or a tensor with one element of at least 0, which stays a tensor."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element, got shape {tuple(value.shape)}")
    rate = number("lr", value, label="learning rate")
    return value if isinstance(value, Tensor) else rate


def betas(value: Any) -> tuple[float, float]:
    """A pair of decay rates in [0, 1), from any sequence of two numbers."""
    message = f"Invalid betas: {value!r}; betas must be two numbers in [0, 1)"
    if isinstance(value, str):
        raise TypeError(message)
    try:
        pair = tuple(value)
    except TypeError as error:  # no sequence
        raise TypeError(message) from error
    if len(pair) != 2:
        raise ValueError(message)
    first, second = (
        number(f"betas[{index}]", beta, high=1.0, label=f"beta parameter at index {index}")
        for index, beta in enumerate(pair)
    )
    return first, second


def whole(
    name: str, value: Any, *, low: int, high: float = math.inf, allowed: str | None = None
) -> int:
    """A whole number from ``low`` to ``high``; 500.0 and "500" will do."""
    allowed = allowed or f"{name} must be a whole number >= {low}"
    result = number(name, value, low=low, high=high, high_open=False, allowed=allowed)
    if result != int(result):
        raise ValueError(f"Invalid {name} value: {value}; {allowed}")
    return int(result)


def flag(name: str, value: Any) -> bool:
    """A bool, from a bool or a 0-dim tensor or number equal to 0 or 1."""
    with contextlib.suppress(ValueError, RuntimeError):  # arrays and tensors of several elements
        if not isinstance(value, str) and value in (False, True):
            return bool(value)
    raise ValueError(f"Invalid {name} value: {value!r}; {name} must be True or False")


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of the allowed names."""
    if not isinstance(value, str) or value not in allowed:
        names = ", ".join(repr(item) for item in allowed)
        raise ValueError(f"Invalid {name} value: {value!r}; {name} must be one of {names}")
    return str(value)


def names(name: str, value: Any) -> tuple[str, ...]:
    """A tuple of names, from any sequence of text."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"Invalid {name} value: {value!r}; {name} must be a list of names")
    return tuple(value)


def kind(name: str, value: Any, kinds: type | tuple[type, ...], allowed: str) -> None:
    """Refuse a value of any other class by a TypeError, which ends in what is allowed."""
    if not isinstance(value, kinds):
        raise TypeError(f"Invalid {name} value: a {type(value).__name__}; {allowed}")


def saved(state_dict: Any, parts: Mapping[str, type | tuple[type, ...]]) -> None:
    """Refuse a state dict that is none, or lacks a part, or has it in another class.

    Raises:
        TypeError: it is no mapping.
        ValueError: a part is missing, or of another class.
    """
    allowed = "state_dict must be what state_dict() returned"
    kind("state_dict", state_dict, Mapping, allowed)
    for part, kinds in parts.items():
        if not isinstance(state_dict.get(part), kinds):
            has = f"{part!r} is {state_dict[part]!r:.80}" if part in state_dict else f"no {part!r}"
            raise ValueError(f"Invalid state_dict value: {has}; {allowed}")


def optimizer(value: Any) -> None:
    """Refuse what is no optimizer by a TypeError."""
    kind("optimizer", value, Optimizer, "optimizer must be a torch.optim.Optimizer")


def function(name: str, value: Any, what: str) -> None:
    """Refuse what can't be called by a TypeError; ``what`` says what it must be."""
    if not callable(value):
        raise TypeError(f"Invalid {name} value: a {type(value).__name__}; {name} must be {what}")


def model(value: Any, groups: Iterable[dict[str, Any]]) -> nn.Module:
    """A module that has parameters of an optimizer's groups."""
    allowed = "model must hold parameters of the optimizer"
    kind("model", value, nn.Module, f"{allowed} as a torch.nn.Module")
    own = {id(param) for group in groups for param in group["params"]}
    if not any(id(param) in own for param in value.parameters()):
        raise ValueError(f"Invalid model value: a {type(value).__name__}; {allowed}")
    found: nn.Module = value
    return found


def state_dtype(name: str, value: Any) -> str | None:
    """The name of a dtype for state, from ``torch.bfloat16``, ``"bfloat16"`` or None.

    Kept as text because text survives YAML, JSON and ``weights_only`` checkpoints.
    """
    if value is None:
        return None
    text = str(value).removeprefix("torch.")
    dtype = getattr(torch, text, None)
    # Sums of squares leave the range of float16.
    if dtype not in (torch.int8, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(
            f"Invalid {name} value: {value!r}; {name} must be None, torch.int8, torch.bfloat16, "
            "torch.float32 or torch.float64"
        )
    return text
