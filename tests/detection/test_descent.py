"""Whether the slope along the way from the anchor tells a network that still learns."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from sal_optim.detection import descent
from sal_optim.detection.change_detector import new_detector

SHAPES = [(30, 20), (20,), (5, 4, 3, 3), ()]


def tensors() -> list[Tensor]:
    return [torch.randn(shape) for shape in SHAPES]


def heard(slopes: list[float], moved: float = 4.0, norm: float = 1.0) -> dict[str, float]:
    state = new_detector()
    for slope in slopes:
        descent.hear(state, slope, moved, norm)
    return state


def test_what_is_measured_is_the_inner_product_and_the_squared_length() -> None:
    grads, moved = tensors(), tensors()
    slope, square = descent.measured(grads, moved, [None] * len(SHAPES)).tolist()
    assert slope == pytest.approx(
        sum(float((g * m).sum()) for g, m in zip(grads, moved, strict=True)), rel=1e-5
    )
    assert square == pytest.approx(sum(float(m.square().sum()) for m in moved), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_two_bytes_are_summed_in_four(dtype: torch.dtype) -> None:
    ones = torch.full((70000,), 2.0, dtype=dtype)
    assert descent.measured([ones], [ones], [None]).tolist() == [280000.0, 280000.0]


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_an_empty_tensor_has_none(shape: tuple[int, ...]) -> None:
    assert descent.measured([torch.zeros(shape)], [torch.zeros(shape)], [None]).tolist() == [0, 0]


@pytest.mark.parametrize("below", [-1.0, 0.0, 0.5, 2.0])
def test_descent_is_the_mean_below_zero_in_standard_deviations(below: float) -> None:
    draw = random.Random(0)
    found = []
    for _ in range(200):
        state = heard([draw.gauss(-below, 1.0) for _ in range(30)])
        found.append(descent.descent(state) or 0.0)
    assert sum(found) / len(found) == pytest.approx(below, abs=0.2 * max(1.0, abs(below)))


@pytest.mark.parametrize("scale", [1e-40, 1e-3, 1e30])
def test_it_has_no_unit(scale: float) -> None:
    draw = random.Random(0)
    slopes = [draw.gauss(-1.0, 1.0) for _ in range(20)]
    usual = descent.descent(heard(slopes))
    scaled = heard([slope * scale for slope in slopes], moved=4.0 * scale**2)
    other = heard([slope * scale for slope in slopes], norm=scale)
    assert descent.descent(scaled) == pytest.approx(usual)
    assert descent.descent(other) == pytest.approx(usual)


@pytest.mark.parametrize("cosine", [-1.0, -0.02, 0.0, 0.3])
def test_a_slope_without_noise_counts_by_its_cosine(cosine: float) -> None:
    found = descent.descent(heard([2.0 * cosine] * 10))
    assert found == pytest.approx(-cosine / descent.LEAST)


def test_of_a_few_steps_nothing_is_told() -> None:
    assert descent.descent(heard([-1.0] * 7)) is None
    assert descent.descent(heard([-1.0] * 8)) is not None


def test_what_was_heard_is_forgotten() -> None:
    state = heard([-1.0] * 10)
    descent.begin(state)
    assert descent.descent(state) is None
    assert state == new_detector()


@pytest.mark.parametrize(
    ("slope", "moved", "norm"),
    [
        (math.nan, 1.0, 1.0),
        (math.inf, 1.0, 1.0),
        (1.0, 0.0, 1.0),
        (1.0, math.inf, 1.0),
        (1.0, math.nan, 1.0),
        (1.0, 1.0, 0.0),
        (1.0, 1.0, math.inf),
    ],
)
def test_what_is_no_slope_is_not_heard(slope: float, moved: float, norm: float) -> None:
    state = heard([-1.0, -0.5])
    before = dict(state)
    descent.hear(state, slope, moved, norm)
    assert state == before


@pytest.mark.parametrize(
    ("cosines", "fast"),
    [
        ([-0.3, -0.2, -0.15], True),
        ([0.2, -0.3, -0.2, -0.15], True),
        ([-0.3, -0.2], False),
        ([-0.3, -0.2, -0.05], False),
        ([-0.3, -0.2, -0.15, 0.1], False),
        ([-0.3, 0.0, -0.2, -0.15], False),
    ],
)
def test_a_network_that_learns_fast_goes_downhill_in_each_step(
    cosines: list[float], fast: bool
) -> None:
    slopes = [2.0 * cosine for cosine in cosines]
    for forget in (descent.begin, descent.interrupt):
        state = heard(slopes)
        assert descent.breaks_through(state) is fast
        forget(state)
        assert not descent.breaks_through(state)
