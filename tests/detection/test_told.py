"""What a training loop tells: a change that clipping hides from the norm is consolidated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from sal_optim import SALAdam
from sal_optim.detection import change_detector, told
from sal_optim.detection.change_detector import Signal, new_detector
from tests.testing.drive import make_params, profile, step_with, stream

STEPS = 120


def trained(name: str | None) -> tuple[SALAdam, list[float]]:
    """Two tasks of random labels, gradients clipped; the optimizer and when it consolidated."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = SALAdam(model.parameters(), lr=3e-3, consolidate_every=None)
    changes = []
    for _ in range(2):
        x, y = torch.randn(256, 20), torch.randint(4, (256,))
        for _ in range(STEPS):
            rows = torch.randint(256, (64,))
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if name is not None:
                optimizer.tell(**{name: {"loss": loss, "norm": norm}[name]})
            optimizer.step()
            changes.append(optimizer.diagnostics()["changes"])
    return optimizer, changes


@pytest.mark.parametrize("name", ["loss", "norm"])
def test_a_change_is_told(name: str) -> None:
    _, changes = trained(name)
    assert changes[STEPS - 1] == 0
    assert changes[STEPS + 10] == 1


@pytest.mark.parametrize(("loud", "changes"), [(2, 0.0), (3, 1.0)])
def test_a_bad_batch_that_is_shown_twice_is_no_change(loud: int, changes: float) -> None:
    params = make_params()
    optimizer = SALAdam(params)
    for step, grads in enumerate(stream(params, profile(80))):
        optimizer.tell(loss=50.0 if 70 <= step < 70 + loud else 1.0 + 0.01 * (step % 3))
        step_with(optimizer, params, grads)
    assert optimizer.diagnostics()["changes"] == changes


def test_a_change_that_the_norm_has_told_of_is_not_consolidated_again() -> None:
    """What was gathered since then is of other data; protection is whole all the same."""
    params = make_params()
    optimizer = SALAdam(params, consolidate_every=40)
    for step, grads in enumerate(stream(params, profile(110, (100,)))):
        optimizer.tell(loss=(8.0 if step >= 106 else 1.0) + 0.01 * (step % 3))
        step_with(optimizer, params, grads)
    state = optimizer.param_groups[0]["threshold"]
    assert (state["changes"], state["consolidations"], state["firm"]) == (1.0, 3.0, 1.0)
    assert state["loss_steps"] < 10.0, "the loss has told of it later"


@pytest.mark.parametrize(("rise", "firm"), [(0.0, 0.0), (3.0, 1.0)])
def test_losses_that_have_risen_bear_out_what_the_norm_tells(rise: float, firm: float) -> None:
    """None of them is above the threshold, which is four deviations."""
    params = make_params()
    optimizer = SALAdam(params, consolidate_every=36)
    for step, grads in enumerate(stream(params, profile(140, (120,)))):
        noise = 0.1 * (-1) ** step
        optimizer.tell(loss=1.0 + noise + (0.1 * rise if step >= 120 else 0.0))
        step_with(optimizer, params, grads)
    state = optimizer.param_groups[0]["threshold"]
    assert (state["changes"], state["firm"]) == (1.0, firm)
    assert state["loss_steps"] == 140.0, "the loss has confirmed no change by itself"


def test_a_few_losses_of_a_window_tell_nothing() -> None:
    state, settings = new_detector(), {"tau0": 1.0, "alpha": 4.0, "stats_beta": 0.99}
    for loss, count in ((4.0, 8), (2.0, 7)):
        for _ in range(count):
            told.hear(state, "loss", loss, settings)
        found = told.close_window(state)
    assert found == 0.0
    told.hear(state, "loss", 2.0, settings)
    assert told.close_window(state) == pytest.approx(0.5)


def test_the_clipped_norm_tells_nothing() -> None:
    _, changes = trained(None)
    assert changes[-1] == 0


def test_what_is_told_is_saved() -> None:
    optimizer, _ = trained("loss")
    other = SALAdam([torch.nn.Parameter(p.detach().clone()) for p in _params(optimizer)])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["threshold"] == optimizer.param_groups[0]["threshold"]
    assert other.param_groups[0]["threshold"]["loss_mean"] > 0


def test_a_signal_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(change_detector.TOLD, "perplexity", Signal("perplexity_", 5.0, 10.0))
    optimizer = SALAdam([torch.nn.Parameter(torch.zeros(3))])
    for _ in range(20):
        optimizer.tell(perplexity=2.0)
        optimizer.step()
    assert optimizer.param_groups[0]["threshold"]["perplexity_mean"] == pytest.approx(2.0)


@pytest.mark.parametrize("number", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("kind", [torch.tensor, float, numpy.float32, numpy.float64])
def test_what_tells_nothing(number: float, kind: Callable[[float], Any]) -> None:
    """A loss that is not finite among them: the run may go on, as without being told."""
    optimizer = SALAdam([torch.nn.Parameter(torch.zeros(3))])
    optimizer.tell(loss=kind(number))
    optimizer.step()
    assert optimizer.controller.detector["loss_steps"] == 0.0


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"entropy": 1.0}, "signal"),
        ({"loss": "high"}, "loss"),
        ({"loss": torch.zeros(2)}, "loss"),
    ],
)
def test_bad_numbers(numbers: dict[str, float], words: str) -> None:
    optimizer = SALAdam([torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises((ValueError, TypeError), match=words):
        optimizer.tell(norm=1.0, **numbers)
    optimizer.step()
    assert optimizer.controller.detector["norm_steps"] == 0.0


def _params(optimizer: SALAdam) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_a_float_is_heard_whole_whatever_the_default_dtype() -> None:
    """As while a model is built in bfloat16, which has three digits."""
    optimizer = SALAdam([torch.nn.Parameter(torch.ones(2))])
    torch.set_default_dtype(torch.bfloat16)
    try:
        optimizer.tell(loss=2.123)
        optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert optimizer.param_groups[0]["threshold"]["loss_mean"] == pytest.approx(2.123, abs=1e-6)


def test_losses_told_before_one_step_are_one() -> None:
    """Of batches whose gradients accumulate; one bad step is then no change."""
    heard = []
    for parts in (1, 4):
        optimizer = SALAdam([torch.nn.Parameter(torch.ones(2))])
        for step in range(60):
            loss = 9.0 if step == 50 else 2.0
            for part in range(parts):
                optimizer.tell(loss=loss + part - (parts - 1) / 2)
            optimizer.step()
        heard.append(dict(optimizer.controller.detector))
    assert heard[0]["loss_steps"] == 60.0  # a confirmed change begins to count anew
    assert heard[1] == heard[0]


def test_a_loss_that_is_not_finite_leaves_those_beside_it() -> None:
    optimizer = SALAdam([torch.nn.Parameter(torch.ones(2))])
    for loss in (2.0, math.nan, torch.tensor(math.inf), 4.0):
        optimizer.tell(loss=loss)
    optimizer.step()
    assert optimizer.controller.detector["loss_mean"] == 3.0
