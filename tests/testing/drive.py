"""Drives optimizers through gradient streams with changes of regime, and compares their states.

Gradients are drawn in advance and do not depend on the weights, so that two optimizers see the same
ones and rounding cannot feed back.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sal_optim import SALOptimizer

SHAPES = ((6, 5), (5,), (3, 2, 4), (1,), ())
# Steps of a regime before a change can be found, with room.
REGIME = 50
# The step, counted from 0, in which the automatic clock first asks for a consolidation.
CLOCK = 59


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_params(
    shapes: Sequence[Sequence[int]] = SHAPES, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """Leaf parameters with normal values; the same for the same seed."""
    generator = seeded(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return [
        torch.randn(tuple(shape), generator=generator, dtype=wide).to(dtype).requires_grad_()
        for shape in shapes
    ]


def clone_params(params: Sequence[Tensor]) -> list[Tensor]:
    return [p.detach().clone().requires_grad_(p.requires_grad) for p in params]


def fall(
    step: int, change: int, height: float = 8.0, length: int = 10, shape: str = "linear"
) -> float:
    """The gradient norm, over its usual value, of a lasting rise at ``change``."""
    since = step - change
    if not 0 <= since < length:
        return 1.0
    if shape == "linear":
        return height + (1.0 - height) * since / length
    return float(height ** (1.0 - since / length))


def profile(steps: int, changes: Sequence[int] = (), **kwargs: Any) -> list[float]:
    """The scale of the gradient in each step: 1, but for 8-fold rises that fall over ten steps."""
    return [
        max([fall(step, change, **kwargs) for change in changes], default=1.0) if changes else 1.0
        for step in range(steps)
    ]


Stream = list[list[Tensor]]


def stream(
    params: Sequence[Tensor], scales: Sequence[float], seed: int = 1, noise: str = "gaussian"
) -> Stream:
    """Gradients for each step: noise of one scale, differing by element, times ``scales``.

    Every element has its own size, in a new order after each change, so that evidence is uneven.
    """
    generator = seeded(seed)
    result: Stream = []
    sizes: list[Tensor] = []
    for step, scale in enumerate(scales):
        if step == 0 or (scale > 1.0 and scales[step - 1] == 1.0):
            sizes = [torch.rand(p.shape, generator=generator, dtype=torch.float64) for p in params]
        grads = []
        for param, size in zip(params, sizes, strict=True):
            wide = torch.complex128 if param.is_complex() else torch.float64
            value = torch.randn(param.shape, generator=generator, dtype=wide)
            if noise == "student":
                # Student t with 3 degrees of freedom, by element.
                chi = torch.randn((3, *param.shape), generator=generator, dtype=torch.float64)
                value = value / (chi.square().sum(0) / 3).sqrt()
            grads.append((0.1 * scale * (size + 0.1) * value).to(param.dtype))
        result.append(grads)
    return result


def step_with(
    optimizer: Optimizer, params: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.clone()
    optimizer.step()


def drive(optimizer: Optimizer, params: Sequence[Tensor], grads: Stream) -> list[int]:
    """Step through the stream; returns the steps at which the optimizer consolidated.

    By the clock the first is at ``CLOCK``; without it, ``consolidate_every=None``, all are changes.
    """
    found: list[int] = []
    count = consolidations(optimizer)
    for index, now in enumerate(grads):
        step_with(optimizer, params, now)
        if consolidations(optimizer) != count:
            count = consolidations(optimizer)
            found.append(index)
    return found


def drive_both(
    one: tuple[Any, Sequence[Tensor]],
    other: tuple[Any, Sequence[Tensor]],
    grads: Stream,
    *,
    consolidate: Sequence[int],
) -> None:
    """Step two optimizers, each with its parameters; both consolidate before the steps named."""
    for step, now in enumerate(grads):
        for optimizer, params in (one, other):
            if step in consolidate:
                optimizer.consolidate()
            step_with(optimizer, params, now)


def consolidations(optimizer: Optimizer) -> int:
    """Their number; read from the state, as ``diagnostics()`` is too slow for every step here."""
    return int(optimizer.param_groups[0].get("threshold", {}).get("consolidations", 0))


def reload(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Through a file and back, as safely as torch loads."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts and lists, with their paths."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for key, item in enumerate(value):
            yield from flat(item, f"{path}[{key}]")
    else:
        yield path, value


def snapshot(optimizer: Optimizer) -> dict[str, Any]:
    """All of the state dict, by path, copied."""
    return {
        path: value.clone() if isinstance(value, Tensor) else value
        for path, value in flat(optimizer.state_dict())
    }


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two snapshots agree bit for bit, dtypes included."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    for path, value in one.items():
        if isinstance(value, Tensor):
            assert value.dtype == other[path].dtype, path
            assert_equal([value], [other[path]], path)
        else:
            assert value == other[path], f"{path}: {value} != {other[path]}"


def assert_equal(one: Sequence[Tensor], other: Sequence[Tensor], what: str = "") -> None:
    """Bit for bit, but for NaN, which equals NaN."""
    assert len(one) == len(other)
    for index, (left, right) in enumerate(zip(one, other, strict=True)):
        torch.testing.assert_close(
            left.detach(),
            right.detach(),
            rtol=0,
            atol=0,
            equal_nan=True,
            msg=lambda text, index=index: f"{what} tensor {index}: {text}",  # type: ignore[misc]
        )


def assert_names(error: Exception, words: Sequence[str]) -> None:
    assert any(word in str(error) for word in words), f"{error!r} names none of {words}"


def assert_near(
    one: Sequence[Tensor], other: Sequence[Tensor], rtol: float = 1e-6, atol: float = 1e-7
) -> None:
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left.detach(), right.detach(), rtol=rtol, atol=atol)


_SEASONED: dict[str, tuple[list[Tensor], SALOptimizer]] = {}


def seasoned(row: Any, **kwargs: Any) -> tuple[list[Tensor], SALOptimizer]:
    """Parameters and an optimizer that has found one change, 80 steps in; copied from a first.

    Without a clock, unless ``kwargs`` say otherwise: it has consolidated once, at the change.
    """
    kwargs = {"consolidate_every": None, **kwargs}
    key = f"{row} {kwargs}"
    if key not in _SEASONED:
        params = make_params()
        optimizer = row(params, **kwargs)
        found = drive(optimizer, params, stream(params, profile(80, (60,))))
        assert len(found) == 1, found
        assert 60 <= found[0] < 70, found
        _SEASONED[key] = params, optimizer
    return copy.deepcopy(_SEASONED[key])
