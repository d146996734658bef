"""What a step reads of its tensors, which on an accelerator would be a wait.

On a CPU: the norms of its gradients. Where a CPU is told to be an accelerator: nothing of the step
itself, and what it sees of the step before. Step counts live on the CPU whatever the parameters'
device, as torch's do, and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sal_optim import SALMuon, SALOptimizer
from sal_optim.importance import kronecker
from sal_optim.protection import gradients, judge
from sal_optim.protection.clock import INTERVAL, is_turn
from tests.testing.drive import assert_near, consolidations, make_params, profile, step_with, stream
from tests.testing.rows import CLASSES, KINDS, Row

CHANGE = 40


class Reads(TorchDispatchMode):
    """Counts scalars that are read from tensors, but for an optimizer's step counts."""

    def __init__(self, optimizer: SALOptimizer) -> None:
        super().__init__()
        self.optimizer, self.count = optimizer, 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not self._is_step(args[0]):
            self.count += 1
        return func(*args, **(kwargs or {}))

    def _is_step(self, tensor: Tensor) -> bool:
        states = self.optimizer.state.values()
        return any(tensor.data_ptr() == s["step"].data_ptr() for s in states if "step" in s)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are decided as on an accelerator, whose norms are not the host's."""
    for module in (judge, gradients, kronecker):
        monkeypatch.setattr(module, "on_host", lambda _: False)


def reads_of(optimizer: SALOptimizer, params: list[Tensor]) -> list[int]:
    """Scalars that each step reads, but for those soon after a consolidation, which reads."""
    counts: list[int] = []
    seen: list[float] = []
    for now in stream(params, profile(CHANGE + 20, (CHANGE,))):
        with Reads(optimizer) as reads:
            step_with(optimizer, params, now)
        seen.append(consolidations(optimizer))
        if seen[-1] == seen[max(0, len(seen) - INTERVAL - 2)]:
            counts.append(reads.count)
    return counts


@pytest.mark.parametrize("row", CLASSES, ids=str)
@pytest.mark.parametrize("tensors", [2, 20])
def test_norms_are_all_that_a_cpu_reads(row: Row, tensors: int) -> None:
    """Of gradients, by which a change is noticed; of gradient descent one of protected ones."""
    params = make_params([(3, 4)] * tensors)
    optimizer = row(params, consolidate_every=None)
    counts = reads_of(optimizer, params)
    assert consolidations(optimizer) == 1
    assert max(counts) <= tensors + 1
    assert set(counts[:CHANGE]) == {tensors}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_an_accelerator_reads_nothing(row: Row, kind: str, accelerator: None) -> None:
    """But for what has arrived of the step before, which is on the host."""
    params = make_params([(3, 4), (4,)])
    optimizer = row(params, importance=kind, consolidate_every=None)
    counts = reads_of(optimizer, params)
    assert consolidations(optimizer) == 1
    assert set(counts) == {0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_norms_are_judged_a_step_later(row: Row, kind: str, accelerator: None) -> None:
    """With the same end: the change is found, and what was gathered is the same until then."""
    options: dict[str, Any] = {"importance": kind, "consolidate_every": None}
    params = make_params([(3, 4), (4,)])
    optimizer = row(params, **options)
    total = found = 0
    for step, now in enumerate(stream(params, profile(CHANGE + 20, (CHANGE,)))):
        step_with(optimizer, params, now)
        detector = optimizer.param_groups[0]["threshold"]
        total = detector["total"]
        assert total == step, "the last step is not judged"
        found = found or (step if consolidations(optimizer) else 0)
        gathered = optimizer.state[params[0]]["pending_steps"]
        if step < CHANGE:
            assert gathered == sum(is_turn(n, INTERVAL) for n in range(step + 1))
    assert CHANGE < found < CHANGE + 5
    optimizer.diagnostics()
    assert optimizer.param_groups[0]["threshold"]["total"] == total + 1
    assert optimizer.stability(params[0]).max() > 0


@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_an_accelerator_ends_as_a_cpu_does(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a change: only when that is heard do they differ, by a step."""
    one, other = make_params(), make_params()
    ahead, now_ = row(one, consolidate_every=None), row(other, consolidate_every=None)
    grads = stream(one, profile(60), seed=1)
    for step, now in enumerate(grads):
        if step == 30:
            ahead.consolidate()
            now_.consolidate()
        with monkeypatch.context() as patch:
            patch.setattr(judge, "on_host", lambda _: False)
            step_with(ahead, one, now)
        step_with(now_, other, now)
    # Muon rounds to bfloat16 before it orthogonalizes.
    loose = 30.0 if row.cls is SALMuon else 1.0
    assert_near(one, other, rtol=loose * 1e-4, atol=loose * 1e-5)
    assert ahead.diagnostics() == pytest.approx(now_.diagnostics(), rel=1e-3, abs=1e-5)


def test_an_outlier_gathers_nothing_on_an_accelerator(class_row: Row, accelerator: None) -> None:
    """Nor does a gradient that is not finite: the device compares, and multiplies by 0."""
    params = make_params([(3, 4), (4,)])
    optimizer = class_row(params, lr=1e-30, importance="diagonal", consolidate_every=None)
    grads = stream(params, profile(12 * INTERVAL))
    turns = [step for step in range(len(grads)) if is_turn(step, INTERVAL)]
    outliers = dict(zip(turns[-3:], (1e4, float("nan"), float("inf")), strict=True))
    gathered = 0
    for step, now in enumerate(grads):
        pending = [optimizer.state[p]["pending"].clone() for p in params if step]
        step_with(optimizer, params, [grad * outliers.get(step, 1.0) for grad in now])
        same = step > 0 and all(
            torch.equal(optimizer.state[p]["pending"], kept)
            for p, kept in zip(params, pending, strict=True)
        )
        assert same or step not in outliers
        gathered += not same
    assert consolidations(optimizer) == 0
    # Nor is such a step counted, which would dilute what the others have gathered.
    assert [optimizer.state[p]["pending_steps"] for p in params] == [gathered] * 2


def test_an_outlier_says_nothing_of_descent(class_row: Row, monkeypatch: Any) -> None:
    """Wherever it is known to be one: what was heard stays."""
    for ahead in (False, True):
        torch.manual_seed(0)
        (param,) = params = make_params([(40, 30)])
        optimizer, lasting = class_row(params, consolidate_every=64), torch.randn(40, 30)
        with monkeypatch.context() as patch:
            if ahead:
                patch.setattr(judge, "on_host", lambda _: False)
            outlier = count = heard = 0
            for step in range(6 * 64 + 2):
                grad = lasting
                if step > 100 and step - outlier > 60 and is_turn(step, INTERVAL):
                    outlier, count, grad = step, count + 1, 1e3 * torch.randn(40, 30)
                before = optimizer.diagnostics()["descent"]
                step_with(optimizer, [param], [grad])
                now = optimizer.diagnostics()["descent"]
                heard += now != before
                assert now == before or grad is lasting
        assert count > 3
        assert heard > 40
        assert optimizer.diagnostics()["changes"] == 0.0


def test_a_change_has_one_consolidation_on_an_accelerator(
    class_row: Row, accelerator: None
) -> None:
    """The clock's, just before: the steps that confirm it gather nothing to consolidate."""
    params = make_params()
    optimizer = class_row(params)
    for now in stream(params, profile(80, (60,))):
        step_with(optimizer, params, now)
    assert consolidations(optimizer) == 1


def test_state_that_is_deleted_while_norms_are_underway(class_row: Row, accelerator: None) -> None:
    """As messages advise where a parameter was resized or cast."""
    params = make_params()
    optimizer = class_row(params)
    for now in stream(params, profile(4)):
        step_with(optimizer, params, now)
        optimizer.state.pop(params[0], None)
    assert optimizer.diagnostics()["consolidations"] == 0
