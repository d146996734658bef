"""What the novelty takes for other data, and what speaks against it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sal_optim.detection import novelty, told
from sal_optim.detection.change_detector import (
    GRAD_NORM,
    DetectorState,
    new_detector,
    record,
)
from tests.testing.drive import drive, make_params
from tests.testing.rows import Row

SHARE, NOISE = 0.06, 0.02


def known(seed: int = 0) -> DetectorState:
    """After 60 steps on data that is known."""
    state = {**new_detector(), "consolidations": 3.0}
    torch.manual_seed(seed)
    for share in SHARE + NOISE * torch.randn(60).clamp(-2.0, 2.0):
        record(state, 1.0, beta=0.99, signal=GRAD_NORM)
        assert not hear(state, float(share))
    return state


def hear(state: DetectorState, share: float) -> bool:
    return novelty.hear(state, share**0.5, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_three_steps_on_other_data_tell(seed: int) -> None:
    state = known(seed)
    found = [hear(state, 4.0 * SHARE) for _ in range(3)]
    assert found == [False, False, True]


def test_a_bad_batch_shown_twice_is_no_other_data() -> None:
    state = known()
    assert not any(hear(state, share) for share in (0.9, 0.9, *[SHARE] * 20))


def test_after_a_change_of_the_norm_less_of_it_will_do() -> None:
    more = 1.6 * SHARE
    assert not any(hear(known(), more) for _ in range(12))
    state = {**known(), "watch": novelty.WATCH}
    assert any(hear(state, more) for _ in range(12))
    state = {**known(), "watch": novelty.WATCH}
    assert not any(hear(state, SHARE) for _ in range(12))
    assert state["watch"] == 0.0
    assert not any(hear(state, more) for _ in range(12)), "no longer"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"steps": 29.0}, False),
        ({"steps": 5.0, "watch": 3.0}, True),
        ({"firm": 1.0}, False),
        ({"consolidations": 1.0}, False),
    ],
)
def test_when_it_is_measured(changed: dict[str, float], expected: bool) -> None:
    assert novelty.listens({**known(), **changed}) == expected


@pytest.mark.parametrize(("factor", "believed"), [(0.9, False), (3.0, True), (None, True)])
def test_a_loss_that_does_not_rise_speaks_against_it(factor: float | None, believed: bool) -> None:
    """As of a network that learns something at last; a loss that is told no more says nothing."""
    state = known()
    settings = {"tau0": 1.0, "alpha": 4.0, "stats_beta": 0.99}
    for step in range(60):
        told.hear(state, "loss", 1.0 + 0.1 * (step % 3), settings)
    state["calm"] = 0.0  # each step's is for that step
    found = []
    for _ in range(3):
        if factor is not None:
            told.hear(state, "loss", factor, settings)
        found.append(hear(state, 4.0 * SHARE))
    assert found[-1] == believed


def gradients(count: int, scale: float = 1.0) -> list[Tensor | None]:
    return [scale * torch.randn(20, 10) for _ in range(count)]


@pytest.mark.parametrize("leaves", [False, True])
def test_a_layer_that_is_unfrozen_is_no_change(class_row: Row, leaves: bool) -> None:
    """Where another leaves, as one head for the next, it may be one."""
    torch.manual_seed(0)
    params = make_params([(20, 10)] * 3)
    optimizer = class_row(params, consolidate_every=40)
    drive(optimizer, params, [[None, *gradients(2)] for _ in range(100)])
    rest = [[*gradients(1, 4.0), *gradients(1), *gradients(0 if leaves else 1)] for _ in range(9)]
    rest = [[*grads, None][:3] for grads in rest]
    drive(optimizer, params, rest)
    assert optimizer.diagnostics()["changes"] == float(leaves)
