"""Bad days of training: gradients, learning rates and parameters gone wrong.

Whatever happens, either all goes on rightly or an error names what is wrong and nothing changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim.checkpoint.validation import IMPORTANCE_STATE, STATISTICS
from sal_optim.config import RETENTION
from sal_optim.detection.change_detector import new_detector
from sal_optim.monitoring.status import protection_line
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
from tests.testing.rows import KINDS, Row, row_of

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
            before = dict(one.param_groups[0].get("threshold") or new_detector())
            bad = [grad.clone() for grad in now]
            bad[0][0, 0] = value
            step_with(one, params, bad)
            assert dict(one.param_groups[0]["threshold"]) == before
        step_with(one, params, now)
        step_with(other, twin, now)
    assert consolidations(one) == consolidations(other) == 1
    assert one.param_groups[0]["threshold"] == other.param_groups[0]["threshold"]
    for left, right in zip(params, twin, strict=True):
        names = [name for name in one.state[left] if name.startswith(IMPORTANCE_STATE)]
        assert len(names) >= 4
        kept = [
            {name: state[name] for name in names} for state in (one.state[left], other.state[right])
        ]
        assert_same_state(*kept)
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


@pytest.mark.parametrize("lr", [0.0, 5e-324, 1e-40, 1e15, 1e30])
def test_extreme_learning_rates(row: Row, mode: Mode, lr: float) -> None:
    params = make_params()
    # A penalty on weights of 1e31 has a gradient whose square leaves float32, in Adam's state.
    pull = {"pull": 0.0} if lr > 1e20 else {}
    optimizer = row(params, **{**mode, "lr": lr, **_without_decay(row), **pull})
    grads = stream(params, profile(80, (60,)))
    drive(optimizer, params, grads)
    assert consolidations(optimizer) == (0 if lr == 0 else 1)
    for param in params:
        assert bool(torch.isfinite(param).all())
        for name, value in optimizer.state[param].items():
            if name.startswith(STATISTICS):
                assert bool(torch.isfinite(torch.as_tensor(value)).all()), name
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


@pytest.mark.parametrize("importance", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_resized_or_cast_parameter(class_row: Row, importance: str, change: str) -> None:
    """An error, by which nothing changes; its entry of the state deleted, it is a new one."""
    params, optimizer = (
        seasoned(class_row, importance=importance, momentum=0.9)
        if (class_row.name == "SALSGD")
        else seasoned(class_row, importance=importance)
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


# --------------------------------------------------------------------- what frameworks and users do


def _noise(optimizer: Any, steps: int, *params: Tensor, step: Any = None, seed: int = 5) -> None:
    """Steps with gradients of one size, whose importance is 1 on average."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, device=param.device)
        (step or optimizer.step)()


def _importance(optimizer: Any, param: Tensor) -> float:
    return float(optimizer.controller.importance(param)[0].mean())


def test_a_removed_group_takes_nothing_with_it(class_row: Row) -> None:
    a, b = make_params([(100,), (100,)])
    optimizer = class_row([{"params": [a]}, {"params": [b]}], consolidate_every=None)
    _noise(optimizer, 200, a, b)
    optimizer.consolidate()
    _noise(optimizer, 200, a, b)
    optimizer.param_groups.pop(0)
    _noise(optimizer, 8, b)
    optimizer.consolidate()
    assert _importance(optimizer, b) == pytest.approx(1.0, abs=0.1)
    assert consolidations(optimizer) == 2
    assert optimizer.state[b]["evidence_weight"] == pytest.approx(1.0 + RETENTION)


def test_without_groups_nothing_happens(class_row: Row) -> None:
    """As in torch.optim, where a step of an optimizer that has none moves nothing."""
    (param,) = make_params([(100,)])
    optimizer = class_row([param])
    _noise(optimizer, 70, param)
    groups, moments = list(optimizer.param_groups), dict(optimizer.state)
    optimizer.param_groups.clear()
    optimizer.state.clear()
    before = param.detach().clone()
    optimizer.tell(loss=1.0)
    _noise(optimizer, 1, param)
    optimizer.consolidate()
    assert optimizer.diagnostics()["mean_gate"] == 1.0
    assert "no parameters" in protection_line(optimizer)
    assert torch.equal(param, before)
    optimizer.param_groups += groups
    optimizer.state.update(moments)
    _noise(optimizer, 8, param)
    assert not torch.equal(param, before)


def test_a_state_dict_kept_in_memory_does_not_go_on_counting(class_row: Row) -> None:
    (param,) = make_params([(100,)])
    optimizer = class_row([param], consolidate_every=None)
    fresh = optimizer.state_dict()
    _noise(optimizer, 100, param)
    kept = optimizer.state_dict()
    counted = copy.deepcopy(kept["param_groups"][0]["threshold"])
    pending = kept["state"][0]["pending_steps"]
    _noise(optimizer, 10, param)
    assert kept["param_groups"][0]["threshold"] == counted
    assert kept["state"][0]["pending_steps"] == pending
    optimizer.load_state_dict(fresh)
    assert optimizer.param_groups[0]["threshold"]["total"] == 0
    _noise(optimizer, 20, param)
    optimizer.consolidate()
    assert _importance(optimizer, param) == pytest.approx(1.0, abs=0.01)


def test_a_cleared_state_is_a_new_beginning(class_row: Row) -> None:
    (param,) = make_params([(100,)])
    optimizer = class_row([param])
    _noise(optimizer, 200, param)
    optimizer.consolidate()
    assert optimizer.diagnostics()["mean_gate"] < 0.5
    optimizer.state.clear()
    assert optimizer.diagnostics()["mean_gate"] == 1.0
    with pytest.warns(UserWarning, match=r"importance of \d+ consolidations is gone"):
        _noise(optimizer, 1, param)
    _noise(optimizer, 7, param)
    assert optimizer.param_groups[0]["threshold"]["total"] == 8
    optimizer.consolidate()
    assert consolidations(optimizer) == 1
    assert _importance(optimizer, param) == pytest.approx(1.0, abs=0.01)
    assert optimizer.diagnostics()["mean_gate"] < 0.5


def test_observe_without_a_step_warns(class_row: Row) -> None:
    params = make_params([(9,)])
    optimizer = class_row(params)
    with (
        pytest.warns(UserWarning, match=r"observe\(\) saw no step\(\)") as caught,
        optimizer.observe(),
    ):
        params[0].square().sum().backward()
    optimizer.consolidate()
    assert consolidations(optimizer) == 0
    with pytest.warns(UserWarning, match=r"restore\(\) changed nothing") as told:
        optimizer.restore(1.0)
    assert [w.filename for w in (*caught, *told)] == [__file__, __file__]


def test_another_default_device(row: Row) -> None:
    params = make_params()
    twin = clone_params(params)
    optimizer, other = row(params), row(twin)
    grads = stream(params, profile(65))
    with torch.device("meta"):
        for now in grads:
            step_with(optimizer, params, now)
        optimizer.consolidate()
    drive(other, twin, grads)
    other.consolidate()
    assert_equal(params, twin)
    assert_same_state(snapshot(optimizer), snapshot(other))


@pytest.mark.parametrize("importance", KINDS)
def test_infinite_weights_never_become_an_anchor(importance: str) -> None:
    params = make_params([(10, 10)])
    optimizer = row_of("SALSGD")(params, lr=0.1, weight_decay=0.0, importance=importance)
    _noise(optimizer, 50, *params)
    optimizer.consolidate()
    anchor = optimizer.state[params[0]]["anchor"].clone()
    _noise(optimizer, 8, *params)
    params[0].grad = torch.full((10, 10), math.inf)
    optimizer.step()
    assert not bool(params[0].isfinite().any())
    _noise(optimizer, 4, *params)
    optimizer.consolidate()
    assert_equal([optimizer.state[params[0]]["anchor"]], [anchor])
    optimizer.restore(1e30)
    torch.testing.assert_close(params[0].detach(), anchor)


def test_a_compiled_step_is_the_eager_one(class_row: Row) -> None:
    """``torch.compile`` runs the step as it is: it decides on the host."""
    params, twin = make_params(), make_params()
    optimizer, other = class_row(params), class_row(twin)
    step = torch.compile(optimizer.step, backend="eager")
    for now in stream(params, profile(70)):
        for param, grad in zip(params, now, strict=True):
            param.grad = grad.clone()
        step()
        step_with(other, twin, now)
    assert consolidations(optimizer) == consolidations(other) == 1
    assert_equal(params, twin)
    assert_same_state(snapshot(optimizer), snapshot(other))


def test_a_compiled_training_step_is_the_eager_one(class_row: Row) -> None:
    ends = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = class_row(model.parameters())

        def train(batch: Tensor, model: Any = model, optimizer: Any = optimizer) -> None:
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        run = torch.compile(train, backend="eager") if compiled else train
        for batch in torch.randn(70, 8, 4, generator=torch.Generator().manual_seed(1)):
            run(batch)
        assert consolidations(optimizer) == 1
        ends.append(([*model.parameters()], snapshot(optimizer)))
    assert_equal(ends[0][0], ends[1][0])
    assert_same_state(ends[0][1], ends[1][1])
