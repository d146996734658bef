"""When the clock asks, how a consolidation is weighted, and the unit that the penalty has."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim.detection.change_detector import new_detector
from sal_optim.protection import clock
from tests.testing.drive import consolidations, drive, make_params, profile, stream
from tests.testing.rows import Row

Mode = dict[str, Any]


def at(since: float, total: float) -> dict[str, float]:
    return {**new_detector(), "since": since, "total": total}


def test_a_window_is_a_share_of_the_run() -> None:
    least, long = float(clock.LEAST), 10.0 * clock.LEAST / clock.SHARE
    assert clock.window(at(0.0, 1.0), "auto") == least
    assert clock.window(at(0.0, long), "auto") == pytest.approx(10.0 * least)
    assert clock.window(at(0.0, long), 7) == 7.0
    assert clock.window(at(0.0, long), None) == 0.0


@pytest.mark.parametrize("every", ["auto", 7, 1000])
@pytest.mark.parametrize("total", [50.0, 5e3, 1e6])
def test_is_due_when_a_window_has_passed(every: Any, total: float) -> None:
    window = clock.window(at(0.0, total), every)
    assert not clock.is_due(at(window - 0.5, total), every)
    assert clock.is_due(at(window, total), every)
    assert clock.is_due(at(window + 1.0, total), every)
    assert not clock.is_due(at(total, total), None)


def test_shares_are_a_mean_over_windows() -> None:
    """Full windows: weights are geometric, as in a mean of all that was gathered."""
    retention, weight = 0.9, 0.0
    weights: list[float] = []
    for _ in range(6):
        new, old, weight = clock.shares(15.0, 15.0, weight, retention)
        assert new + old == pytest.approx(1.0)
        weights = [old * w for w in weights] + [new]
    wanted = [retention**age for age in reversed(range(6))]
    assert weights == pytest.approx([w / sum(wanted) for w in wanted])
    assert weight == pytest.approx(sum(wanted))


def test_shares_of_windows_that_are_not_full() -> None:
    first = clock.shares(5.0, 15.0, 0.0, 0.5)
    assert first == pytest.approx((1.0, 0.0, 1 / 3))
    # A third of a window keeps the cube root of what a whole one keeps, and weighs a third.
    new, old, weight = clock.shares(5.0, 15.0, 2.0, 0.5)
    assert weight == pytest.approx(2.0 * 0.5 ** (1 / 3) + 1 / 3)
    assert (new, old) == pytest.approx((1 / 3 / weight, 1.0 - 1 / 3 / weight))
    # Three thirds keep as much as one whole.
    kept = 2.0
    for _ in range(3):
        kept *= 0.5 ** (1 / 3)
    assert kept == pytest.approx(2.0 * 0.5)
    assert clock.shares(90.0, 15.0, 2.0, 0.5) == clock.shares(15.0, 15.0, 2.0, 0.5)
    assert clock.shares(3.0, 0.0, 2.0, 0.5) == clock.shares(15.0, 15.0, 2.0, 0.5)
    assert clock.shares(15.0, 15.0, 2.0, 0.0)[:2] == (1.0, 0.0)


@pytest.mark.parametrize(("retention", "windows"), [(0.0, 1.0), (0.95, 20.0), (1.0, 100.0)])
def test_what_was_observed_counts_as_a_long_run(retention: float, windows: float) -> None:
    assert clock.long_run(retention) == pytest.approx(windows)
    assert clock.shares(3.0, 15.0, 0.0, retention, observed=True) == pytest.approx((1, 0, windows))
    weight = 0.0
    for _ in range(2000):
        weight = clock.shares(15.0, 15.0, weight, min(retention, 0.99))[2]
    assert weight == pytest.approx(windows)


@pytest.mark.parametrize(("every", "least"), [(clock.INTERVAL, 0.98), (clock.MEASURED, 0.7)])
def test_turns_have_no_period_that_a_training_loop_has(every: int, least: float) -> None:
    """Of any short loop each part has its share."""
    turns = [step for step in range(20_000) if clock.is_turn(float(step), every)]
    gaps = {late - early for early, late in itertools.pairwise(turns)}
    assert gaps <= {every, every + 1}
    for period in range(2, 17):
        shares = [sum(step % period == place for step in turns) for place in range(period)]
        assert min(shares) > least * max(shares)


# ---------------------------------------------------------------- in an optimizer


@pytest.mark.parametrize("every", [1, 7, 40])
def test_a_number_of_steps(row: Row, mode: Mode, every: int) -> None:
    params = make_params()
    optimizer = row(params, consolidate_every=every, **mode)
    found = drive(optimizer, params, stream(params, profile(100)))
    due = range(every - 1, 100, every)
    # Where nothing was gathered since the last one, there is nothing to consolidate.
    turns = [step for step in range(99) if clock.is_turn(step, clock.INTERVAL)]
    gathered = [i for i in due if any(step in turns for step in range(i - every, i))]
    assert found == (gathered if every > 1 else [step + 1 for step in turns])
    assert optimizer.stability(params[0]).max() > 0


def test_the_automatic_clock(class_row: Row, mode: Mode) -> None:
    params = make_params([(4, 3)])
    optimizer = class_row(params, **mode)
    steps = int(3 * clock.LEAST / clock.SHARE)
    found = drive(optimizer, params, stream(params, profile(steps)))
    wanted, since = [], 0
    for step in range(steps):
        since += 1
        if since >= max(clock.LEAST, clock.SHARE * (step + 1)):
            wanted.append(step)
            since = 0
    assert found == wanted
    assert found[0] == clock.LEAST - 1
    assert found[-1] - found[-2] > clock.LEAST


def test_the_clock_begins_anew_at_a_change(row: Row, mode: Mode) -> None:
    params = make_params()
    optimizer = row(params, consolidate_every=80, **mode)
    found = drive(optimizer, params, stream(params, profile(200, (60,))))
    assert len(found) == 2
    assert 60 <= found[0] < 65
    assert found[1] == found[0] + 80


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_clipped_gradients_are_consolidated_by_the_clock(class_row: Row, clip: str) -> None:
    """No change is heard where all norms are one; the clock needs none."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = class_row(model.parameters())
    found = []
    for step in range(2 * clock.LEAST + 5):
        rule = torch.ones(6, 3) * (1.0 if step < clock.LEAST else -1.0)
        inputs = torch.randn(16, 6)
        optimizer.zero_grad()
        (model(inputs) - inputs @ rule).square().mean().backward()
        if clip == "norm":
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        else:
            nn.utils.clip_grad_value_(model.parameters(), 1e-3)
        count = consolidations(optimizer)
        optimizer.step()
        found += [step] if consolidations(optimizer) > count else []
    assert found == [clock.LEAST - 1, 2 * clock.LEAST - 1]
    assert optimizer.diagnostics()["changes"] == 0.0
    assert float(optimizer.stability(model.weight).max()) > 0
    assert all(bool(p.isfinite().all()) for p in model.parameters())


# ---------------------------------------------------------------- protection that rises with it


def share(optimizer: Any) -> float:
    return float(clock.strength(optimizer.param_groups[0]["threshold"]))


def alike(count: int, part: float, shape: tuple[int, ...] = (40, 30)) -> list[list[Tensor]]:
    """Gradients of which a part lasts, of their energy, and the rest is noise."""
    torch.manual_seed(0)
    lasting = torch.randn(shape)
    return [[part**0.5 * lasting + (1.0 - part) ** 0.5 * torch.randn(shape)] for _ in range(count)]


def test_protection_rises_where_gradients_are_noise(class_row: Row) -> None:
    params = make_params([(40, 30)])
    optimizer = class_row(params, consolidate_every=64)
    drive(optimizer, params, alike(64 * 12, 0.0))
    # The mean of a few slopes of noise is below 0 now and then.
    assert clock.RAMP * share(optimizer) ** 0.5 == pytest.approx(11.0, abs=2.5)


@pytest.mark.parametrize("part", [0.1, 0.3, 1.0])
def test_nothing_is_held_while_the_loss_still_falls(class_row: Row, part: float) -> None:
    """A network that still learns is not to be held."""
    params = make_params([(40, 30)])
    optimizer = class_row(params, consolidate_every=64)
    drive(optimizer, params, alike(64 * 6, part))
    assert share(optimizer) == 0.0


def test_protection_falls_where_the_loss_falls_late_in_a_run(class_row: Row) -> None:
    params = make_params([(40, 30)])
    optimizer = class_row(params, consolidate_every=64)
    drive(optimizer, params, alike(64 * 12, 0.0))
    assert share(optimizer) > (9 / clock.RAMP) ** 2
    drive(optimizer, params, alike(64 * 14, 0.3))
    assert share(optimizer) == 0.0
    optimizer.consolidate()
    drive(optimizer, params, alike(64, 0.3))
    assert share(optimizer) == 1.0, "what is declared is held whole"


def test_a_minimum_that_weights_go_around_is_no_descent(class_row: Row) -> None:
    """The way from the anchor leads uphill as often as downhill."""
    params = make_params([(40, 30)])
    optimizer = class_row(params, consolidate_every=64)
    torch.manual_seed(0)
    minimum = params[0].detach().clone()
    for _ in range(64 * 12):
        noise = torch.randn(40, 30)
        drive(optimizer, params, [[params[0].detach() - minimum + noise]])
    assert clock.RAMP * share(optimizer) ** 0.5 == pytest.approx(12.0, abs=2.5)


def test_the_loss_that_is_maximized_rises(class_row: Row) -> None:
    if "maximize" not in class_row.cls([torch.zeros(1, 1, requires_grad=True)]).defaults:
        pytest.skip("minimizes alone")
    params = make_params([(40, 30)])
    optimizer = class_row(params, consolidate_every=64, maximize=True)
    drive(optimizer, params, alike(64 * 6, 0.3))
    assert share(optimizer) == 0.0


def test_without_anchors_protection_rises(class_row: Row) -> None:
    """Nothing says then that the network still learns."""
    params = make_params([(40, 30)])
    optimizer = class_row(params, consolidate_every=64, pull=0.0)
    drive(optimizer, params, alike(64 * 12, 1.0))
    assert clock.RAMP * share(optimizer) ** 0.5 == pytest.approx(12.0)


@pytest.mark.parametrize("every", [1, 4, 8])
def test_a_short_clock_waits_too(class_row: Row, every: int) -> None:
    """The slopes of a few steps tell nothing."""
    params = make_params([(40, 30)])
    optimizer = class_row(params, consolidate_every=every)
    drive(optimizer, params, alike(30, 1.0))
    assert share(optimizer) == pytest.approx(clock.RAMP**-2)
    drive(optimizer, params, alike(130, 1.0))
    assert share(optimizer) == 0.0


def test_protection_that_is_whole_falls_at_once() -> None:
    state = {**new_detector(), "consolidations": 200.0}
    clock.hear_learning(state, 0.0)
    assert clock.strength(state) == 1.0
    clock.hear_learning(state, 8 * clock.LEARNING)
    assert clock.strength(state) == pytest.approx((24 / clock.RAMP) ** 2)


@pytest.mark.parametrize("fall", [0.0, 0.2])
def test_nothing_is_held_while_the_loss_that_is_told_falls(class_row: Row, fall: float) -> None:
    """Whatever gradients look like; of a loss that stays protection is what it is without one."""
    params = make_params([(40, 30)])
    optimizer = class_row(params, consolidate_every=64)
    silent = class_row(make_params([(40, 30)]), consolidate_every=64)
    for step, grads in enumerate(alike(64 * 8, 0.0)):
        optimizer.tell(loss=(1.0 - fall) ** (step // 64))
        drive(optimizer, params, [grads])
        drive(silent, silent.param_groups[0]["params"], [grads])
    assert share(silent) > (5 / clock.RAMP) ** 2
    assert share(optimizer) == (0.0 if fall else pytest.approx(share(silent), abs=2e-2))


def test_a_loss_that_rises_again_is_held_as_without_one(class_row: Row) -> None:
    """The data may be changing, little by little: no threshold needs to be crossed."""
    params = make_params([(40, 30)])
    optimizer = class_row(params, consolidate_every=64)
    silent = class_row(make_params([(40, 30)]), consolidate_every=64)
    for step, grads in enumerate(alike(64 * 6 + 50, 0.0)):
        rises = 1.02 ** max(0, step - 64 * 6)
        noise = 1.0 + 0.4 * (-1) ** step
        optimizer.tell(loss=noise * 0.8 ** (min(step, 64 * 6 - 1) // 64) * rises)
        drive(optimizer, params, [grads])
        drive(silent, silent.param_groups[0]["params"], [grads])
        if step == 64 * 6 - 1:
            assert share(optimizer) == 0.0
    assert optimizer.diagnostics()["changes"] == 0.0
    assert share(optimizer) == pytest.approx(share(silent), rel=0.1)
    assert share(silent) > (3 / clock.RAMP) ** 2


def test_the_slope_is_not_measured_where_nothing_hears_it(class_row: Row) -> None:
    for settings in ({"consolidate_every": None}, {"consolidate_every": 20}):
        params = make_params([(40, 30)])
        optimizer = class_row(params, **settings)
        drive(optimizer, params, alike(45, 0.5))
        state = optimizer.param_groups[0]["threshold"]
        assert (state["slope_steps"] > 0.0) == (settings["consolidate_every"] is not None)
        optimizer.consolidate()
        assert state["slope_steps"] == 0.0
        drive(optimizer, params, alike(45, 0.5))
        assert state["slope_steps"] == 0.0


# ---------------------------------------------------------------- the unit of the penalty


def unit(optimizer: Any) -> float:
    return float(optimizer.param_groups[0]["threshold"]["unit"])


def test_the_unit_is_the_largest_lasting_norm(class_row: Row) -> None:
    params = make_params([(4, 3)])
    optimizer = class_row(params, consolidate_every=None, alpha=1e3)
    grad = torch.ones(4, 3)
    size = float(grad.norm())

    def steps(count: int, scale: float) -> None:
        drive(optimizer, params, [[grad * scale]] * count)

    steps(20, 1.0)
    assert unit(optimizer) == 0.0
    optimizer.consolidate()
    assert unit(optimizer) == pytest.approx(size)
    steps(1, 50.0)
    assert unit(optimizer) == pytest.approx(size), "an outlier is none"
    steps(1, 1.0)
    assert unit(optimizer) == pytest.approx(size)
    steps(2, 3.0)
    assert unit(optimizer) == pytest.approx(3.0 * size), "what lasts for two steps is"
    steps(20, 0.1)
    assert unit(optimizer) == pytest.approx(3.0 * size)


def test_the_unit_decays_with_each_consolidation(class_row: Row) -> None:
    params = make_params([(4, 3)])
    optimizer = class_row(params, consolidate_every=None)
    grad = torch.ones(4, 3)
    drive(optimizer, params, [[grad]] * 20)
    optimizer.consolidate()
    largest = unit(optimizer)
    for count in range(1, 4):
        drive(optimizer, params, [[0.01 * grad]] * 8)
        optimizer.consolidate()
        assert unit(optimizer) == pytest.approx(largest * clock.UNIT_RETENTION**count)
        # Nothing is new, so that nothing changes.
        optimizer.consolidate()
        assert unit(optimizer) == pytest.approx(largest * clock.UNIT_RETENTION**count)
    drive(optimizer, params, [[grad]] * 20)
    optimizer.consolidate()
    assert unit(optimizer) == pytest.approx(float(grad.norm()))


@pytest.mark.parametrize(("loud", "lasts"), [(2, False), (3, True), (20, True)])
def test_a_bad_batch_shown_twice_does_not_raise_the_unit(
    class_row: Row, loud: int, lasts: bool
) -> None:
    params = make_params([(4, 3)])
    optimizer = class_row(params)
    scales = [1.0 + 0.1 * (step % 2) for step in range(80)]
    size = float(torch.ones(4, 3).norm())
    drive(optimizer, params, [[torch.full((4, 3), scale)] for scale in scales])
    drive(optimizer, params, [[torch.full((4, 3), 50.0)]] * loud)
    assert optimizer.diagnostics()["changes"] == 1.0
    assert unit(optimizer) == pytest.approx(50.0 * size)
    drive(optimizer, params, [[torch.full((4, 3), scale)] for scale in scales[:10]])
    assert unit(optimizer) == pytest.approx((50.0 if lasts else 1.1) * size, rel=0.1)


def test_a_change_that_is_learned_in_a_few_steps_keeps_its_unit(class_row: Row) -> None:
    """An adapter at a high rate is at its usual norm on other data after three steps."""
    params = make_params([(4, 3)])
    optimizer = class_row(params)
    scales = [1.0 + 0.1 * (step % 2) for step in range(80)]
    for scale in (*scales, 27.0, 21.0, 7.0, *scales[:10]):
        drive(optimizer, params, [[torch.full((4, 3), scale)]])
    assert optimizer.diagnostics()["changes"] == 1.0
    assert unit(optimizer) == pytest.approx(21.0 * float(torch.ones(4, 3).norm()))
