"""Where nothing is protected, SAL is its base optimizer, bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.testing.drive import (
    CLOCK,
    assert_equal,
    assert_near,
    clone_params,
    consolidations,
    drive,
    make_params,
    profile,
    seasoned,
    step_with,
    stream,
)
from tests.testing.rows import KINDS, ROWS, PlainLion, Row

Mode = dict[str, Any]
DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.complex128,
)
SHAPES = ((7, 5), (33,), (2, 3, 4), (1, 1), (), (0, 2))

# What a base optimizer offers beyond its row's settings.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "SALAdam": (
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "amsgrad": True},
        {"betas": (0.0, 0.5), "eps": 1e-3},
        {"weight_decay": 0.1, "maximize": True},
    ),
    "SALAdamW": (
        {"amsgrad": False},
        {"weight_decay": 0.0},
        {"betas": (0.5, 0.9)},
        {"maximize": True},
    ),
    "SALSGD": ({"weight_decay": 0.0}, {"maximize": True}),
    "SALSGD-momentum": (
        {"dampening": 0.0},
        {"dampening": 0.9},
        {"dampening": 1.0},
        {"weight_decay": 0.0, "maximize": True},
    ),
    "SALSGD-nesterov": ({"weight_decay": 0.0}, {"momentum": 0.5, "maximize": True}),
    "SALLion": ({"weight_decay": 0.0}, {"betas": (0.5, 0.9)}, {"maximize": True}),
    "SALMuon": (
        {"weight_decay": 0.0, "adjust_lr_fn": None},
        {"nesterov": False, "momentum": 0.5, "ns_steps": 3, "betas": (0.5, 0.9)},
        {"eps": 1e-3, "maximize": True},
    ),
}


def test_every_row_has_its_peer() -> None:
    assert set(VARIANTS) - {"SALMuon"} == {row.name for row in ROWS} - {"SALMuon"}
    assert [row.name for row in ROWS if row.peer is PlainLion] == ["SALLion"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_protection_zero(row: Row, mode: Mode, dtype: torch.dtype) -> None:
    if row.cls.__name__.startswith("SALAdam") and dtype is torch.float16:
        # In float16 the square of a small gradient is 0 and so is the usual eps.
        mode = {**mode, "eps": 1e-3}
    params = make_params(SHAPES, dtype)
    twin = clone_params(params)
    optimizer = row(params, protection=0, **mode)
    base = row.base(twin, **mode)
    # Several hundred steps where the dtype is what most people train with.
    steps = 300 if dtype is torch.float32 else 90
    grads = stream(params, profile(steps, (60, 260)))
    found = []
    for index, now in enumerate(grads):
        found += [index] if drive(optimizer, params, [now]) else []
        step_with(base, twin, now)
        if index == 75:
            optimizer.consolidate()
        if index % 50 == 0 or index == steps - 1:
            assert_equal(params, twin, f"step {index}")
    assert found == []
    assert consolidations(optimizer) == 0
    # Nothing is kept beside what the base keeps.
    for param, other in zip(params, twin, strict=True):
        assert set(optimizer.state[param]) == set(base.state[other])
    assert all(bool(torch.isfinite(param).all()) for param in params)
    assert not torch.equal(params[0], make_params(SHAPES, dtype)[0])


@pytest.mark.parametrize(
    ("row", "changes"),
    [(row, changes) for row in ROWS for changes in VARIANTS[row.name]],
    ids=str,
)
@pytest.mark.parametrize("protection", [0.0, 0.3])
def test_variants(row: Row, changes: Mode, mode: Mode, protection: float) -> None:
    params, twin = make_params(), make_params()
    optimizer = row(params, protection=protection, **mode, **changes)
    base = row.base(twin, **mode, **changes)
    grads = stream(params, profile(100, (60,)))
    # With protection, until the first consolidation.
    until = CLOCK if protection else 100
    for now in grads[:until]:
        step_with(optimizer, params, now)
        step_with(base, twin, now)
    assert consolidations(optimizer) == 0
    assert_equal(params, twin)
    assert not torch.equal(params[0], make_params()[0])


def test_fused_is_the_base_until_the_first_consolidation(row: Row) -> None:
    if not row.from_torch:
        pytest.skip("Lion has no fused form")
    params, twin = make_params(), make_params()
    optimizer, base = row(params, fused=True), row.base(twin, fused=True)
    grads = stream(params, profile(90))
    for now in grads[:CLOCK]:
        step_with(optimizer, params, now)
        step_with(base, twin, now)
    assert_equal(params, twin)
    assert drive(optimizer, params, grads[CLOCK:]) == [0]
    loop = make_params()
    drive(row(loop, foreach=False), loop, grads)
    assert_near(params, loop, rtol=1e-4, atol=1e-5)


def test_without_a_clock_it_is_the_base_until_a_change(row: Row, mode: Mode) -> None:
    params, twin = make_params(), make_params()
    optimizer, base = row(params, consolidate_every=None, **mode), row.base(twin, **mode)
    grads = stream(params, profile(170, (150,)))
    for now in grads[:151]:
        step_with(optimizer, params, now)
        step_with(base, twin, now)
    assert_equal(params, twin)
    assert drive(optimizer, params, grads[151:]) == [0]
    assert optimizer.diagnostics()["changes"] == 1
    drive(base, twin, grads[151:])
    assert not torch.equal(params[0], twin[0])


@pytest.mark.parametrize("protection", [0.1, 1e4])
@pytest.mark.parametrize("importance", KINDS)
def test_before_the_first_consolidation(
    class_row: Row, mode: Mode, protection: float, importance: str
) -> None:
    params, twin = make_params(), make_params()
    row = class_row
    optimizer = row(params, protection=protection, importance=importance, pull=10.0, **mode)
    base = row.base(twin, **mode)
    grads = stream(params, profile(75, (60,)))
    for now in grads[:CLOCK]:
        step_with(optimizer, params, now)
        step_with(base, twin, now)
    assert consolidations(optimizer) == 0
    assert_equal(params, twin)
    for now in grads[CLOCK:]:
        step_with(optimizer, params, now)
        step_with(base, twin, now)
    assert consolidations(optimizer) == 1
    assert not torch.equal(params[0], twin[0]), "then protection acts"


def test_a_head_first_used_after_a_consolidation(row: Row, mode: Mode) -> None:
    """It was there from the start, without a gradient: no evidence, no gate, no pull."""
    body, head = make_params(), make_params([(4, 3), (3,)], seed=5)
    twin = clone_params(head)
    optimizer = row([*body, *head], **mode)
    base = row.base(twin, **mode)
    everything = [*body, *head]
    for index, now in enumerate(stream(everything, profile(110, (60,)))):
        used = index >= 70
        late = now[len(body) :] if used else [None] * len(head)
        step_with(optimizer, everything, [*now[: len(body)], *late])
        if used:
            step_with(base, twin, late)
        assert consolidations(optimizer) == (index >= CLOCK)
    assert_equal(head, twin)
    assert optimizer.stability(body[0]).max() > 0
    assert optimizer.stability(head[0]).max() == 0


def test_lr_schedulers(row: Row, mode: Mode) -> None:
    """They change lr, and OneCycle momentum or beta1, in the groups; so does the base."""
    schedulers = torch.optim.lr_scheduler
    cycle = "momentum" in row.kwargs or row.has_betas
    makers = [
        lambda o: schedulers.StepLR(o, step_size=7, gamma=0.5),
        lambda o: schedulers.CosineAnnealingLR(o, T_max=40),
        lambda o: schedulers.LinearLR(o, start_factor=0.01, total_iters=20),
        lambda o: schedulers.ExponentialLR(o, gamma=0.95),
        lambda o: schedulers.ReduceLROnPlateau(o, patience=2),
        lambda o: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=60, cycle_momentum=cycle),
        lambda o: schedulers.SequentialLR(
            o,
            [schedulers.LinearLR(o, 0.1, total_iters=10), schedulers.CosineAnnealingLR(o, 40)],
            milestones=[10],
        ),
    ]
    for make in makers:
        params, twin = make_params(), make_params()
        optimizer, base = row(params, **mode), row.base(twin, **mode)
        ours, theirs = make(optimizer), make(base)
        rates = []
        for now in stream(params, profile(25)):
            step_with(optimizer, params, now)
            step_with(base, twin, now)
            for scheduler in (ours, theirs):
                if isinstance(scheduler, schedulers.ReduceLROnPlateau):
                    scheduler.step(1.0)
                else:
                    scheduler.step()
            assert optimizer.param_groups[0]["lr"] == base.param_groups[0]["lr"]
            rates.append(optimizer.param_groups[0]["lr"])
        assert len(set(rates)) > 1
        assert_equal(params, twin)
        assert consolidations(optimizer) == 0


def _by_mode(row: Row, groups: int, foreach: bool, **kwargs: Any) -> Any:
    params = make_params(((3, 4), (5,), (2, 2, 2), (), (0,), (1,), (8, 3)))
    if groups > 1:
        arguments: Any = [
            {"params": params[:2], "lr": 0.02, "weight_decay": 0.05},
            {"params": params[2:5], "protection": 0.5},
            {"params": params[5:], "pull": 0.0},
        ]
    else:
        arguments = params
    optimizer = row(arguments, foreach=foreach, **kwargs)
    found = drive(optimizer, params, stream(params, profile(90, (50,))))
    return params, optimizer, found


@pytest.mark.parametrize(("importance", "groups"), list(itertools.product(KINDS, (1, 3))))
def test_foreach_equals_the_loop(row: Row, importance: str, groups: int) -> None:
    runs = [_by_mode(row, groups, foreach, importance=importance) for foreach in (False, True)]
    (loop, one, found), (lists, other, same) = runs
    assert found == same
    assert len(found) == 1
    for left, right in zip(loop, lists, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(one.stability(left), other.stability(right))
    assert one.stability(loop[0]).max() > 0


def test_mixed_dtypes_in_one_optimizer(row: Row, mode: Mode) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.complex64)
    params = [make_params([(4, 3)], dtype, seed=i)[0] for i, dtype in enumerate(dtypes)]
    twin = clone_params(params)
    optimizer = row(params, **mode)
    base = row.base(twin, **mode)
    grads = stream(params, profile(90, (60,)))
    for now in grads[:CLOCK]:
        step_with(optimizer, params, now)
        step_with(base, twin, now)
    assert_equal(params, twin)
    assert drive(optimizer, params, grads[CLOCK:]) == [0]
    assert all(bool(torch.isfinite(param).all()) for param in params)
    assert all(float(optimizer.stability(param).max()) > 0 for param in params)


def test_no_shared_clock_with_the_base(row: Row, mode: Mode) -> None:
    """Evidence from one optimizer never reaches another of the same class."""
    seasoned(row, **mode)
    params, twin = make_params(), make_params()
    optimizer, base = row(params, **mode), row.base(twin, **mode)
    for now in stream(params, profile(20)):
        step_with(optimizer, params, now)
        step_with(base, twin, now)
    assert_equal(params, twin)
