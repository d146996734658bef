"""When a change is heard: at a lasting one, at once and once; never at noise or outliers.

What training on real data does to the threshold is in ``test_training.py``.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim.detection.change_detector import (
    GRAD_NORM,
    begin_segment,
    is_ready,
    limit,
    new_detector,
    observe,
    record,
)
from tests.testing.drive import (
    assert_near,
    consolidations,
    drive,
    fall,
    make_params,
    profile,
    seeded,
    step_with,
    stream,
)
from tests.testing.rows import Row

Mode = dict[str, Any]
SHAPES = [(8, 6), (8,)]
SETTINGS = {"tau0": 1.0, "alpha": 4.0, "stats_beta": 0.98}


def found_in(norms: list[float]) -> list[int]:
    """The steps at which the bare detector hears a change in a series of norms."""
    state, found = new_detector(), []
    for index, norm in enumerate(norms):
        if observe(state, norm, SETTINGS).change:
            found.append(index)
            begin_segment(state)
            observe(state, norm, SETTINGS)
    return found


def noise(steps: int, seed: int, spread: float, kind: str = "lognormal") -> list[float]:
    draws = torch.randn(steps, generator=seeded(seed), dtype=torch.float64)
    if kind == "lognormal":
        return (draws * spread).exp().tolist()
    return (1.0 + spread * draws).clamp_min(0.05).tolist()


# ---------------------------------------------------------------- a lasting change is found, once


@pytest.mark.parametrize("shape", ["linear", "exponential"])
def test_one_change_is_found_within_ten_steps(row: Row, mode: Mode, shape: str) -> None:
    for seed in range(3):
        params = make_params(SHAPES, seed=seed)
        optimizer = row(params, consolidate_every=None, **mode)
        grads = stream(params, profile(75, (45,), shape=shape), seed=seed + 1)
        found = drive(optimizer, params, grads)
        assert len(found) == 1, (seed, found)
        assert 45 <= found[0] < 55, (seed, found)
        assert optimizer.stability(params[0]).max() > 0


@pytest.mark.parametrize("regime", [150, 300, 1000])
@pytest.mark.parametrize("shape", ["linear", "exponential"])
@pytest.mark.parametrize("spread", [0.02, 0.1, 0.2])
def test_every_change_is_found(regime: int, shape: str, spread: float) -> None:
    changes = [regime * index for index in range(1, 6)]
    for seed in range(10):
        quiet = noise(regime * 6, seed, spread)
        norms = [
            norm * max(fall(step, change, shape=shape) for change in changes)
            for step, norm in enumerate(quiet)
        ]
        found = found_in(norms)
        assert len(found) == len(changes), (seed, found)
        for at, change in zip(found, changes, strict=True):
            assert change <= at < change + 10, (seed, found)


@pytest.mark.parametrize("height", [5.0, 8.0, 30.0, 1000.0])
def test_no_single_step_confirms(height: float) -> None:
    """However high it is; a lasting rise is confirmed by its second or third step."""
    state = new_detector()
    for norm in noise(100, 0, 0.05):
        observe(state, norm, SETTINGS)
    verdicts = [observe(state, fall(step, 0, height), SETTINGS) for step in range(5)]
    assert verdicts[0].surprising
    assert not verdicts[0].change
    assert any(verdict.change for verdict in verdicts[1:3])


def test_the_limit_is_what_the_next_norm_is_held_to() -> None:
    """So that an accelerator may compare without waiting for the norm."""
    state, settings = new_detector(), {"tau0": 1.0, "alpha": 1.5, "stats_beta": 0.9}
    surprising = 0
    for norm in noise(300, 0, 0.3):
        most = limit(state, settings)
        assert (most == math.inf) == (not is_ready(state))
        verdict = observe(state, norm, settings)
        assert verdict.surprising == (norm > most)
        surprising += verdict.surprising
        if verdict.change:
            begin_segment(state)
    assert surprising > 3


@pytest.mark.parametrize("beta", [0.9, 0.98])
def test_statistics_against_a_plain_loop(beta: float) -> None:
    """A mean of all steps but the first few, and then of the last ``1 / (1 - beta)``."""
    state, norms = new_detector(), noise(80, 0, 0.3)
    mean = variance = 0.0
    for count, norm in enumerate(norms, 1):
        record(state, norm, beta=beta)
        weight = max(1.0 - beta, 1.0 / max(1, count - GRAD_NORM.settle))
        delta = norm - mean
        mean += weight * delta
        variance = (1.0 - weight) * (variance + weight * delta**2)
    assert state["steps"] == 80
    assert (state["mean"], state["variance"]) == pytest.approx((mean, variance))
    begin_segment(state)
    assert (state["steps"], state["mean"], state["variance"]) == (0.0, 0.0, 0.0)


# ---------------------------------------------------------------- what is no change


@pytest.mark.parametrize("kind", ["gaussian", "lognormal"])
def test_stationary_noise(class_row: Row, kind: str) -> None:
    """2,000 steps of gradients of which the norm varies by itself."""
    params = make_params([(6, 4)])
    optimizer = class_row(params, consolidate_every=None)
    scales = noise(2000, 3, 0.5, "lognormal") if kind == "lognormal" else [1.0] * 2000
    assert drive(optimizer, params, stream(params, scales)) == []
    assert optimizer.param_groups[0]["threshold"]["steps"] == 2000


@pytest.mark.parametrize("shape", [(4, 3), (40, 50)])
def test_heavy_tailed_gradients(class_row: Row, shape: tuple[int, ...]) -> None:
    """Student t with 3 degrees of freedom, element by element."""
    params = make_params([shape])
    optimizer = class_row(params, consolidate_every=None)
    grads = stream(params, [1.0] * 2000, noise="student")
    norms = torch.tensor([float(now[0].norm()) for now in grads])
    assert norms.max() > 2.0 * norms.median(), "the tail is heavy"
    assert drive(optimizer, params, grads) == []


@pytest.mark.parametrize("spread", [0.1, 0.3, 0.5, 0.7])
def test_noise_of_the_norm(spread: float) -> None:
    for seed in range(40):
        assert found_in(noise(2000, seed, spread)) == [], seed


def test_heavy_tailed_norm() -> None:
    """The whole gradient scaled by a Student t with 3 degrees of freedom."""
    alarms = []
    for seed in range(40):
        draws = torch.randn((4, 2000), generator=seeded(seed), dtype=torch.float64)
        student = (draws[0] / (draws[1:].square().sum(0) / 3).sqrt()).abs()
        alarms += found_in((student + 1e-3).tolist())
    # A tail so heavy looks like a change once in a long while: in one stream of 40 at most.
    assert len(alarms) <= 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factor", [20.0, 100.0, 1e6])
def test_an_outlying_batch(row: Row, factor: float, seed: int) -> None:
    params = make_params(SHAPES)
    scales = profile(80)
    scales[40 + 7 * seed] = factor
    optimizer = row(params, consolidate_every=None)
    assert drive(optimizer, params, stream(params, scales, seed=seed)) == []
    # And it did not deafen the detector to a change a little later.
    later = drive(optimizer, params, stream(params, profile(40, (20,)), seed=seed))
    assert len(later) == 1


def test_two_outlying_batches_apart() -> None:
    norms = noise(400, 0, 0.1)
    for at in (100, 140, 200, 210, 300):
        norms[at] *= 50
    assert found_in(norms) == []


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(lambda t: 1.0, id="constant"),
        pytest.param(lambda t: math.exp(-t / 300), id="falling"),
        pytest.param(lambda t: 1 + t / 500, id="rising slowly"),
        pytest.param(lambda t: math.cosh((t - 500) / 400), id="falling and rising"),
        pytest.param(lambda t: 1 + 0.3 * math.sin(t / 100), id="waving"),
        pytest.param(lambda t: 1 + 0.05 * math.sin(t), id="rippling"),
        pytest.param(lambda t: 10.0 if t < 10 else 1.0, id="loud first steps"),
        pytest.param(lambda t: 1 + 50 * math.exp(-t / 5), id="a loud beginning"),
        pytest.param(lambda t: 1e-30, id="tiny"),
        pytest.param(lambda t: 1e30, id="huge"),
    ],
)
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.1])
def test_slow_changes_of_the_norm(norm: Any, spread: float) -> None:
    """Without noise, as in full-batch training, the variance is small: still no alarm."""
    for seed in range(5):
        shaky = noise(1500, seed, spread)
        assert found_in([norm(step) * factor for step, factor in enumerate(shaky)]) == []


# ---------------------------------------------------------------- invariance


def test_groups_change_nothing(row: Row, mode: Mode) -> None:
    whole, split = make_params(), make_params()
    mode = {"consolidate_every": None, **mode}
    one = row(whole, **mode)
    other = row([{"params": split[:2]}, {"params": split[2:3]}, {"params": split[3:]}], **mode)
    grads = stream(whole, profile(90, (60,)))
    assert drive(one, whole, grads) == drive(other, split, grads) == [61]
    assert_near(whole, split)
    assert one.diagnostics() == pytest.approx(other.diagnostics(), rel=1e-5)


@pytest.mark.parametrize("factor", [1000.0, 1e-3])
def test_the_scale_of_the_loss_changes_nothing(row: Row, mode: Mode, factor: float) -> None:
    if not row.scale_free:
        pytest.skip("SGD's own step follows the scale of the loss")
    # Adam's eps is an absolute size, and the one thing that is not free of scale.
    # Muon rounds what it orthogonalizes to bfloat16 before it scales it.
    mode = {"consolidate_every": None, **mode, **row.by_element}
    mode = {**mode, "eps": 0.0} if "exp_avg_sq" in row.moments else mode
    dtype = torch.float64
    plain, scaled = make_params(dtype=dtype), make_params(dtype=dtype)
    one, other = row(plain, **mode), row(scaled, **mode)
    grads = stream(plain, profile(100, (60,)))
    found = drive(one, plain, grads)
    assert found == drive(other, scaled, [[grad * factor for grad in now] for now in grads])
    assert found == [61]
    assert_near(plain, scaled, rtol=1e-6, atol=1e-9)
    for left, right in zip(plain, scaled, strict=True):
        assert_near([one.stability(left)], [other.stability(right)])
    assert one.diagnostics()["drift"] > 0


@pytest.mark.parametrize("factor", [1000.0, 1e-3])
def test_the_scale_of_the_loss_is_not_seen_by_importance(
    row: Row, mode: Mode, factor: float
) -> None:
    """For SGD too, with the learning rate scaled the other way."""
    dtype = torch.float64
    plain, scaled = make_params(dtype=dtype), make_params(dtype=dtype)
    if row.scale_free:
        pytest.skip("covered by the test above")
    kwargs: Mode = {"weight_decay": 0.0, "consolidate_every": None, **mode}
    one, other = row(plain, lr=0.01, **kwargs), row(scaled, lr=0.01 / factor, **kwargs)
    grads = stream(plain, profile(120, (60,)))
    found = drive(one, plain, grads)
    assert found == drive(other, scaled, [[grad * factor for grad in now] for now in grads])
    assert found == [61]
    assert_near(plain, scaled, rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------- gradients that are no numbers


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_gradients(class_row: Row, mode: Mode, value: float) -> None:
    """At any moment: before the first step, in a regime, in a detection, after a consolidation."""
    for at in (0, 61, 66):
        params, twin = make_params(), make_params()
        options: Mode = {"importance": "diagonal", "consolidate_every": None, **mode}
        optimizer, other = class_row(params, **options), class_row(twin, **options)
        grads = stream(params, profile(75, (60,)))
        for now in grads[:at]:
            step_with(optimizer, params, now)
            step_with(other, twin, now)
        before = _told(optimizer, params)
        bad = [grad.clone() for grad in grads[at]]
        bad[2][0, 0, 0] = value
        step_with(optimizer, params, bad)
        after = _told(optimizer, params)
        if at:
            assert before == after
        assert all(math.isfinite(number) for number in optimizer.diagnostics().values())
        # The base's moments and weights hold NaN now, as torch.optim's would; SAL's state goes on
        # as in a run that never saw the step.
        rest = grads[at:]
        assert drive(optimizer, params, rest) == drive(other, twin, rest)
        assert _told(optimizer, params)[0] == _told(other, twin)[0]
        assert_near(
            *(
                [o.state[p]["evidence"] for p in ps]
                for o, ps in ((optimizer, params), (other, twin))
            )
        )
        assert consolidations(optimizer) == 1


def _told(optimizer: Any, params: list[Tensor]) -> tuple[Any, ...]:
    threshold = dict(optimizer.param_groups[0].get("threshold", {}))
    states = [optimizer.state[p] for p in params if optimizer.state.get(p)]
    names = ("pending", "evidence")
    return threshold, [state[name].tolist() for state in states for name in names]
