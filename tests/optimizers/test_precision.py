"""Precision: small floats, autocast, loss scaling, clipping and accumulation in real training.

What a checkpoint keeps is in test_behaviours_checkpoints.py, equality with the base optimizers in
each dtype in test_base.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim import SALOptimizer
from sal_optim.detection.grad_norm import norms
from sal_optim.protection.clock import INTERVAL, LEAST, is_turn
from tests.testing.drive import (
    assert_equal,
    assert_same_state,
    clone_params,
    consolidations,
    drive,
    make_params,
    profile,
    reload,
    seeded,
    snapshot,
    step_with,
    stream,
)
from tests.testing.rows import KINDS, Row

SMALL = (torch.bfloat16, torch.float16)


# Without a clock all consolidations are changes.
DIAGONAL: dict[str, Any] = {"importance": "diagonal", "consolidate_every": None}


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_the_change_is_found_in_small_floats(class_row: Row, dtype: torch.dtype) -> None:
    """At the step where float32 finds it, with nearly its importance."""
    wide, small = make_params(), make_params(dtype=dtype)
    kwargs = {"eps": 1e-3} if class_row.moments[:2] == ("exp_avg", "exp_avg_sq") else {}
    one, other = class_row(wide, **DIAGONAL, **kwargs), class_row(small, **DIAGONAL, **kwargs)
    grads = stream(wide, profile(80, (60,)))
    halves = [[grad.to(dtype) for grad in now] for now in grads]
    assert drive(one, wide, grads) == drive(other, small, halves) == [61]
    for left, right in zip(wide, small, strict=True):
        kept = other.state[right]["evidence"]
        assert kept.dtype is torch.float32
        torch.testing.assert_close(one.state[left]["evidence"], kept, rtol=0.03, atol=0.03)


def test_sums_outgrow_small_floats(class_row: Row) -> None:
    """In bfloat16, 300 ones added one by one make 256; importance is kept in float32."""
    param = torch.ones(4, dtype=torch.bfloat16).requires_grad_()
    optimizer = class_row([param], foreach=False, consolidate_every=None)
    for _ in range(300 * INTERVAL):
        step_with(optimizer, [param], [torch.ones(4, dtype=torch.bfloat16)])
    gathered = float(sum(is_turn(step, INTERVAL) for step in range(300 * INTERVAL)))
    assert gathered > 256.0
    assert optimizer.state[param]["pending"].tolist() == [gathered] * 4
    resumed = class_row([clone_params([param])[0]], consolidate_every=None)
    resumed.load_state_dict(reload(optimizer.state_dict()))
    (state,) = resumed.state.values()
    assert state["pending"].dtype is torch.float32
    assert state["pending"].tolist() == [gathered] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_sums_in_float64_for_float64(class_row: Row, kind: str) -> None:
    params = make_params(dtype=torch.float64)
    optimizer = class_row(params, importance=kind)
    assert len(drive(optimizer, params, stream(params, profile(LEAST)))) == 1
    for state in optimizer.state.values():
        tensors = [v for name, v in state.items() if isinstance(v, Tensor) and name != "step"]
        assert {value.dtype for value in tensors} == {torch.float64}
        assert "anchor" in state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("magnitude", [1e-12, 1e-6, 1e12, 1e18])
def test_the_scale_of_the_gradient(class_row: Row, magnitude: float, kind: str) -> None:
    """Importance and detection are free of it, as far as float32 holds the gradient's square."""
    params, twin = make_params(), make_params()
    options = {"importance": kind, "consolidate_every": None}
    one, other = class_row(params, **options), class_row(twin, **options)
    grads = stream(params, profile(80, (60,)))
    assert drive(one, params, grads) == [61]
    found = drive(other, twin, [[grad * magnitude for grad in now] for now in grads])
    assert found == [61]
    for left, right in zip(params, twin, strict=True):
        torch.testing.assert_close(
            one.stability(left), other.stability(right), rtol=1e-3, atol=1e-5
        )


class Task:
    """A small regression whose data changes; the same batches for every caller."""

    def __init__(self, row: Row, **kwargs: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        self.optimizer: SALOptimizer = row(self.model.parameters(), **kwargs)
        self.generator = seeded(5)
        self.rule = torch.randn(6, 2, generator=self.generator)

    @property
    def params(self) -> list[Tensor]:
        return list(self.model.parameters())

    def batch(self, size: int = 16) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(size, 6, generator=self.generator)
        return inputs, inputs @ self.rule

    def loss(self, inputs: Tensor, wanted: Tensor) -> Tensor:
        return (self.model(inputs).float() - wanted).square().mean()


def test_autocast_with_a_grad_scaler(class_row: Row) -> None:
    task = Task(class_row)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=25)
    skipped, first = 0, 0.0
    for step in range(80):
        inputs, wanted = task.batch()
        task.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = task.model(inputs)
        assert predicted.dtype is torch.bfloat16
        loss = (predicted.float() - wanted).square().mean()
        scaler.scale(loss).backward()
        before, still = snapshot(task.optimizer), clone_params(task.params)
        if step in (0, 17, 60):  # before any state, and amid a run
            task.params[1].grad.fill_(torch.inf)  # type: ignore[union-attr]
        scaler.unscale_(task.optimizer)
        torch.nn.utils.clip_grad_norm_(task.params, 10.0)
        scaler.step(task.optimizer)
        if step in (0, 17, 60):
            skipped += 1
            assert_equal(task.params, still)
            assert_same_state(snapshot(task.optimizer), before)
        scaler.update()
        first = first or loss.item()
    assert skipped == 3
    assert task.optimizer.param_groups[0]["threshold"]["total"] == 77
    assert all(bool(torch.isfinite(param).all()) for param in task.params)
    assert loss.item() < first
    steps = {float(s["step"]) for s in task.optimizer.state.values() if "step" in s}
    assert steps <= {77.0}


def test_accumulation_equals_the_whole_batch(class_row: Row) -> None:
    whole, parts = Task(class_row), Task(class_row)
    for _ in range(LEAST):
        inputs, wanted = whole.batch(16)
        whole.optimizer.zero_grad()
        whole.loss(inputs, wanted).backward()
        whole.optimizer.step()
        parts.optimizer.zero_grad()
        for index in range(4):
            part = slice(4 * index, 4 * index + 4)
            (parts.loss(inputs[part], wanted[part]) / 4).backward()
        parts.optimizer.step()
    assert consolidations(whole.optimizer) == consolidations(parts.optimizer) == 1
    if class_row.name != "SALLion":  # a sign turns rounding into steps
        torch.testing.assert_close(whole.params, parts.params, rtol=1e-3, atol=1e-4)


def test_complex_importance_is_of_parts(class_row: Row) -> None:
    params = make_params(dtype=torch.complex64)
    optimizer = class_row(params, **DIAGONAL)
    assert len(drive(optimizer, params, stream(params, profile(80, (60,))))) == 1
    for param in params:
        state = optimizer.state[param]
        assert state["evidence"].shape == (*param.shape, 2)
        assert state["evidence"].dtype is torch.float32
        assert optimizer.stability(param).shape == (*param.shape, 2)
    new = clone_params(params)
    resumed = class_row(new, **DIAGONAL)
    resumed.load_state_dict(reload(optimizer.state_dict()))
    assert_same_state(snapshot(resumed), snapshot(optimizer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_norms_of_large_tensors(dtype: torch.dtype) -> None:
    """Beside small ones and none, and of any strides."""
    tensors = [
        torch.randn(shape, dtype=dtype)
        for shape in ((1 << 17,), (3, 1 << 16), (200_001,), (400, 500), (5,), (0,))
    ]
    tensors[3] = tensors[3].t()
    found = norms(tensors, [None] * len(tensors))
    exact = [float(tensor.double().norm()) for tensor in tensors]
    assert [float(norm) for norm in found] == pytest.approx(exact, rel=1e-5)
    assert norms([], []) == []
