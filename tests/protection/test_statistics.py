"""Statistics of each tensor: norms of gradients, lengths of updates, the published stability."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sal_optim.protection import clock, judge
from sal_optim.protection.block import NUMBERS
from sal_optim.protection.statistics import published_stability, track
from tests.testing.drive import clone_params, make_params, profile, step_with, stream
from tests.testing.rows import Row

Mode = dict[str, Any]


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.98])
def test_track_against_a_plain_loop(beta: float, update: bool) -> None:
    name = "delta_w" if update else "grad_norm"
    state: dict[str, Any] = dict.fromkeys(NUMBERS, 0.0)
    values = torch.rand(30, generator=torch.Generator().manual_seed(0)).tolist()
    mean, variance = values[0], 0.0
    for value in values[1:]:
        delta = value - mean
        mean = beta * mean + (1.0 - beta) * value
        variance = beta * (variance + (1.0 - beta) * delta**2)
    for value in values:
        track([state], [value], beta, update=update)
    assert state[f"{name}_mean"] == pytest.approx(mean)
    assert state[f"{name}_var"] == pytest.approx(variance)
    assert state["delta_w"] == (values[-1] if update else 0.0)


def test_published_stability_of_one_tensor() -> None:
    assert published_stability({}) == 1.0
    assert published_stability({"delta_w": 2.0, "grad_norm_mean": 1.5}) == pytest.approx(1 / 4)


@pytest.mark.parametrize("ahead", [False, True], ids=["cpu", "as on an accelerator"])
def test_the_length_of_the_last_measured_update(
    class_row: Row, mode: Mode, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in every ``MEASURED`` steps; of a parameter that comes late, too."""
    if ahead:
        monkeypatch.setattr(judge, "on_host", lambda _: False)
    params = make_params()
    optimizer = class_row(params, **mode)
    lengths = [0.0] * len(params)
    norms = [0.0] * len(params)
    beta = optimizer.param_groups[0]["stats_beta"]
    for step, grads in enumerate(stream(params, profile(3 * clock.LEAST))):
        before = clone_params(params)
        now = [*grads[:-1], grads[-1] if step >= 21 else None]
        step_with(optimizer, params, now)
        for index, (param, old, grad) in enumerate(zip(params, before, now, strict=True)):
            if grad is not None:
                norm = float(grad.norm())
                norms[index] = beta * norms[index] + (1.0 - beta) * norm if norms[index] else norm
                if clock.is_turn(step - 1, clock.MEASURED):
                    lengths[index] = float((param - old).detach().norm())
        if step % 25 == 0:
            optimizer.diagnostics()  # what is underway arrives
            for param, length, norm in zip(params, lengths, norms, strict=True):
                state = optimizer.state[param]
                assert state.get("delta_w", 0.0) == pytest.approx(length, rel=1e-5)
                assert state.get("grad_norm_mean", 0.0) == pytest.approx(norm, rel=1e-5)
    published = [1.0 / (1.0 + d * g) for d, g in zip(lengths, norms, strict=True)]
    mean = sum(published) / len(published)
    assert optimizer.diagnostics()["published_stability"] == pytest.approx(mean, rel=1e-5)
