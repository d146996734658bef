"""What a consolidation does, by hand; observing; what diagnostics report."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

import sal_optim
from sal_optim.protection.clock import INTERVAL, LEAST
from sal_optim.protection.consolidation import ANCHOR_MEMORY, REST, WINDOWS, anchor_memory
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
from tests.testing.rows import KINDS, Row

Mode = dict[str, Any]
DIAGONAL: Mode = {"importance": "diagonal", "consolidate_every": None}


@pytest.mark.parametrize("retention", [1.0, 0.5])
def test_what_a_consolidation_does(row: Row, mode: Mode, retention: float) -> None:
    """Importance is a mean: of the two windows, the older counts ``retention`` times."""
    params = make_params()
    optimizer = row(params, retention=retention, **DIAGONAL, **mode)
    drive(optimizer, params, stream(params, profile(40)))
    assert optimizer.diagnostics()["drift"] == 0
    still = clone_params(params)
    kept = [optimizer.state[p]["pending"].clone() for p in params]
    moments = [optimizer.state[p][name].clone() for p in params for name in row.moments_of(p)]
    optimizer.consolidate()
    assert_equal(params, still, "consolidating moves nothing:")
    now = [optimizer.state[p][name] for p in params for name in row.moments_of(p)]
    assert_equal(moments, now, "moments are the base optimizer's:")
    first = [optimizer.state[p]["evidence"].clone() for p in params]
    assert_near(first, [pending / (40 / INTERVAL) for pending in kept])
    for param in params:
        state = optimizer.state[param]
        assert state["pending"].abs().max() == 0
        assert state["pending_steps"] == 0.0
        assert_equal([state["anchor"]], [param])
    # Mean 1 over all scalars.
    total = sum(float(value.sum()) for value in first) / sum(p.numel() for p in params)
    assert total == pytest.approx(1.0, rel=1e-5)
    assert optimizer.diagnostics()["drift"] == 0
    anchors = [optimizer.state[p]["anchor"].clone() for p in params]
    drive(optimizer, params, stream(params, profile(40), seed=2))
    states = [optimizer.state[p] for p in params]
    gathered = [state["pending"] / state["pending_steps"] for state in states]
    optimizer.consolidate()
    new, old = 1.0 / (1.0 + retention), retention / (1.0 + retention)
    for index, param in enumerate(params):
        state = optimizer.state[param]
        before, gain = old * first[index], new * gathered[index]
        assert_near([state["evidence"]], [before + gain], rtol=1e-5)
        # The segment is shorter than a window, and counts as more.
        share = gain / (anchor_memory(40, LEAST) * before + gain)
        moved = torch.lerp(anchors[index], param.detach(), share)
        assert_near([state["anchor"]], [moved], rtol=1e-4, atol=1e-5)


def ways(optimizer: Any, params: list[torch.nn.Parameter]) -> float:
    """How far the weights are from their anchors."""
    apart = [optimizer.state[p]["anchor"] - p.detach() for p in params]
    return float(torch.cat([way.flatten() for way in apart]).norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("late", [0, 20])
def test_where_the_first_data_is_declared_to_end_the_anchor_is_the_weights(
    kind: str, late: int
) -> None:
    """Along what its last window did not show, too, and where the clock has just consolidated."""
    params = make_params()
    optimizer = sal_optim.SALAdam(params, lr=0.01, importance=kind, consolidate_every=LEAST)
    for seed in (1, 2, 3):
        drive(optimizer, params, stream(params, profile(LEAST), seed=seed))
    drive(optimizer, params, stream(params, profile(late + 1), seed=4))
    assert ways(optimizer, params) > 0.1
    optimizer.consolidate()
    assert_equal([optimizer.state[p]["anchor"] for p in params], params)


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_next_data_the_anchor_keeps_what_was_before(kind: str) -> None:
    """By the share of importance that is of it; an end that is declared twice is one."""
    params = make_params()
    optimizer = sal_optim.SALAdam(params, lr=0.01, importance=kind, consolidate_every=LEAST)
    drive(optimizer, params, stream(params, profile(2 * LEAST + 1), seed=1))
    optimizer.consolidate()
    first = clone_params(params)
    drive(optimizer, params, stream(params, profile(2 * LEAST + 1), seed=2))
    before = ways(optimizer, params)
    optimizer.consolidate()
    after = ways(optimizer, params)
    apart = torch.cat([(p.detach() - q).flatten() for p, q in zip(params, first, strict=True)])
    assert 0.0 < after < 0.5 * before < float(apart.norm())
    optimizer.consolidate()
    assert ways(optimizer, params) == after


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_long_segment_the_anchor_is_where_the_weights_came_to_rest(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a short one what is older draws it back."""
    assert anchor_memory(REST) == anchor_memory(REST, REST / WINDOWS) == ANCHOR_MEMORY
    assert anchor_memory(4 * REST) == pytest.approx(ANCHOR_MEMORY / 16)
    # A segment that is shorter than a window counts as some windows all the same.
    assert anchor_memory(REST / 4, REST) == ANCHOR_MEMORY / (4 * WINDOWS)
    drifts = []
    for rest in (REST, 1.0):
        monkeypatch.setattr("sal_optim.protection.consolidation.REST", rest)
        params = make_params()
        optimizer = sal_optim.SALSGD(
            params, lr=0.01, importance=kind, consolidate_every=None, pull=0.1
        )
        for seed in (1, 2):
            drive(optimizer, params, stream(params, profile(2 * LEAST), seed=seed))
            optimizer.consolidate()
        drifts.append(ways(optimizer, params))
    assert drifts[1] < 0.1 * drifts[0]


@pytest.mark.parametrize("kind", KINDS)
def test_importance_stays_in_one_unit(class_row: Row, kind: str) -> None:
    """However many consolidations: its mean over all scalars is 1."""
    params = make_params()
    optimizer = class_row(params, importance=kind, consolidate_every=20)
    for start in range(5):
        drive(optimizer, params, stream(params, profile(100), seed=start))
        omega = torch.cat([optimizer.controller.importance(p)[0].flatten() for p in params])
        assert float(omega.mean()) == pytest.approx(1.0, rel=1e-3)
    assert consolidations(optimizer) == 25


# ---------------------------------------------------------------- consolidation by hand


def test_consolidate_before_any_step(row: Row, mode: Mode) -> None:
    params, twin = make_params(), make_params()
    optimizer, other = row(params, **DIAGONAL, **mode), row(twin, **DIAGONAL, **mode)
    optimizer.consolidate()
    optimizer.consolidate()
    grads = stream(params, profile(80, (60,)))
    assert drive(optimizer, params, grads) == drive(other, twin, grads) == [61]
    assert_equal(params, twin)


def test_consolidate_twice_in_a_row(row: Row, mode: Mode) -> None:
    options = {**DIAGONAL, **mode}
    (params, once), (twin, twice) = seasoned(row, **options), seasoned(row, **options)
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
    assert all(not optimizer.state.get(param) for param in params), "the base has made no step"
    assert all(optimizer.controller.state_of(p)["pending_steps"] == 10.0 for p in params)
    optimizer.consolidate()
    optimizer.consolidate()
    assert consolidations(optimizer) == 1
    assert optimizer.diagnostics()["mean_gate"] < 1
    twin = clone_params(params)
    free = row(twin, protection=0.0, **{**mode, "weight_decay": 0.0})
    optimizer.param_groups[0]["weight_decay"] = 0.0
    for now in stream(params, profile(80)):
        step_with(optimizer, params, now)
        step_with(free, twin, now)
    omega = [optimizer.stability(p) for p in params]
    moved, unbound = (
        sum(
            float((w * (p - q).detach() ** 2).sum())
            for w, p, q in zip(omega, ps, still, strict=True)
        )
        for ps in (params, twin)
    )
    assert 0 < moved < unbound


def test_what_was_observed_is_in_a_checkpoint(class_row: Row) -> None:
    """Before the base's first step too, and the base's own state is then made by that step."""
    params = make_params()
    optimizer = class_row(params)
    with optimizer.observe():
        drive(optimizer, params, stream(params, profile(10)))
    optimizer.consolidate()
    new = clone_params(params)
    other = class_row(new)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for now in stream(params, profile(10), seed=2):
        step_with(optimizer, params, now)
        step_with(other, new, now)
    assert_equal(params, new)
    for param, twin in zip(params, new, strict=True):
        assert_equal([optimizer.stability(param)], [other.stability(twin)])


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
    "changes",
    "descent",
    "published_stability",
}


def test_diagnostics(row: Row, mode: Mode) -> None:
    params = make_params()
    optimizer = row(params, **DIAGONAL, **mode)
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
    assert (seen["consolidations"], seen["changes"]) == (1, 1)
    assert seen["drift"] > 0
    assert first["published_stability"] == 1.0
    assert 0 < seen["published_stability"] < 1
    optimizer.consolidate()
    told = optimizer.diagnostics()
    assert (told["consolidations"], told["changes"]) == (2, 1)


def test_stability_of_a_stranger(row: Row, mode: Mode) -> None:
    _, optimizer = seasoned(row, **mode)
    with pytest.raises(ValueError, match="param"):
        optimizer.stability(torch.zeros(3))
