"""Bad days of training: gradients, learning rates and parameters gone wrong.

Whatever happens, either all goes on rightly or an error names what is wrong and nothing changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.testing.drive import (
    assert_equal,
    assert_same_state,
    clone_params,
    consolidations,
    drive,
    make_params,
    profile,
    seasoned,
    snapshot,
    step_with,
    stream,
)
from tests.testing.rows import GRANULARITIES, Row

Mode = dict[str, Any]


# ------------------------------------------------------------------------------------ bad gradients


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", [0, 1, 29, 31, 60, 61, 62, 75])
def test_a_non_finite_gradient_at_any_step(class_row: Row, value: float, when: int) -> None:
    """It tells nothing: evidence and threshold are those of a run without that step."""
    params, twin = make_params(), make_params()
    one, other = class_row(params), class_row(twin)
    grads = stream(params, profile(80, (60,)))
    for index, now in enumerate(grads):
        if index == when:
            before = dict(one.param_groups[0].get("threshold", {}))
            bad = [grad.clone() for grad in now]
            bad[0][0, 0] = value
            step_with(one, params, bad)
            assert dict(one.param_groups[0]["threshold"]) == before
        step_with(one, params, now)
        step_with(other, twin, now)
    assert consolidations(one) == consolidations(other) == 1
    assert one.param_groups[0]["threshold"] == other.param_groups[0]["threshold"]
    for left, right in zip(params, twin, strict=True):
        for name in ("pending", "evidence"):
            assert torch.equal(one.state[left][name], other.state[right][name])
        assert bool(torch.isfinite(one.stability(left)).all())
    assert all(math.isfinite(number) for number in one.diagnostics().values())
    # The other parameters are not touched by it.
    assert all(bool(torch.isfinite(param).all()) for param in params[1:])


def test_only_non_finite_gradients(row: Row, mode: Mode) -> None:
    params = make_params()
    optimizer = row(params, **mode)
    for _ in range(50):
        step_with(optimizer, params, [torch.full_like(param, torch.nan) for param in params])
    optimizer.consolidate()
    assert consolidations(optimizer) == 0
    assert all(math.isfinite(number) for number in optimizer.diagnostics().values())


@pytest.mark.parametrize("lr", [0.0, 5e-324, 1e-40, 1e30])
def test_extreme_learning_rates(row: Row, mode: Mode, lr: float) -> None:
    params = make_params()
    optimizer = row(params, **{**mode, "lr": lr, **_without_decay(row)})
    grads = stream(params, profile(80, (60,)))
    drive(optimizer, params, grads)
    assert consolidations(optimizer) == (0 if lr == 0 else 1)
    for param in params:
        assert bool(torch.isfinite(param).all())
        for name in ("pending", "evidence", "anchor"):
            assert bool(torch.isfinite(optimizer.state[param][name]).all()), name
    if lr < 1e-30:
        assert_equal(params, make_params())


def _without_decay(row: Row) -> dict[str, Any]:
    """The base optimizer itself overflows float32 by lr * weight_decay."""
    return {"weight_decay": 0.0} if "weight_decay" in row.kwargs else {}


# ------------------------------------------------------------------------- parameters that change


def test_parameters_appear_and_vanish(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    new = make_params([(3, 3)], seed=8)
    twin = clone_params(new)
    optimizer.add_param_group({"params": new})
    base = row.base(twin, **mode)
    del optimizer.state[params[0]]
    optimizer.param_groups[0]["params"] = params[1:]
    for now in stream([*params[1:], *new], profile(20)):
        step_with(optimizer, [*params[1:], *new], now)
        step_with(base, twin, now[-1:])
    assert consolidations(optimizer) == 1
    assert_equal(new, twin, "a parameter without evidence moves as the base optimizer moves it:")
    optimizer.consolidate()
    assert float(optimizer.stability(new[0]).max()) > 0


def test_requires_grad_switched(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    params[0].requires_grad_(False)
    frozen = params[0].clone()
    for now in stream(params, profile(10)):
        step_with(optimizer, params, [None, *now[1:]])
    assert torch.equal(params[0], frozen)
    params[0].requires_grad_(True)
    for now in stream(params, profile(10)):
        step_with(optimizer, params, now)
    assert not torch.equal(params[0], frozen)
    assert consolidations(optimizer) == 1


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "bigger": lambda p: torch.randn(2 * p.shape[0], *p.shape[1:]),
    "smaller": lambda p: p[:1].clone(),
    "transposed": lambda p: p.t().contiguous(),
    "float64": lambda p: p.double(),
    "bfloat16": lambda p: p.bfloat16(),
}


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_resized_or_cast_parameter(class_row: Row, granularity: str, change: str) -> None:
    """An error, by which nothing changes; its entry of the state deleted, it is a new one."""
    params, optimizer = (
        seasoned(class_row, granularity=granularity, momentum=0.9)
        if (class_row.name == "SALSGD")
        else seasoned(class_row, granularity=granularity)
    )
    with torch.no_grad():
        params[0].data = CHANGES[change](params[0].detach())
    before, still = snapshot(optimizer), clone_params(params)
    grads = stream(params, profile(5))
    with pytest.raises(ValueError, match=r"Invalid params value.*optimizer\.state"):
        step_with(optimizer, params, grads[0])
    assert_equal(params, still)
    assert_same_state(snapshot(optimizer), before)
    del optimizer.state[params[0]]
    drive(optimizer, params, grads)
    assert not torch.equal(params[0], still[0])
    assert float(optimizer.stability(params[0]).max()) == 0
    optimizer.consolidate()
    assert float(optimizer.stability(params[0]).max()) > 0


def test_a_sparse_gradient_changes_nothing(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    before, still = snapshot(optimizer), clone_params(params)
    for param in params[:-1]:
        param.grad = torch.ones_like(param)
    params[1].grad = torch.ones(5).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert_equal(params, still)
    assert_same_state(snapshot(optimizer), before)


def test_a_reinitialised_parameter(row: Row, mode: Mode) -> None:
    """New values in the same tensor: goes on; with its state deleted, as a new parameter."""
    params, optimizer = seasoned(row, **mode)
    with torch.no_grad():
        params[0].normal_(generator=torch.Generator().manual_seed(4))
    del optimizer.state[params[0]]
    twin = clone_params(params[:1])
    base = row.base(twin, **mode)
    for now in stream(params, profile(10)):
        step_with(optimizer, params, now)
        step_with(base, twin, now[:1])
    assert_equal(params[:1], twin)
