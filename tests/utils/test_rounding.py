"""Importance in bfloat16, and over ten thousands of steps: sums neither stop nor overflow."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sal_optim import SALAdam
from sal_optim.protection.clock import INTERVAL
from sal_optim.protection.controller import PENDING_HORIZON
from sal_optim.utils.rounding import add, dither
from tests.testing.drive import (
    assert_same_state,
    clone_params,
    consolidations,
    drive,
    make_params,
    profile,
    seeded,
    snapshot,
    step_with,
    stream,
)
from tests.testing.rows import KINDS, Row


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_a_sum_in_bfloat16_goes_on_growing(size: float) -> None:
    generator = seeded(2)
    values = size * torch.randn(3000, 64, generator=generator).square()
    total, nearest = torch.zeros(64, dtype=torch.bfloat16), torch.zeros(64, dtype=torch.bfloat16)
    for count, value in enumerate(values):
        add(total, value, dither(count))
        nearest.add_(value.bfloat16())
    exact = values.sum(0)
    ratio = total.float() / exact
    assert float(nearest.float().div(exact).max()) < 0.7, "the fault that this is for"
    assert 0.97 < float(ratio.mean()) < 1.03
    assert 0.75 < float(ratio.min()) <= float(ratio.max()) < 1.25


def test_a_constant_far_below_the_last_place_is_counted_exactly() -> None:
    total = torch.full((3,), 256.0, dtype=torch.bfloat16)
    for count in range(2000):
        add(total, torch.full((3,), 0.01), dither(count))
    # 20 in all; one place of bfloat16 is 2 here.
    assert all(abs(value - 276.0) <= 2.0 for value in total.tolist())


def test_what_is_kept_in_bfloat16_decays() -> None:
    """At a retention of 0.999 rounding to the nearest keeps everything for ever."""
    total = torch.full((4,), 100.0, dtype=torch.bfloat16)
    for count in range(1000):
        add(total, torch.zeros(4), dither(count), keep=0.999)
    assert all(abs(value - 36.8) < 4 for value in total.tolist()), total


def test_wider_sums_are_plain_sums() -> None:
    for dtype in (torch.float32, torch.float64):
        total, other = torch.full((5,), 0.1, dtype=dtype), torch.full((5,), 0.1, dtype=dtype)
        value = torch.randn(5, generator=seeded(1), dtype=dtype)
        add(total, value, 0.7, keep=0.5, weight=3.0)
        assert torch.equal(total, other.mul_(0.5).add_(value, alpha=3.0))


@pytest.mark.parametrize("kind", KINDS)
def test_importance_in_bfloat16_is_that_of_float32(kind: str) -> None:
    """Over 1,500 steps of one window, five times those after which plain sums would stop."""
    params, twins = make_params([(8, 12), (40,)]), make_params([(8, 12), (40,)])
    kwargs: dict[str, Any] = {"importance": kind, "consolidate_every": None}
    small, full = SALAdam(params, state_dtype="bfloat16", **kwargs), SALAdam(twins, **kwargs)
    for _ in range(15):
        for now in stream(params, profile(100)):
            step_with(small, params, now)
            step_with(full, twins, now)
    small.consolidate()
    full.consolidate()
    assert consolidations(small) == consolidations(full) == 1
    ratios = []
    for param, twin in zip(params, twins, strict=True):
        kept = [v for v in small.state[param].values() if isinstance(v, torch.Tensor) and v.dim()]
        # A matrix's factors are kept in float32; its anchor is not.
        factors = kind == "kronecker" and param.dim() > 1
        assert sum(v.dtype is torch.bfloat16 for v in kept) >= (1 if factors else 3)
        ours, theirs = (o.controller.importance(p)[0] for o, p in ((small, param), (full, twin)))
        ratios.append((ours.float() / theirs).flatten())
    ratio = torch.cat(ratios)
    assert 0.95 < float(ratio.mean()) < 1.05
    assert 0.7 < float(ratio.min()) <= float(ratio.max()) < 1.3


@pytest.mark.parametrize("mode", [{"foreach": False}, {"foreach": True}], ids=["loop", "foreach"])
def test_rounding_is_the_same_after_a_resume(class_row: Row, mode: dict[str, Any]) -> None:
    params = make_params()
    optimizer = class_row(params, state_dtype="bfloat16", consolidate_every=None, **mode)
    grads = stream(params, profile(90, (60,)))
    assert len(drive(optimizer, params, grads[:75])) == 1
    twins = clone_params(params)
    resumed = class_row(twins)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    drive(optimizer, params, grads[75:])
    drive(resumed, twins, grads[75:])
    assert_same_state(snapshot(optimizer), snapshot(resumed))


# --------------------------------------------------------------------------- the pending horizon


def aged(optimizer: SALAdam, steps: float) -> None:
    """As after so many steps like those before."""
    for state in optimizer.state.values():
        state["pending"].mul_(steps / state["pending_steps"])
        state["pending_steps"] = steps
    optimizer.param_groups[0]["threshold"]["steps"] = steps


def test_the_pending_horizon() -> None:
    """At 65,536 steps sum and count are halved: their mean stays, and goes on moving."""
    params = make_params()
    optimizer = SALAdam(params, importance="diagonal", consolidate_every=None)
    grads = stream(params, profile(160))
    drive(optimizer, params, grads[:40])
    aged(optimizer, PENDING_HORIZON - 5)
    means = [optimizer.state[p]["pending"] / (PENDING_HORIZON - 5) for p in params]
    counts = [PENDING_HORIZON - 5]
    for now in grads[40:]:
        step_with(optimizer, params, now)
        steps = optimizer.state[params[0]]["pending_steps"]
        if steps not in counts[-1:]:
            counts.append(steps)
    gathered = len(grads[40:]) // INTERVAL
    assert counts == [
        PENDING_HORIZON - 5 + n if n < 5 else 32768 + n - 5 for n in range(gathered + 1)
    ]
    for param, mean in zip(params, means, strict=True):
        pending = optimizer.state[param]["pending"]
        torch.testing.assert_close(pending / steps, mean, rtol=0.02, atol=0.02)
    optimizer.consolidate()
    # One window, however long it was: a mean of 1 over all scalars.
    total = sum(float(optimizer.state[p]["evidence"].sum()) for p in params)
    assert 0.9 < total / sum(p.numel() for p in params) < 1.6


def test_consolidate_every_more_steps_than_the_horizon() -> None:
    params = make_params()
    optimizer = SALAdam(params, importance="diagonal", consolidate_every=70_000)
    grads = stream(params, profile(50))
    drive(optimizer, params, grads[:40])
    aged(optimizer, PENDING_HORIZON - 1)
    optimizer.param_groups[0]["threshold"]["since"] = 69_998.0
    assert drive(optimizer, params, grads[40:]) == [1]
