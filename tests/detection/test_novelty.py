"""What speaks against the novelty: a loss that is told and does not rise, and a steep descent."""

from __future__ import annotations

import pytest
import torch

from sal_optim.detection import descent, novelty, told
from sal_optim.detection.change_detector import DetectorState, new_detector

SHARE, NOISE = 0.06, 0.02
SETTINGS = {"tau0": 1.0, "alpha": 4.0, "stats_beta": 0.99}


def hear(state: DetectorState, share: float) -> bool:
    return novelty.hear(state, share**0.5, 1.0)


def known() -> DetectorState:
    """After 60 steps on data that is known, their losses told."""
    state = {**new_detector(), "consolidations": 3.0}
    torch.manual_seed(0)
    for step, share in enumerate(SHARE + NOISE * torch.randn(60).clamp(-2.0, 2.0)):
        told.hear(state, "loss", 1.0 + 0.1 * (step % 3), SETTINGS)
        assert not hear(state, float(share))
    return state


@pytest.mark.parametrize(("loss", "believed"), [(0.9, False), (3.0, True), (None, True)])
def test_a_loss_that_does_not_rise_speaks_against_it(loss: float | None, believed: bool) -> None:
    """As of a network that learns something at last; a loss that is told no more says nothing."""
    state, found = known(), []
    for _ in range(4):
        if loss is not None:
            told.hear(state, "loss", loss, SETTINGS)
        found.append(hear(state, 4.0 * SHARE))
    assert any(found) == believed


@pytest.mark.parametrize(("slope", "believed"), [(-0.2, False), (0.0, True), (-0.05, True)])
def test_a_slope_that_is_steep_in_each_step_speaks_against_it(slope: float, believed: bool) -> None:
    """Nothing is told: what a network learns at last it learns along the way that it goes."""
    state = {**new_detector(), "consolidations": 3.0}
    torch.manual_seed(0)
    for share in SHARE + NOISE * torch.randn(60).clamp(-2.0, 2.0):
        assert not hear(state, float(share))
    found = []
    for _ in range(4):
        descent.hear(state, slope, 1.0, 1.0)
        found.append(hear(state, 4.0 * SHARE))
    assert any(found) == believed
