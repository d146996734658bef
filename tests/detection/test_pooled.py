"""Norms pooled over some steps: a change that noise hides from single norms."""

from __future__ import annotations

from typing import Any

import pytest

from sal_optim.detection import pooled
from sal_optim.detection.change_detector import begin_segment, limit, new_detector, observe
from tests.detection.test_change_detector import SETTINGS, found_in, noise
from tests.testing.drive import consolidations, drive, make_params, stream
from tests.testing.rows import Row

STEPS, CHANGE = 600, 400


def pooled_in(norms: list[float]) -> list[int]:
    """The steps at which pools confirm a change, beside a detector of single norms."""
    state, found = new_detector(), []
    for index, norm in enumerate(norms):
        most = limit(state, SETTINGS)
        if observe(state, norm, SETTINGS).change:
            begin_segment(state)
        elif pooled.hear(state, min(norm, most), SETTINGS):
            found.append(index)
            begin_segment(state)
    return found


def risen(seed: int) -> list[float]:
    """Norms as of batches of ten, which are 2.5 times as large from one step on."""
    norms = noise(STEPS, seed, 0.55)
    return norms[:CHANGE] + [2.5 * norm for norm in norms[CHANGE:]]


def soon(found: list[list[int]]) -> int:
    """In how many series something was found within six pools."""
    last = CHANGE + 6 * pooled.POOL
    return sum(any(CHANGE <= step < last for step in steps) for steps in found)


def test_a_change_that_noise_hides_from_single_norms() -> None:
    alone = [found_in(risen(seed)) for seed in range(40)]
    together = [pooled_in(risen(seed)) for seed in range(40)]
    assert soon(alone) <= 5, "or the test shows nothing"
    assert soon(together) >= 30
    assert sum(step < CHANGE for found in together for step in found) <= 1


@pytest.mark.parametrize("kind", ["lognormal", "gaussian"])
@pytest.mark.parametrize("spread", [0.2, 0.55, 1.0])
def test_noise_is_no_change(kind: str, spread: float) -> None:
    found = [pooled_in(noise(2000, seed, spread, kind)) for seed in range(20)]
    assert sum(map(len, found)) <= 2


@pytest.mark.parametrize("at", [CHANGE, CHANGE + 7])
def test_no_one_or_two_bad_batches_make_a_pool_loud(at: int) -> None:
    """Also where they lie in two pools."""
    norms = noise(STEPS, 0, 0.2, "gaussian")
    norms[at] = 70.0
    assert pooled_in(norms) == []
    norms[at + 1] = 70.0
    assert pooled_in(norms) == []


def test_a_pool_that_is_underway_ends_with_its_segment() -> None:
    state = new_detector()
    for _ in range(5):
        pooled.hear(state, 3.0, SETTINGS)
    begin_segment(state)
    for _ in range(int(pooled.POOL)):
        pooled.hear(state, 1.0, SETTINGS)
    assert state["pooled_mean"] == 1.0


def test_a_step_consolidates_where_pools_tell_of_a_change(
    class_row: Row, mode: dict[str, Any]
) -> None:
    """No clock: what is consolidated, the pools have told."""
    params = make_params([(6, 4)])
    optimizer = class_row(params, consolidate_every=None, **mode)
    scales = risen(1)
    for grads, scale in zip(stream(params, [1.0] * STEPS), scales, strict=True):
        # Noise of the length alone: each gradient is as long as its scale.
        drive(optimizer, params, [[grad * (scale / float(grad.norm())) for grad in grads]])
    assert consolidations(optimizer) >= 1
    state = optimizer.param_groups[0]["threshold"]
    assert state["changes"] >= 1.0
    assert float(optimizer.stability(params[0]).max()) > 0.0
