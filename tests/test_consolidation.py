"""What a consolidation does, by hand or by the clock; observing; what diagnostics report."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from tests.testing.drive import (
    assert_equal,
    assert_near,
    clone_params,
    consolidations,
    drive,
    make_params,
    profile,
    seasoned,
    step_with,
    stream,
)
from tests.testing.rows import GRANULARITIES, Row

Mode = dict[str, Any]


@pytest.mark.parametrize("retention", [1.0, 0.5])
def test_what_a_consolidation_does(row: Row, mode: Mode, retention: float) -> None:
    params = make_params()
    optimizer = row(params, retention=retention, **mode)
    drive(optimizer, params, stream(params, profile(40)))
    assert optimizer.diagnostics()["drift"] == 0
    still = clone_params(params)
    kept = [optimizer.state[p]["pending"].clone() for p in params]
    optimizer.consolidate()
    assert_equal(params, still, "consolidating moves nothing:")
    first = [optimizer.state[p]["evidence"].clone() for p in params]
    for param, before, now in zip(params, kept, first, strict=True):
        state = optimizer.state[param]
        assert before.max() > 0
        torch.testing.assert_close(now / now.sum(), before / before.sum())
        assert state["pending"].abs().max() == 0
        assert_near([state["anchor"]], [param])
        for name in row.moments:
            if name in ("exp_avg", "momentum_buffer"):
                assert state[name].abs().max() == 0
            else:
                assert state[name].abs().max() > 0
    # Mean 1 a step over all scalars, weighted by the decline of the norm, here about 1.
    total = sum(float(value.sum()) for value in first) / sum(p.numel() for p in params)
    assert 0.99 <= total < 1.5
    assert optimizer.diagnostics()["drift"] < 1e-6
    drive(optimizer, params, stream(params, profile(40), seed=2))
    gathered = [optimizer.state[p]["pending"].clone() for p in params]
    optimizer.consolidate()
    for param, old, new in zip(params, first, gathered, strict=True):
        added = optimizer.state[param]["evidence"] - retention * old
        assert torch.allclose(added / added.sum(), new / new.sum(), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- consolidation by hand


@pytest.mark.parametrize("every", [1, 7, 40])
def test_consolidate_every(row: Row, mode: Mode, every: int) -> None:
    params = make_params()
    optimizer = row(params, consolidate_every=every, **mode)
    found = drive(optimizer, params, stream(params, profile(100)))
    assert found == list(range(every, 100, every))
    assert optimizer.stability(params[0]).max() > 0


def test_consolidate_every_begins_anew_at_a_change(row: Row, mode: Mode) -> None:
    params = make_params()
    optimizer = row(params, consolidate_every=80, **mode)
    found = drive(optimizer, params, stream(params, profile(200, (60,))))
    assert found[0] == 61
    assert found[1] == pytest.approx(141, abs=2)
    assert len(found) == 2


def test_consolidate_before_any_step(row: Row, mode: Mode) -> None:
    params, twin = make_params(), make_params()
    optimizer, other = row(params, **mode), row(twin, **mode)
    optimizer.consolidate()
    optimizer.consolidate()
    grads = stream(params, profile(80, (60,)))
    assert drive(optimizer, params, grads) == drive(other, twin, grads) == [61]
    assert_equal(params, twin)


def test_consolidate_twice_in_a_row(row: Row, mode: Mode) -> None:
    (params, once), (twin, twice) = seasoned(row, **mode), seasoned(row, **mode)
    for optimizer in (once, twice):
        optimizer.consolidate()
    kept = [twice.state[param]["evidence"].clone() for param in twin]
    twice.consolidate()
    assert_equal(kept, [twice.state[param]["evidence"] for param in twin])
    assert max(float(value.max()) for value in kept) > 0
    for now in stream(params, profile(20)):
        step_with(once, params, now)
        step_with(twice, twin, now)
    assert_equal(params, twin)


def test_observe_gathers_and_moves_nothing(row: Row, mode: Mode) -> None:
    params = make_params()
    still = clone_params(params)
    optimizer = row(params, **mode)
    with optimizer.observe():
        assert drive(optimizer, params, stream(params, profile(10))) == []
    assert_equal(params, still)
    for param in params:
        state = optimizer.state[param]
        assert state["pending"].max() > 0
        assert float(state["step"]) == 0
        for name in row.moments:
            assert state[name].abs().max() == 0
    optimizer.consolidate()
    optimizer.consolidate()
    assert consolidations(optimizer) == 1
    assert optimizer.diagnostics()["mean_gate"] < 1
    free = row(clone_params(params), **{**mode, "weight_decay": 0.0})
    twin = free.param_groups[0]["params"]
    optimizer.param_groups[0]["weight_decay"] = 0.0
    for now in stream(params, profile(10)):
        step_with(optimizer, params, now)
        step_with(free, twin, now)
    moved, unbound = (
        sum(float((p - q).detach().abs().sum()) for p, q in zip(ps, still, strict=True))
        for ps in (params, twin)
    )
    assert 0 < moved < unbound


def test_observe_ends_with_its_block_even_on_an_error(row: Row, mode: Mode) -> None:
    params = make_params()
    optimizer = row(params, **mode)
    with pytest.raises(ZeroDivisionError), optimizer.observe():
        raise ZeroDivisionError
    still = clone_params(params)
    step_with(optimizer, params, stream(params, [1.0])[0])
    assert not torch.equal(params[0], still[0])


def test_observe_with_a_zero_learning_rate(row: Row, mode: Mode) -> None:
    params = make_params()
    optimizer = row(params, **{**mode, "lr": 0.0})
    with optimizer.observe():
        drive(optimizer, params, stream(params, profile(5)))
    optimizer.consolidate()
    assert optimizer.stability(params[0]).max() > 0


# ---------------------------------------------------------------- diagnostics

KEYS = {
    "protected",
    "neutral",
    "volatile",
    "threshold",
    "surprise",
    "consolidations",
    "mean_gate",
    "innovation_cost",
    "drift",
}


def test_diagnostics(row: Row, mode: Mode) -> None:
    params = make_params()
    optimizer = row(params, **mode)
    early = copy.deepcopy(optimizer.state_dict())
    first = optimizer.diagnostics()
    assert optimizer.state_dict() == early, "looking changes nothing"
    assert set(first) == KEYS
    assert (first["volatile"], first["mean_gate"], first["consolidations"]) == (1.0, 1.0, 0.0)
    drive(optimizer, params, stream(params, profile(90, (60,))))
    optimizer.param_groups[0]["protection"] = 1.0  # in the middle of the range
    seen = optimizer.diagnostics()
    for report in (first, seen):
        assert all(type(value) is float and math.isfinite(value) for value in report.values())
        assert report["protected"] + report["neutral"] + report["volatile"] == pytest.approx(1)
    s = torch.cat([optimizer.stability(param).flatten() for param in params])
    assert seen["protected"] == pytest.approx(float((s > 2 / 3).float().mean()))
    assert seen["volatile"] == pytest.approx(float((s < 1 / 3).float().mean()))
    assert seen["mean_gate"] == pytest.approx(float((1 - s).mean()), rel=1e-5)
    assert seen["innovation_cost"] == pytest.approx(float(s.square().mean().sqrt()), rel=1e-5)
    assert first["innovation_cost"] == 0.0
    assert 0 < seen["protected"] < 1
    assert seen["consolidations"] == 1
    assert seen["drift"] > 0
    optimizer.consolidate()
    assert optimizer.diagnostics()["consolidations"] == 2


def test_stability_of_a_stranger(row: Row, mode: Mode) -> None:
    _, optimizer = seasoned(row, **mode)
    with pytest.raises(ValueError, match="param"):
        optimizer.stability(torch.zeros(3))


# ---------------------------------------------------------------- room to go on learning


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_long_stream_leaves_room(row: Row, mode: Mode, granularity: str) -> None:
    """However many regimes: the mean gate stays, and what is newest is held most."""
    params = make_params()
    options = {"granularity": granularity, "protection": 3.0, **mode}
    optimizer = row(params, consolidate_every=20, plasticity=0.5, **options)
    free = row(others := make_params(), consolidate_every=20, plasticity=0.0, **options)
    gates = []
    for now in stream(params, profile(400)):
        step_with(optimizer, params, now)
        step_with(free, others, now)
        gates.append(optimizer.diagnostics()["mean_gate"])
    assert consolidations(optimizer) == 19
    assert min(gates) == pytest.approx(0.5, abs=1e-3)
    assert gates[-1] == pytest.approx(0.5, abs=1e-3)
    assert optimizer.param_groups[0]["threshold"]["room"] < 1.0
    assert free.diagnostics()["mean_gate"] < 0.25
    assert free.param_groups[0]["threshold"]["room"] == 1.0


def test_all_evidence_is_scaled_alike(row: Row, mode: Mode) -> None:
    found = []
    for plasticity in (0.0, 0.9):
        params = make_params()
        optimizer = row(params, plasticity=plasticity, protection=3.0, **mode)
        drive(optimizer, params, stream(params, profile(40)))
        optimizer.consolidate()
        states = [optimizer.state[p] for p in params]
        found.append([*(s["evidence"].clone() for s in states), states[0]["evidence_weight"]])
    room = optimizer.param_groups[0]["threshold"]["room"]
    assert 0.0 < room < 1.0
    for whole, scaled in zip(*found, strict=True):
        torch.testing.assert_close(torch.as_tensor(whole) * room, torch.as_tensor(scaled))


def test_what_is_unprotected_leaves_no_room(row: Row, mode: Mode) -> None:
    """Groups without protection, and parameters without evidence, do not count."""
    params = make_params()
    groups = [{"params": params[:1]}, {"params": params[1:], "protection": 0.0}]
    optimizer = row(groups, plasticity=0.8, protection=100.0, **mode)
    drive(optimizer, params, stream(params, profile(40)))
    optimizer.consolidate()
    gate = 1.0 - float(optimizer.stability(params[0]).mean())
    assert gate == pytest.approx(0.8, abs=1e-3)
