"""Whether a few projections tell how alike gradients are."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from sal_optim.detection import coherence
from sal_optim.detection.change_detector import PROJECTIONS, new_detector

SHAPES = [(30, 20), (20,), (30, 20), (5, 4, 3, 3), ()]


def gradients(part: float, steps: int) -> list[list[Tensor]]:
    """Of which a part of the energy lasts."""
    lasting = [torch.randn(shape) for shape in SHAPES]
    return [
        [part**0.5 * g + (1.0 - part) ** 0.5 * torch.randn_like(g) for g in lasting]
        for _ in range(steps)
    ]


def heard(steps: list[list[Tensor]]) -> dict[str, float]:
    state = new_detector()
    for grads in steps:
        found = coherence.projected(grads, grads, [None] * len(grads))
        coherence.hear(state, found.tolist())
    return state


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 1.0])
def test_coherence_is_the_share_of_energy_that_lasts(part: float) -> None:
    torch.manual_seed(0)
    found = [coherence.close_window(heard(gradients(part, 15))) for _ in range(40)]
    assert statistics.fmean(found) == pytest.approx(part, abs=0.07)
    assert part < 1.0 or min(found) == pytest.approx(1.0, abs=1e-5)


def test_projections_are_as_large_as_gradients() -> None:
    torch.manual_seed(0)
    steps = gradients(0.0, 200)
    size = statistics.fmean(sum(float(g.square().sum()) for g in grads) for grads in steps)
    state = heard(steps)
    energy = state["energy"] / state["projected"] / len(PROJECTIONS)
    assert energy == pytest.approx(size, rel=0.15)


def test_tensors_of_one_shape_do_not_cancel() -> None:
    one = torch.randn(30, 20)
    assert coherence.projected([one, -one], [one, -one], [None, None]).abs().max() > 1.0


def test_a_window_ends_and_the_next_begins() -> None:
    state = heard(gradients(1.0, 5))
    assert coherence.close_window(state) == pytest.approx(1.0, abs=1e-5)
    assert state["coherence"] == pytest.approx(1.0, abs=1e-5)
    assert coherence.close_window(state) == 0.0
    assert coherence.close_window(heard(gradients(1.0, 1))) == 0.0, "one gradient tells nothing"


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, 1e200])
def test_what_is_no_gradient_is_not_heard(bad: float) -> None:
    state = heard(gradients(0.5, 4))
    before = dict(state)
    coherence.hear(state, [bad] * len(PROJECTIONS))
    assert state == before


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_an_empty_tensor_has_none(shape: tuple[int, ...]) -> None:
    empty = torch.zeros(shape)
    assert coherence.projected([empty], [empty], [None]).tolist() == [0.0] * len(PROJECTIONS)
