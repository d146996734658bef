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


def project(grads: list[Tensor], places: list[int] | None = None, count: int = 0) -> Tensor:
    places = list(range(len(grads))) if places is None else places
    return coherence.projected(grads, grads, [None] * len(grads), places, count or len(grads))


def heard(steps: list[list[Tensor]]) -> dict[str, float]:
    state = new_detector()
    for grads in steps:
        coherence.hear(state, project(grads).tolist())
    return state


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 1.0])
def test_coherence_is_the_share_of_energy_that_lasts(part: float) -> None:
    torch.manual_seed(0)
    found = [coherence.close_window(heard(gradients(part, 15))) or 0.0 for _ in range(40)]
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
    assert project([one, -one]).abs().max() > 1.0


def test_tensors_keep_their_signs_where_others_have_no_gradient() -> None:
    grads = [torch.randn(shape) for shape in SHAPES]
    whole = project(grads)
    parts = [project(grads[:2], [0, 1], 5), project(grads[2:], [2, 3, 4], 5)]
    torch.testing.assert_close(sum(parts), whole)


def test_of_long_sides_a_sample_is_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coherence, "LONGEST", 16)
    torch.manual_seed(0)
    steps = gradients(0.5, 200)
    state = heard(steps)
    size = statistics.fmean(sum(float(g.square().sum()) for g in grads) for grads in steps)
    energy = state["energy"] / state["projected"] / len(PROJECTIONS)
    assert energy == pytest.approx(size, rel=0.4)
    assert coherence.close_window(state) == pytest.approx(0.5, abs=0.2)


def test_a_window_ends_and_the_next_begins() -> None:
    state = heard(gradients(1.0, 10))
    assert coherence.close_window(state) == pytest.approx(1.0, abs=1e-5)
    assert state["coherence"] == pytest.approx(1.0, abs=1e-5)
    assert state["projected"] == 0.0
    assert coherence.close_window(state) is None


def test_of_a_few_gradients_nothing_is_told_and_the_window_goes_on() -> None:
    steps, state = gradients(1.0, 8), new_detector()
    for grads in steps[:7]:
        coherence.hear(state, project(grads).tolist())
        assert coherence.close_window(state) is None
    coherence.hear(state, project(steps[7]).tolist())
    assert coherence.close_window(state) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("of_a_file", [{"energy": 0.0}, {"projection_0": 1e200}])
def test_sums_of_no_run_tell_nothing(of_a_file: dict[str, float]) -> None:
    state = {**heard(gradients(1.0, 10)), **of_a_file}
    assert coherence.close_window(state) is None
    assert state["projected"] == 0.0


@pytest.mark.parametrize("scale", [1e-50, 1e39])
def test_gradients_beyond_float32(scale: float) -> None:
    steps = [[g.double() * scale for g in grads] for grads in gradients(1.0, 10)]
    assert coherence.close_window(heard(steps)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, 1e200])
def test_what_is_no_gradient_is_not_heard(bad: float) -> None:
    state = heard(gradients(0.5, 4))
    before = dict(state)
    coherence.hear(state, [bad] * len(PROJECTIONS))
    assert state == before


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_an_empty_tensor_has_none(shape: tuple[int, ...]) -> None:
    empty = torch.zeros(shape)
    assert project([empty]).tolist() == [0.0] * len(PROJECTIONS)
