"""What a step does beside its update: hooks, closures, gradients left alone, scalers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim.checkpoint.validation import IMPORTANCE_STATE
from tests.testing.drive import (
    CLOCK,
    Stream,
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
from tests.testing.rows import KINDS, Row

Mode = dict[str, Any]


def test_step_hooks(row: Row, mode: Mode) -> None:
    params, calls = make_params(), []
    optimizer = row(params, **mode)

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        calls.append("before")
        for param in params:
            param.grad.zero_()

    optimizer.register_step_pre_hook(before)
    handle = optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    still = clone_params(params)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    step_with(optimizer, params, stream(params, [1.0])[0])
    assert calls == ["before", "after"]
    assert_equal(params, still, "the hook set the gradient to 0, so nothing moves:")
    handle.remove()
    step_with(optimizer, params, stream(params, [1.0])[0])
    assert calls == ["before", "after", "before"]


def test_closure(row: Row, mode: Mode) -> None:
    params = make_params([(3,)])
    optimizer = row(params, **mode)
    seen = []

    def closure() -> Tensor:
        seen.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss.detach()

    first = optimizer.step(closure)
    with torch.no_grad():
        second = optimizer.step(closure)
    assert seen == [True, True]
    assert 0 < float(second) < float(first)
    assert optimizer.step() is None


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("importance", KINDS)
def test_gradient_is_left_alone(
    class_row: Row, mode: Mode, maximize: bool, importance: str
) -> None:
    params = make_params()
    optimizer = class_row(params, maximize=maximize, importance=importance, **mode)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    for now in stream(params, profile(70, (60,))):
        for param, grad in zip(params, now, strict=True):
            param.grad = grad.clone()
        objects = [param.grad for param in params]
        optimizer.step()
        assert all(p.grad is grad for p, grad in zip(params, objects, strict=True))
        assert_equal([p.grad for p in params], now, "gradient")
    assert consolidations(optimizer) == 1


def test_steps_are_per_parameter(row: Row, mode: Mode) -> None:
    params, optimizer = make_params(), None
    optimizer = row(params, **mode)
    for index, now in enumerate(stream(params, profile(6))):
        late: Tensor | None = now[-1] if index >= 4 else None
        step_with(optimizer, params, [*now[:-1], late])
    if "step" in optimizer.state[params[0]]:  # of the bases, Adam alone counts
        assert [optimizer.state[p]["step"].item() for p in params] == [6, 6, 6, 6, 2]
    gathered = [optimizer.state[param]["pending_steps"] for param in params]
    assert gathered == [2, 2, 2, 2, 1], "of steps 1 and 5"


def test_maximize(row: Row, mode: Mode) -> None:
    up, down = make_params(), make_params()
    grads = stream(up, profile(90, (60,)))
    one, other = row(up, maximize=True, **mode), row(down, **mode)
    negated = [[-grad for grad in now] for now in grads]
    assert drive(one, up, grads) == drive(other, down, negated) == [CLOCK]
    assert_equal(up, down)
    assert not torch.equal(up[0], make_params()[0])


@pytest.mark.parametrize("importance", KINDS)
def test_step_outside_no_grad_builds_no_graph(class_row: Row, mode: Mode, importance: str) -> None:
    params, optimizer = seasoned(class_row, importance=importance, **mode)
    step_with(optimizer, params, stream(params, [1.0])[0])
    with torch.enable_grad():
        optimizer.consolidate()
        optimizer.diagnostics()
    assert all(param.is_leaf and param.requires_grad for param in params)
    tensors = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    assert tensors
    assert not any(value.requires_grad for value in tensors)


def test_zero_step_makes_all_state(row: Row, mode: Mode) -> None:
    """A step with zero gradients and lr=0 is how distributed checkpoints materialise state."""
    params = make_params()
    still = clone_params(params)
    optimizer = row(params, consolidate_every=None, **mode)
    rate = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = 0.0
    zeros: Stream = [[torch.zeros_like(param) for param in params]]
    step_with(optimizer, params, zeros[0])
    optimizer.param_groups[0]["lr"] = rate
    assert_equal(params, still)
    assert consolidations(optimizer) == 0
    used = seasoned(row, **mode)[1]
    # Also once consolidated, in the middle of a detection, and observed.
    used.consolidate()
    empty, full = snapshot(optimizer), snapshot(used)
    assert empty.keys() == full.keys()
    for path, value in empty.items():
        assert type(value) is type(full[path]), path
        if isinstance(value, Tensor):
            assert (value.shape, value.dtype) == (full[path].shape, full[path].dtype), path


@pytest.mark.parametrize("which", ["zero gradient", "zero lr"])
def test_a_step_that_says_nothing_leaves_the_threshold(row: Row, mode: Mode, which: str) -> None:
    params = make_params()
    optimizer = row(params, **mode)
    drive(optimizer, params, stream(params, profile(61, (60,))))

    def told() -> tuple[dict[str, Any], dict[str, float]]:
        states = [optimizer.state[param] for param in params]
        kept = {
            f"{index} {name}": value
            for index, state in enumerate(states)
            for name, value in state.items()
            if name.startswith(IMPORTANCE_STATE)
        }
        return copy.deepcopy((kept, optimizer.param_groups[0]["threshold"]))

    before = told()
    assert before[1]["suspicion"] > 0
    if which == "zero gradient":
        now = [torch.zeros_like(param) for param in params]
    else:
        now = stream(params, [8.0])[0]
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.param_groups[0]["weight_decay"] = 0.1
    still = clone_params(params)
    for _ in range(5):
        step_with(optimizer, params, now)
    after = told()
    assert after[1] == before[1]
    assert_same_state(after[0], before[0])
    assert all(bool(torch.isfinite(param).all()) for param in params)
    if which == "zero lr":
        assert_equal(params, still)


def test_grad_scaler_inf_step_leaves_all_state_alone(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    start = clone_params(params)
    for now in stream(params, profile(3)):
        scaler.scale(torch.ones(()))
        for param, grad in zip(params, now, strict=True):
            param.grad = grad * 1024.0
        scaler.step(optimizer)
        scaler.update()
    assert not torch.equal(params[0], start[0])
    assert scaler.get_scale() == 1024.0
    before, still = snapshot(optimizer), clone_params(params)
    for param, grad in zip(params, now, strict=True):
        param.grad = grad * 1024.0
    params[1].grad[0] = torch.inf  # type: ignore[index]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert_equal(params, still)
    assert_same_state(snapshot(optimizer), before)


def test_grad_scaler_changes_nothing(row: Row, mode: Mode) -> None:
    """Unscaled gradients reach the threshold: a doubling scale is no change of regime."""
    params, twin = make_params(), make_params()
    one, other = row(params, **mode), row(twin, **mode)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=20)
    for now in stream(params, profile(80, (60,))):
        scale = scaler.scale(torch.ones(())).item()
        for param, grad in zip(params, now, strict=True):
            param.grad = grad * scale
        scaler.step(one)
        scaler.update()
        step_with(other, twin, now)
    assert consolidations(one) == consolidations(other) == 1
    assert scaler.get_scale() > 1024.0
    assert_equal(params, twin)
