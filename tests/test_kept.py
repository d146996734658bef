"""What a step keeps for the next one changes no step, and does not outlive what it is made from."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim import SALAdam, SALOptimizer
from tests.testing.drive import (
    assert_equal,
    assert_same_state,
    consolidations,
    make_params,
    profile,
    seasoned,
    snapshot,
    step_with,
    stream,
)
from tests.testing.rows import GRANULARITIES, MODES, ROWS, Row

Mode = dict[str, Any]
Edit = Callable[[SALOptimizer, list[Tensor]], object]


@pytest.fixture(params=[*MODES, "compiled"])
def mode(request: pytest.FixtureRequest) -> Mode:
    return dict(MODES.get(request.param, {"compile": True}))


def set_all(**settings: Any) -> Edit:
    def edit(optimizer: SALOptimizer, params: list[Tensor]) -> None:
        for group in optimizer.param_groups:
            group.update(settings)

    return edit


def evidence_in_place(optimizer: SALOptimizer, params: list[Tensor]) -> None:
    for state in optimizer.state.values():
        for name, value in state.items():
            if name.startswith("evidence") and isinstance(value, Tensor):
                value.mul_(3.0)


def other_tensors(optimizer: SALOptimizer, params: list[Tensor]) -> None:
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and name != "step":
                state[name] = value * 0.5


def other_data(optimizer: SALOptimizer, params: list[Tensor]) -> None:
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and name != "step":
                value.data = value.data * 0.5


def other_strides(optimizer: SALOptimizer, params: list[Tensor]) -> None:
    for param in params:
        param.data = param.data.mT.contiguous().mT if param.dim() > 1 else param.data.clone()


def no_anchors(optimizer: SALOptimizer, params: list[Tensor]) -> None:
    for state in optimizer.state.values():
        del state["anchor"]


def one_forgotten(optimizer: SALOptimizer, params: list[Tensor]) -> None:
    del optimizer.state[params[1]]


def all_forgotten(optimizer: SALOptimizer, params: list[Tensor]) -> None:
    optimizer.state = defaultdict(dict)


def reloaded(optimizer: SALOptimizer, params: list[Tensor]) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def reordered(optimizer: SALOptimizer, params: list[Tensor]) -> None:
    optimizer.param_groups[0]["params"] = params[::-1]


def regrouped(optimizer: SALOptimizer, params: list[Tensor]) -> None:
    group = optimizer.param_groups[0]
    rest = {**group, "params": params[2:], "protection": 0.7}
    rest.pop("threshold")
    optimizer.param_groups[:] = [{**group, "params": params[:2]}, rest]


def another_optimizer(optimizer: SALOptimizer, params: list[Tensor]) -> None:
    vars(optimizer).update(vars(pickle.loads(pickle.dumps(optimizer))))
    optimizer.param_groups[0]["params"] = params
    optimizer.state = defaultdict(
        dict, dict(zip(params, list(optimizer.state.values()), strict=True))
    )


EDITS: dict[str, Edit] = {
    "nothing": lambda optimizer, params: None,
    "protection": set_all(protection=0.9),
    "no protection": set_all(protection=0.0),
    "pull": set_all(pull=50.0),
    "no pull": set_all(pull=0.0),
    "weight decay": set_all(weight_decay=0.5),
    "amsgrad": set_all(amsgrad=True),
    "momentum": set_all(momentum=0.5),
    "foreach": set_all(foreach=True),
    "loop": set_all(foreach=False),
    "compile": set_all(compile=True),
    "no compile": set_all(compile=False),
    "maximize": set_all(maximize=True),
    "evidence in place": evidence_in_place,
    "other tensors": other_tensors,
    "other data": other_data,
    "other strides": other_strides,
    "no anchors": no_anchors,
    "one forgotten": one_forgotten,
    "all forgotten": all_forgotten,
    "reloaded": reloaded,
    "reordered": reordered,
    "regrouped": regrouped,
    "another optimizer": another_optimizer,
    "consolidate": lambda optimizer, params: optimizer.consolidate(),
    "restore": lambda optimizer, params: optimizer.restore(2.0),
}


def twins(row: Row, **settings: Any) -> list[tuple[list[Tensor], SALOptimizer]]:
    """Twice the same, protected and with what steps keep."""
    return [seasoned(row, **settings) for _ in range(2)]


@pytest.mark.parametrize("edit", EDITS)
def test_steps_are_those_of_one_that_keeps_nothing(row: Row, mode: Mode, edit: str) -> None:
    (params, optimizer), (others, forgetful) = twins(row, **mode)
    grads = stream(params, profile(100, (70,)))
    for index, now in enumerate(grads):
        if index == 20:
            EDITS[edit](optimizer, params)
            EDITS[edit](forgetful, others)
        # Now and then a gradient is missing, or lies in memory in another order.
        turned = [grad.mT.contiguous().mT if grad.dim() > 1 else grad for grad in now]
        now = turned if index % 5 == 0 else now
        some = [None if index % 7 == place else grad for place, grad in enumerate(now)]
        forgetful._drop("_kept")
        step_with(optimizer, params, some)
        step_with(forgetful, others, some)
        assert_equal(params, others, f"step {index}:")
    assert consolidations(optimizer) == consolidations(forgetful) > 0
    assert_same_state(snapshot(optimizer), snapshot(forgetful))


def test_a_square_turned_where_it_is(row: Row, mode: Mode) -> None:
    """Of the same shape in the same memory."""
    pairs = []
    for _ in range(2):
        params = make_params([(4, 4), (3,)])
        pairs.append((params, row(params, **mode)))
    (params, optimizer), (others, forgetful) = pairs
    for index, now in enumerate(stream(params, profile(16))):
        if index == 8:
            optimizer.consolidate()
            forgetful.consolidate()
        if index == 12:
            params[0].data, others[0].data = params[0].data.mT, others[0].data.mT
        forgetful._drop("_kept")
        step_with(optimizer, params, now)
        step_with(forgetful, others, now)
        assert_equal(params, others, f"step {index}:")
    assert optimizer.stability(params[0]).max() > 0


def test_a_gradient_that_is_negated_as_it_is_read(row: Row, mode: Mode) -> None:
    """As imaginary parts of conjugates are."""
    (params, optimizer), (others, forgetful) = twins(row, **mode)
    first, second = stream(params, profile(2))
    for both, own in ((optimizer, params), (forgetful, others)):
        step_with(both, own, first)
        for param, grad in zip(own, second, strict=True):
            param.grad = torch._neg_view(grad.neg())
            assert param.grad.is_neg()
    forgetful._drop("_kept")
    optimizer.step()
    forgetful.step()
    assert_equal(params, others)


def test_protection_that_is_on_for_a_while(row: Row, mode: Mode) -> None:
    """Only then are those with evidence and those without stepped together."""
    (params, optimizer), (others, forgetful) = twins(row, **mode)
    for both in ((optimizer, params), (forgetful, others)):
        one_forgotten(*both)
    for index, now in enumerate(stream(params, profile(15))):
        for group in (*optimizer.param_groups, *forgetful.param_groups):
            group["protection"] = 0.5 if 5 <= index < 10 else 0.0
        # Cut into lists anew after the step in which one was fresh.
        some = [*now[:-1], None] if index else now
        forgetful._drop("_kept")
        step_with(optimizer, params, some)
        step_with(forgetful, others, some)
        assert_equal(params, others, f"step {index}:")


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("settings", [{}, {"state_dtype": "bfloat16"}, {"pull": 0.0}], ids=str)
def test_every_granularity(granularity: str, settings: Mode, mode: Mode) -> None:
    (params, optimizer), (others, forgetful) = twins(
        ROWS[0], granularity=granularity, **settings, **mode
    )
    for now in stream(params, profile(90, (60,))):
        forgetful._drop("_kept")
        step_with(optimizer, params, now)
        step_with(forgetful, others, now)
    assert consolidations(optimizer) == 2
    assert_equal(params, others)
    assert_same_state(snapshot(optimizer), snapshot(forgetful))


@pytest.mark.parametrize("foreach", [False, True, None])
def test_slices_of_a_large_tensor(foreach: bool | None) -> None:
    """Each slice has its own divisors."""
    shapes = [(450, 400), (300,)]
    pairs = []
    for _ in range(2):
        params = make_params(shapes)
        pairs.append((params, SALAdam(params, foreach=foreach)))
    (params, optimizer), (others, forgetful) = pairs
    for index, now in enumerate(stream(params, [1.0] * 20)):
        if index == 8:
            optimizer.consolidate()
            forgetful.consolidate()
        forgetful._drop("_kept")
        step_with(optimizer, params, now)
        step_with(forgetful, others, now)
    assert optimizer.stability(params[0]).max() > 0
    assert_equal(params, others)


def works(optimizer: SALOptimizer) -> list[int]:
    """What is kept, by identity."""
    return [id(seen.work) for mine in optimizer._kept for seen in mine._seen.values()]


def test_works_and_divisors_are_kept(row: Row, mode: Mode) -> None:
    """Without this, the tests above would compare a thing with itself."""
    params, optimizer = seasoned(row, **mode)
    first, second, third = stream(params, profile(3))
    step_with(optimizer, params, first)
    kept, gates = works(optimizer), [p.gate for mine in optimizer._kept for p in mine._pieces]
    assert len(kept) == len(params)
    step_with(optimizer, params, second)
    assert works(optimizer) == kept
    assert [p.gate for mine in optimizer._kept for p in mine._pieces] == gates
    if isinstance(optimizer, SALAdam) and "compile" not in mode:
        divisors = [id(d) for gate in gates for d in gate.divisors]
        assert len(divisors) == len(params)
        step_with(optimizer, params, third)
        assert [id(d) for gate in gates for d in gate.divisors] == divisors


def test_lists_are_made_anew_for_another_mode() -> None:
    params, optimizer = seasoned(ROWS[0], foreach=True)
    first, second = stream(params, profile(2))
    step_with(optimizer, params, first)
    assert [len(mine._pieces) for mine in optimizer._kept] == [1]
    set_all(foreach=False)(optimizer, params)
    step_with(optimizer, params, second)
    assert [len(mine._pieces) for mine in optimizer._kept] == [len(params)]


def test_nothing_of_a_gradient_is_kept(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    for now in stream(params, profile(5)):
        step_with(optimizer, params, now)
        grads = [weakref.ref(param.grad) for param in params if param.grad is not None]
        assert len(grads) == len(params)
        optimizer.zero_grad()
        assert [grad() for grad in grads] == [None] * len(params)


def test_a_parameter_that_left_is_let_go(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    first, second = stream(params, profile(2))
    step_with(optimizer, params, first)
    state = weakref.ref(optimizer.state[params[0]]["anchor"])
    param = weakref.ref(params[0])
    del optimizer.state[params[0]]
    optimizer.param_groups[0]["params"] = params = params[1:]
    step_with(optimizer, params, second[1:])
    gc.collect()
    assert state() is None
    assert param() is None


def test_a_step_that_fails_keeps_nothing(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    first, second, third = stream(params, profile(3))
    step_with(optimizer, params, first)
    assert works(optimizer)
    data, params[0].grad, before = params[0].data, None, snapshot(optimizer)
    params[0].data = torch.zeros(9)
    with pytest.raises(ValueError, match="when a parameter is resized"):
        step_with(optimizer, params, [torch.ones(9), *second[1:]])
    assert "_kept" not in vars(optimizer)
    assert_same_state(snapshot(optimizer), before)
    params[0].grad = None
    params[0].data = data
    step_with(optimizer, params, third)


def test_a_resized_parameter_is_found_out(row: Row, mode: Mode) -> None:
    """Also where its memory is the same."""
    params, optimizer = seasoned(row, **mode)
    first, second = stream(params, profile(2))
    step_with(optimizer, params, first)
    params[0].grad = None
    params[0].data = params[0].data.view(-1)
    params[0].grad = second[0].view(-1)
    with pytest.raises(ValueError, match="when a parameter is resized"):
        optimizer.step()


def test_copies_have_nothing_of_it(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    step_with(optimizer, params, stream(params, profile(1))[0])
    assert works(optimizer)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert "_kept" not in vars(other)


def test_state_made_in_inference_mode() -> None:
    """Its tensors have no versions."""
    params = [param.detach() for param in make_params()]
    with torch.inference_mode():
        optimizer = SALAdam(params)
        for index, now in enumerate(stream(params, profile(16))):
            if index == 8:
                optimizer.consolidate()
            step_with(optimizer, params, now)
    assert not works(optimizer)
    assert optimizer.stability(params[0]).max() > 0
