"""On every device that is here: the result of a CPU's for-loop, to rounding; no wait in a step.

Without an accelerator this compares the modes of a CPU with each other, so that it is never idle.
`make gpu` runs it, and the timings, where there is a card.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor

from sal_optim import SALAdamW
from tests.testing.drive import (
    assert_near,
    clone_params,
    consolidations,
    make_params,
    profile,
    step_with,
    stream,
)
from tests.testing.rows import CLASSES, KINDS, Row

DEVICES = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
MODES = [{"foreach": True}, {"foreach": False}, {}]


def states(optimizer: torch.optim.Optimizer, param: Tensor) -> dict[str, Tensor]:
    values = optimizer.state[param].items()
    return {name: value.cpu() for name, value in values if isinstance(value, Tensor)}


@pytest.mark.parametrize("row", CLASSES, ids=str)
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_a_device_gives_what_a_cpu_gives(row: Row, mode: dict[str, bool], device: str) -> None:
    twins = make_params()
    params = [twin.detach().to(device).requires_grad_() for twin in clone_params(twins)]
    # At a detected change an accelerator consolidates one step later, so by the clock alone.
    settings = {"consolidate_every": 20, "alpha": 1e6}
    there, here = row(params, **mode, **settings), row(twins, foreach=False, **settings)
    for step, now in enumerate(stream(twins, profile(120, (50, 100)))):
        step_with(here, twins, now)
        step_with(there, params, [grad.to(device) for grad in now])
        if step == 70:  # a checkpoint on the way
            there.load_state_dict(copy.deepcopy(there.state_dict()))
    assert consolidations(here) == consolidations(there) == 6
    for param, twin in zip(params, twins, strict=True):
        assert_near([param.cpu()], [twin], rtol=1e-4, atol=1e-6)
        mine, theirs = states(there, param), states(here, twin)
        assert mine.keys() == theirs.keys()
        for name in theirs:
            assert_near([mine[name]], [theirs[name]], rtol=1e-3, atol=1e-6)
            if name != "step":
                assert there.state[param][name].device == param.device


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_each_kind_of_importance(kind: str, state_dtype: str | None, device: str) -> None:
    """Also with sides that are sketched; through consolidations, a restore and what is shown."""
    shapes = [(40, 50), (6, 5), (7,)]
    twins = make_params(shapes)
    params = [twin.detach().to(device).requires_grad_() for twin in clone_params(twins)]
    settings = {"consolidate_every": 20, "alpha": 1e6, "importance": kind, "rank": 4}
    there = SALAdamW(params, state_dtype=state_dtype, **settings)
    here = SALAdamW(twins, state_dtype=state_dtype, foreach=False, **settings)
    for now in stream(twins, profile(60)):
        step_with(here, twins, now)
        step_with(there, params, [grad.to(device) for grad in now])
    for optimizer in (here, there):
        optimizer.restore(0.5)
    tolerance = (
        {"rtol": 1e-3, "atol": 1e-5} if state_dtype is None else {"rtol": 0.02, "atol": 1e-3}
    )
    assert_near([param.cpu() for param in params], twins, **tolerance)
    for param, twin in zip(params, twins, strict=True):
        assert_near([there.stability(param).cpu()], [here.stability(twin)], **tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a CUDA graph")
@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_a_step_is_not_captured_into_a_cuda_graph(row: Row) -> None:
    params = [param.detach().cuda().requires_grad_() for param in make_params()]
    optimizer = row(params)
    grads = [torch.ones_like(param) for param in params]
    step_with(optimizer, params, grads)
    before = clone_params(params)
    with (
        pytest.raises(RuntimeError, match=r"can't be captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()
    assert_near(params, before, rtol=0.0, atol=0.0)
    step_with(optimizer, params, grads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks CUDA itself for its waits")
@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_cuda_counts_no_wait_in_a_step(row: Row) -> None:
    params = [param.detach().cuda().requires_grad_() for param in make_params([(8, 8)] * 20)]
    optimizer = row(params)
    grads = [torch.randn_like(param) for param in params]
    for _ in range(10):
        step_with(optimizer, params, grads)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step_with(optimizer, params, grads)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not [str(w.message) for w in caught if "synchroniz" in str(w.message)]
