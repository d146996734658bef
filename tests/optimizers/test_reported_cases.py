"""Cases that users of optimizers report: each is a line of the table in ``docs/guarantees.md``."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from sal_optim import SALSGD, CommunicationLayer, SALAdam, SALAdamW
from sal_optim.layer import layer_of
from tests.testing.drive import (
    assert_equal,
    assert_near,
    assert_same_state,
    clone_params,
    drive,
    make_params,
    profile,
    reload,
    seasoned,
    snapshot,
    step_with,
    stream,
)
from tests.testing.rows import Row


def grads_of(params: list[Tensor], steps: int, seed: int = 3) -> list[list[Tensor]]:
    return stream(params, profile(steps), seed=seed)


def held(optimizer: Any, param: Tensor) -> float:
    return float((layer_of(optimizer) or optimizer).stability(param).max())


def test_a_schedule_that_writes_betas_resumes_exactly() -> None:
    """OneCycleLR writes ``lr`` and ``betas`` in each step."""
    ends = []
    for cut in (False, True):
        params = make_params()
        optimizer = SALAdamW(params, lr=0.01)
        schedule = OneCycleLR(optimizer, max_lr=0.02, total_steps=100)
        for index, now in enumerate(grads_of(params, 90)):
            if cut and index == 70:
                saved = reload(optimizer.state_dict()), schedule.state_dict()
                params = clone_params(params)
                optimizer = SALAdamW(params, lr=0.5)
                schedule = OneCycleLR(optimizer, max_lr=0.02, total_steps=100)
                optimizer.load_state_dict(saved[0])
                schedule.load_state_dict(saved[1])
            step_with(optimizer, params, now)
            schedule.step()
        assert optimizer.param_groups[0]["betas"][0] != 0.9
        ends.append((params, snapshot(optimizer)))
    assert_equal(*[params for params, _ in ends])
    assert_same_state(*[state for _, state in ends])


def test_a_schedule_that_writes_momentum() -> None:
    params, twin = make_params(), make_params()
    one, other = SALSGD(params, lr=0.01, momentum=0.9), torch.optim.SGD(twin, 0.01, momentum=0.9)
    schedules = [
        CyclicLR(opt, 0.001, 0.01, step_size_up=5, base_momentum=0.8, max_momentum=0.9)
        for opt in (one, other)
    ]
    for now in grads_of(params, 43):
        step_with(one, params, now)
        step_with(other, twin, now)
        for schedule in schedules:
            schedule.step()
    assert_equal(params, twin)
    assert one.param_groups[0]["momentum"] == other.param_groups[0]["momentum"] != 0.9


def test_a_parameter_of_two_optimizers(class_row: Row) -> None:
    """Each has its own state and importance; neither sees the other's."""
    params = make_params()
    one, other = class_row(params), class_row(params[:1])
    drive(one, params, grads_of(params, 65))
    before = snapshot(one)
    drive(other, params[:1], grads_of(params[:1], 20))
    assert_same_state(snapshot(one), before)
    assert held(one, params[0]) > 0.0
    assert held(other, params[0]) == 0.0


def test_a_copy_amid_observe_is_an_optimizer_that_steps(class_row: Row) -> None:
    params, optimizer = seasoned(class_row)
    with pytest.warns(UserWarning, match="saw no step"), optimizer.observe():
        twin, copied = copy.deepcopy((params, optimizer))
    before = clone_params(twin)
    step_with(copied, twin, grads_of(twin, 1)[0])
    assert not torch.equal(twin[0], before[0])


def test_gradients_zeroed_in_place_or_removed(class_row: Row) -> None:
    """``set_to_none=False`` leaves zeros, which tell nothing of the data."""
    params, optimizer = seasoned(class_row)
    counted = optimizer.param_groups[0]["threshold"]["total"]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert all(param.grad is not None and not param.grad.any() for param in params)
    optimizer.zero_grad()
    before = clone_params(params)
    optimizer.step()
    assert_equal(params, before)
    assert optimizer.param_groups[0]["threshold"]["total"] == counted


def test_a_group_added_after_a_load_is_saved_too(class_row: Row) -> None:
    params, optimizer = seasoned(class_row)
    twin = clone_params(params)
    other = class_row(twin, consolidate_every=None)
    other.load_state_dict(reload(optimizer.state_dict()))
    head, head_twin = make_params([(3, 3)], seed=8), make_params([(3, 3)], seed=8)
    other.add_param_group({"params": head})
    drive(other, [*twin, *head], grads_of([*twin, *head], 20))
    third = class_row([{"params": clone_params(twin)}, {"params": head_twin}],
                      consolidate_every=None)  # fmt: skip
    third.load_state_dict(reload(other.state_dict()))
    assert_same_state(snapshot(third), snapshot(other))


@pytest.mark.parametrize("steps_before", [0, 5])
def test_a_load_before_or_after_the_first_step(class_row: Row, steps_before: int) -> None:
    params, optimizer = seasoned(class_row)
    twin = clone_params(params)
    other = class_row(twin, consolidate_every=None)
    drive(other, twin, grads_of(twin, steps_before, seed=7))
    with torch.no_grad():
        for one, its in zip(params, twin, strict=True):
            its.copy_(one)
    other.load_state_dict(reload(optimizer.state_dict()))
    grads = grads_of(params, 20)
    drive(optimizer, params, grads)
    drive(other, twin, grads)
    assert_equal(params, twin)


def test_a_tensor_as_learning_rate_is_not_replaced(class_row: Row) -> None:
    params = make_params()
    lr = torch.tensor(0.01)
    optimizer = class_row(params, lr=lr, foreach=False)
    drive(optimizer, params, grads_of(params, 65))
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(0.01)
    assert held(optimizer, params[0]) > 0.0


def test_float64_as_default_dtype(class_row: Row) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        params = make_params(dtype=torch.float64)
        optimizer = class_row(params)
        drive(optimizer, params, grads_of(params, 65))
        assert optimizer.controller.importance(params[0])[0].dtype == torch.float64
        other = class_row(clone_params(params))
        other.load_state_dict(reload(optimizer.state_dict()))
        assert_same_state(snapshot(other), snapshot(optimizer))
    finally:
        torch.set_default_dtype(torch.float32)


def layered(params: list[Tensor]) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(params, lr=0.01)
    CommunicationLayer(optimizer)
    return optimizer


MAKERS = {"SALAdam": functools.partial(SALAdam, lr=0.01), "layer": layered}


@pytest.mark.parametrize("name", MAKERS)
def test_a_closure_under_no_grad(name: str) -> None:
    params = make_params()
    optimizer = MAKERS[name](params)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([param.square().sum() for param in params]).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [float(optimizer.step(closure)) for _ in range(65)]  # type: ignore[arg-type]
    assert losses[-1] < losses[0]
    assert held(optimizer, params[0]) > 0.0


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_a_closure_changes_nothing(name: str, error: type[BaseException]) -> None:
    params = make_params()
    optimizer = MAKERS[name](params)
    drive(optimizer, params, grads_of(params, 65))
    before, still = snapshot(optimizer), clone_params(params)

    def closure() -> Tensor:
        raise error("out of memory")

    with pytest.raises(error, match="out of memory"):
        optimizer.step(closure)  # type: ignore[arg-type]
    assert_equal(params, still)
    assert_same_state(snapshot(optimizer), before)
    drive(optimizer, params, grads_of(params, 4))
    assert not torch.equal(params[0], still[0])


def test_an_interrupt_amid_a_step_puts_the_gradients_back(
    class_row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, optimizer = seasoned(class_row)
    grads = grads_of(params, 1)[0]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(optimizer), "_base_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step_with(optimizer, params, grads)
    assert_equal([param.grad for param in params], grads)  # type: ignore[misc]
    monkeypatch.undo()
    step_with(optimizer, params, grads)


@pytest.mark.parametrize("name", MAKERS)
def test_hooks_run_once_a_step_and_see_the_gradients_as_they_are(name: str) -> None:
    params = make_params()
    optimizer = MAKERS[name](params)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "mine": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: {name: value for name, value in state.items() if name != "mine"}
    )
    drive(optimizer, params, grads_of(params, 62))
    assert seen == ["before", "after"] * 62
    grads = grads_of(params, 1)[0]
    step_with(optimizer, params, grads)
    assert_equal([param.grad for param in params], grads)  # type: ignore[misc]
    saved = optimizer.state_dict()
    assert saved["mine"] == 1
    optimizer.load_state_dict(saved)


def test_channels_last_weights_move_as_contiguous_ones(class_row: Row) -> None:
    (plain,) = make_params([(8, 4, 3, 3)])
    (strided,) = clone_params([plain])
    strided = strided.detach().to(memory_format=torch.channels_last).requires_grad_()
    one, other = class_row([plain]), class_row([strided])
    for now in grads_of([plain], 90):
        step_with(one, [plain], now)
        step_with(other, [strided], [now[0].to(memory_format=torch.channels_last)])
    assert strided.is_contiguous(memory_format=torch.channels_last)
    assert_near([plain], [strided], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-15, 1e-9, 1e9, 1e15])
def test_very_small_and_very_large_gradients(scale: float) -> None:
    """Importance has a mean of 1 whatever their size."""
    params = make_params()
    optimizer = SALSGD(params, lr=1e-3 / scale)
    drive(optimizer, params, [[grad * scale for grad in now] for now in grads_of(params, 90)])
    sizes = [optimizer.controller.importance(param)[0] for param in params]
    mean = sum(float(size.sum()) for size in sizes) / sum(size.numel() for size in sizes)
    assert mean == pytest.approx(1.0, rel=0.2)
    assert all(bool(param.isfinite().all()) for param in params)
    assert all(math.isfinite(value) for value in optimizer.diagnostics().values())


@pytest.mark.parametrize("protection", [0.0, 10.0])
def test_moments_that_lie_otherwise_than_their_parameter(protection: float) -> None:
    """A checkpoint of a contiguous model, loaded into one in channels_last."""
    (plain,) = make_params([(8, 4, 3, 3)])
    first = SALAdam([plain], lr=0.01, protection=protection)
    drive(first, [plain], grads_of([plain], 65))
    strided = plain.detach().to(memory_format=torch.channels_last).requires_grad_()
    other = SALAdam([strided], lr=0.01, protection=protection)
    other.load_state_dict(reload(first.state_dict()))
    for now in grads_of([plain], 20, seed=5):
        step_with(first, [plain], now)
        step_with(other, [strided], [now[0].to(memory_format=torch.channels_last)])
    assert_near([plain], [strided], rtol=1e-4, atol=1e-5)
