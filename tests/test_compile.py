"""compile=True where native.py does not serve: the eager result, few kernels, or none.

Kernels are counted by the compiler's own counters. Building one takes seconds, so that the classes
share what they can: each runs once through all that may change.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from sal_optim import SALAdam, SALOptimizer, compiled, native, pieces
from tests.testing.drive import (
    assert_equal,
    assert_near,
    clone_params,
    consolidations,
    drive_both,
    make_params,
    profile,
    snapshot,
    step_with,
    stream,
)
from tests.testing.rows import CLASSES, Row

pytestmark = pytest.mark.timeout(900)

CHANGE = 60


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels for small tensors too; what a test leaves in the module is not the next one's."""
    monkeypatch.setattr(native, "serve", lambda works, base: None)
    monkeypatch.setattr(pieces, "KERNEL", 2)
    monkeypatch.setattr(compiled, "_unavailable", False)
    compiled._kernels.cache_clear()
    compiled._warn_of_many.cache_clear()
    torch.compiler.reset()
    counters.clear()
    yield
    compiled._kernels.cache_clear()


def schedule(optimizer: SALOptimizer, step: int) -> None:
    """Everything that changes from step to step, in each step."""
    for group in optimizer.param_groups:
        group["lr"] *= 0.995
        group["protection"] = 0.1 + 0.001 * step
        group["pull"] = 10.0 - 0.01 * step
        if optimizer._decoupled(group):
            group["weight_decay"] *= 0.99


@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_the_eager_result_without_new_kernels(row: Row) -> None:
    shapes = [(6, 5), (5,), (3, 2, 4), (1,), ()]
    params = make_params(shapes)
    params[2] = params[2].detach().permute(2, 0, 1).requires_grad_()  # dense, not contiguous
    twins = [p.detach().clone().requires_grad_() for p in params]
    fast, slow = row(params, compile=True), row(twins)
    late: list[Tensor] = []
    counts = []
    grads = stream([*params, *make_params([(4, 7)])], profile(CHANGE + 40, (CHANGE,)))
    for step, now in enumerate(grads):
        for optimizer in (fast, slow):
            schedule(optimizer, step)
        if step == 20:
            late = make_params([(4, 7)], seed=5)
            fast.add_param_group({"params": late})
            slow.add_param_group({"params": clone_params(late)})
        for optimizer in (fast, slow):
            mine = [p for group in optimizer.param_groups for p in group["params"]]
            step_with(optimizer, mine, now[: len(mine)])
        counts.append(graphs())
        assert consolidations(fast) == consolidations(slow)
    assert consolidations(fast) == 1
    assert counts[0] >= 1, "something was compiled"
    assert counts[19] == counts[5], "lr, step, protection, pull, weight decay: no new kernel"
    assert counts[CHANGE - 1] - counts[19] <= 1, "a late parameter: one at most"
    # Protected steps, with and without evidence gathered and weights pulled.
    assert counts[CHANGE + 5] - counts[CHANGE - 1] <= 3
    assert counts[-1] == counts[CHANGE + 5]
    pairs = zip(
        [p for group in fast.param_groups for p in group["params"]],
        [p for group in slow.param_groups for p in group["params"]],
        strict=True,
    )
    for param, twin in pairs:
        assert_near([param], [twin], rtol=1e-5, atol=1e-6)
        for name, value in slow.state[twin].items():
            if isinstance(value, Tensor):
                assert_near([fast.state[param][name]], [value], rtol=1e-4, atol=1e-6)
    assert float(fast.stability(params[0]).max()) > 0


def test_captured_steps_are_compiled_too() -> None:
    """Whose numbers come from the device; one kernel for all of them, before and after a change."""
    params = make_params([(6, 5), (4,)])
    twins = clone_params(params)
    fast = SALAdam(params, lr=1e-2, capturable=True, compile=True)
    slow = SALAdam(twins, lr=1e-2, capturable=True)
    for now in stream(params, profile(CHANGE + 20, (CHANGE,))):
        step_with(fast, params, now)
        step_with(slow, twins, now)
    assert graphs() == 1
    assert consolidations(fast) == consolidations(slow) == 1
    assert_near(params, twins, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "kwargs"),
    [
        (torch.complex64, {}),
        (torch.float32, {"state_dtype": "bfloat16"}),
        (torch.float32, {"granularity": "factored"}),
    ],
    ids=["complex", "bfloat16-state", "factored"],
)
def test_other_layouts_equal_eager(dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
    params = make_params([(4, 6)], dtype)
    twins = clone_params(params)
    fast = SALAdam(params, compile=True, **kwargs)
    slow = SALAdam(twins, **kwargs)
    grads = stream(params, profile(12))
    drive_both((fast, params), (slow, twins), grads, consolidate=[6])
    assert graphs() >= 2
    assert_near(params, twins, rtol=1e-5, atol=1e-6)
    for name in ("pending", "evidence", "pending_row", "evidence_row", "anchor"):
        if name in slow.state[twins[0]]:
            ours, theirs = fast.state[params[0]][name], slow.state[twins[0]][name]
            # One unit in the last place of bfloat16, where a tie may fall to either side.
            rtol = 1e-2 if theirs.dtype == torch.bfloat16 else 1e-4
            assert_near([ours], [theirs], rtol=rtol, atol=1e-6)


def test_small_tensors_are_left_to_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's call takes longer than they do; large ones beside them get theirs."""
    monkeypatch.setattr(pieces, "KERNEL", 1 << 16)
    params = make_params([(8, 9), (9,), (3, 4)])
    fast = SALAdam(params, compile=True)
    twins = clone_params(params)
    slow = SALAdam(twins)
    for now in stream(params, profile(4)):
        step_with(fast, params, now)
        step_with(slow, twins, now)
    assert graphs() == 0
    assert_equal(params, twins)
    large = make_params([(pieces.KERNEL // 64, 64)])
    fast.add_param_group({"params": large})
    for now in stream([*params, *large], profile(2)):
        step_with(fast, [*params, *large], now)
    assert graphs() == 1 or graphs() == 2  # one that gathers evidence, one that does not


def test_without_a_compiler(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, and the eager result bit for bit."""
    from torch._inductor import config

    # No file of an earlier run may serve.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    params, twins = make_params(), make_params()
    fast = SALAdam(params, compile=True, eps=1.25e-8)
    slow = SALAdam(twins, eps=1.25e-8)
    grads = stream(params, profile(5))
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        for now in grads:
            step_with(fast, params, now)
            step_with(slow, twins, now)
    ours = [w for w in caught if "compile=True" in str(w.message)]
    assert len(ours) == 1, [str(w.message) for w in caught]
    assert ours[0].category is RuntimeWarning
    assert_equal(params, twins)
    known = {name: value for name, value in snapshot(slow).items() if "compile" not in name}
    for name, value in snapshot(fast).items():
        if name in known and isinstance(value, Tensor):
            assert torch.equal(value, known[name]), name


def test_constants_that_change_in_each_step() -> None:
    """A cycle of betas builds a few kernels, warns once, and goes on eagerly."""
    params, twins = make_params([(3, 4)]), make_params([(3, 4)])
    fast, slow = SALAdam(params, compile=True), SALAdam(twins)
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        patch.setattr(compiled, "LARGEST_NUMBER", 2)  # 8 would take a minute to build
        for step, now in enumerate(stream(params, profile(8))):
            for optimizer, mine in ((fast, params), (slow, twins)):
                optimizer.param_groups[0]["betas"] = (0.8 + 0.01 * step, 0.99)
                step_with(optimizer, mine, now)
    assert graphs() == 4, "two for steps that gather evidence, two for the others"
    assert len([w for w in caught if "eagerly" in str(w.message)]) == 1
    assert_near(params, twins, rtol=1e-5, atol=1e-6)
