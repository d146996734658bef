"""On an accelerator a step does not wait for its norm: it is judged in the next one.

Here a CPU is told to do the same, so that it can be compared with a CPU that waits.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim import SALOptimizer
from sal_optim.consolidation import INTERVAL
from tests.test_waits import Reads
from tests.testing.drive import (
    assert_near,
    clone_params,
    consolidations,
    drive,
    make_params,
    profile,
    reload,
    snapshot,
    step_with,
    stream,
)
from tests.testing.rows import CLASSES, ROWS, Row

CHANGE = 60


@pytest.fixture
def _ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SALOptimizer, "_looks_ahead", lambda self, work: not self._observing)


def kept(optimizer: SALOptimizer, name: str) -> list[Tensor]:
    return [state[name].clone() for state in optimizer.state.values() if name in state]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_change_is_found_one_step_later_and_all_else_is_the_same(
    row: Row, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params()
    twins = clone_params(params)
    scales = profile(CHANGE + 40, (CHANGE,))
    scales[40], scales[44] = 1e3, 0.0  # an outlier, and a gradient of zero
    grads = stream(params, scales)
    waits = row(params, compile=compiled)
    found, before = [], {}
    for step, now in enumerate(grads):
        count = consolidations(waits)
        step_with(waits, params, now)
        if consolidations(waits) != count:
            found.append(step)
        if step == CHANGE - 1:
            before = {name: kept(waits, name) for name in ("pending", *row.moments)}
            weights = clone_params(params)
    monkeypatch.setattr(SALOptimizer, "_looks_ahead", lambda self, work: True)
    ahead = row(twins, compile=compiled)
    later = []
    for step, now in enumerate(grads):
        count = consolidations(ahead)
        step_with(ahead, twins, now)
        if consolidations(ahead) != count:
            later.append(step)
        if step == CHANGE - 1:
            for name, values in before.items():
                assert_near(kept(ahead, name), values, rtol=1e-5, atol=1e-7)
            assert_near(twins, weights, rtol=1e-5, atol=1e-7)
    assert len(found) == 1
    assert later == [found[0] + 1]
    evidence = zip(kept(ahead, "evidence"), kept(waits, "evidence"), strict=True)
    for mine, theirs in evidence:
        # The same steps were gathered; the mean norm at which they are weighed knows one more.
        assert_near([mine / mine.mean()], [theirs / theirs.mean()], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("_ahead")
@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_nothing_of_a_step_is_read_in_it(row: Row) -> None:
    """What is read is the norm of the step before, which has arrived by then."""
    params = make_params([(3, 4)] * 5)
    optimizer = row(params)
    for step, now in enumerate(stream(params, profile(80, (CHANGE,)))):
        host, count = optimizer._underway, consolidations(optimizer)
        assert (host is not None) == (step > 0)
        read: list[int] = []

        class Which(Reads):
            def _is_step(self, tensor: Tensor, read: list[int] = read) -> bool:
                read.append(tensor.data_ptr())
                return super()._is_step(tensor)

        steps = {state["step"].data_ptr() for state in optimizer.state.values()}
        with Which(optimizer):
            step_with(optimizer, params, now)
        steps |= {state["step"].data_ptr() for state in optimizer.state.values()}
        if consolidations(optimizer) == count:
            others = [place for place in read if place not in steps]
            assert others == ([] if host is None else [host.data_ptr()])
    assert consolidations(optimizer) == 1


@pytest.mark.usefixtures("_ahead")
@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_a_resumed_run_goes_on_exactly(row: Row) -> None:
    """Saved between a norm and its judgement, in the middle of a change, in three ways."""
    grads = stream(make_params(), profile(CHANGE + 30, (CHANGE,)))
    whole = make_params()
    straight = row(whole)
    drive(straight, whole, grads)
    assert consolidations(straight) == 1
    for cut in (30, CHANGE + 1, CHANGE + 2, CHANGE + 3):
        for save in ("state_dict", "pickle", "deepcopy"):
            params = make_params()
            optimizer = row(params)
            drive(optimizer, params, grads[:cut])
            if save == "state_dict":
                params = clone_params(params)
                resumed = row(params)
                resumed.load_state_dict(reload(optimizer.state_dict()))
            elif save == "pickle":
                resumed = pickle.loads(pickle.dumps(optimizer))
            else:
                resumed = copy.deepcopy(optimizer)
            if save != "state_dict":
                params = resumed.param_groups[0]["params"]
            drive(resumed, params, grads[cut:])
            mine, theirs = snapshot(resumed), snapshot(straight)
            for name, value in theirs.items():
                same: Any = torch.equal if isinstance(value, Tensor) else lambda a, b: a == b
                assert same(mine[name], value), (cut, save, name)


@pytest.mark.usefixtures("_ahead")
def test_what_a_user_asks_knows_the_last_step() -> None:
    params = make_params()
    optimizer = ROWS[0](params)
    drive(optimizer, params, stream(params, profile(INTERVAL + 1)))
    optimizer.consolidate()
    assert optimizer._threshold()["unheard"] == 0.0
    assert optimizer._underway is None
    assert consolidations(optimizer) == 1
    assert float(optimizer.stability(params[0]).max()) > 0
    drive(optimizer, params, stream(params, profile(3)))
    assert all(value == value for value in optimizer.diagnostics().values())
    assert optimizer._threshold()["unheard"] > 0.0
    with optimizer.observe():
        drive(optimizer, params, stream(params, profile(1)))
    assert optimizer._threshold()["unheard"] == 0.0
    assert optimizer._threshold()["steps"] == 4.0


@pytest.mark.usefixtures("_ahead")
def test_a_consolidation_that_is_due_by_steps_comes_too() -> None:
    params = make_params()
    optimizer = ROWS[0](params, consolidate_every=20)
    found = drive(optimizer, params, stream(params, profile(70)))
    assert found == [21, 41, 61]
