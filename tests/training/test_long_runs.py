"""Long runs of a tiny model: no drift, no growth, importance that neither overflows nor freezes.

20,000 steps by default; ``make long`` (``SAL_OPTIM_LONG=1000000``) runs that many.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim import SALOptimizer
from sal_optim.protection.controller import PENDING_HORIZON
from tests.reference.sal import Parameter, Reference
from tests.testing.drive import consolidations, fall, seeded
from tests.testing.rows import row_of

STEPS = int(os.environ.get("SAL_OPTIM_LONG", "20000"))
# Steps of a regime.
REGIME = 2_000
CHUNK = 1_000
SIZE = 3
BASES = {"SALAdam": "adam", "SALSGD-momentum": "sgd", "SALLion": "lion"}

pytestmark = pytest.mark.timeout(300 + STEPS // 20)


def gradients(regime: int | None = REGIME) -> Iterator[Tensor]:
    """Noise that differs by element, louder after each change of regime; the same each time."""
    generator = seeded(3)
    size = torch.ones(SIZE, dtype=torch.float64)
    for start in range(0, STEPS, CHUNK):
        # Either sign, and of a size that varies little: three elements average nothing out.
        noise = torch.randn(CHUNK, SIZE, generator=generator, dtype=torch.float64)
        noise = noise.sign() * (0.1 + 0.02 * noise.roll(1))
        for step in range(start, min(start + CHUNK, STEPS)):
            since = step % regime if regime and step >= regime else -1
            if since == 0:
                size = torch.rand(SIZE, generator=generator, dtype=torch.float64) + 0.1
                # Elements differ and the norm does not: it rises eightfold, whatever was drawn.
                size /= size.square().mean().sqrt()
            yield noise[step - start] * size * (fall(since, 0) if 0 <= since < 10 else 1.0)


def parameter(dtype: torch.dtype) -> Tensor:
    return torch.linspace(-1, 1, SIZE, dtype=dtype).requires_grad_()


def make(name: str, param: Tensor, **kwargs: Any) -> SALOptimizer:
    return row_of(name)([param], lr=1e-3, **kwargs)


def held(optimizer: SALOptimizer) -> dict[str, int]:
    """How much state there is."""
    (state,) = optimizer.state.values()
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    return {
        "keys": len(state),
        "bytes": sum(value.untyped_storage().nbytes() for value in tensors),
        "threshold": len(optimizer.param_groups[0]["threshold"]),
        "group": len(optimizer.param_groups[0]),
    }


def assert_finite(optimizer: SALOptimizer, param: Tensor) -> None:
    tensors = [v for v in optimizer.state[param].values() if isinstance(v, Tensor)]
    assert all(bool(torch.isfinite(value).all()) for value in (param, *tensors))
    assert all(math.isfinite(value) for value in optimizer.diagnostics().values())


@pytest.mark.parametrize(
    ("name", "retention", "foreach"),
    [("SALAdam", 1.0, True), ("SALSGD-momentum", 0.9, False), ("SALLion", 0.9, True)],
)
def test_no_drift_from_the_reference(name: str, retention: float, foreach: bool) -> None:
    param = parameter(torch.float64)
    fast = make(name, param, foreach=foreach, retention=retention)
    slow = Parameter(param, fast.param_groups[0])
    reference = Reference(BASES[name], [slow])
    largest = 0.0
    for step, grad in enumerate(gradients()):
        param.grad = grad
        fast.step()
        reference.step([grad])
        if step % REGIME == REGIME - 1:
            assert consolidations(fast) == reference.consolidations
            largest = max(largest, float(slow.values.abs().max()))
            state = fast.state[param]
            for ours, theirs in (
                (param.detach(), slow.values),
                (state["evidence"], slow.evidence[0]),
                (state["anchor"], slow.anchor),
            ):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert fast.diagnostics()["changes"] == STEPS // REGIME - (STEPS % REGIME == 0)
    assert consolidations(fast) > STEPS // REGIME
    assert 0.1 < largest < 1e3


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("SALAdam", {"retention": 0.9}),
        ("SALSGD-momentum", {"retention": 1.0}),
        ("SALLion", {"retention": 1.0}),
        ("SALAdam", {"retention": 0.9, "state_dtype": "bfloat16"}),
    ],
    ids=["SALAdam", "SALSGD-momentum", "SALLion", "bfloat16"],
)
def test_no_growth_and_no_freezing(name: str, kwargs: dict[str, Any]) -> None:
    param = parameter(torch.float32)
    optimizer = make(name, param, **kwargs)
    state = optimizer.state[param]
    blocks: list[int] = []
    before: dict[str, int] = {}
    peak = moved = 0
    for step, grad in enumerate(gradients()):
        param.grad = grad.float()
        count = consolidations(optimizer)
        kept = [state[name].clone() for name in ("evidence", "anchor") if name in state]
        optimizer.step()
        if consolidations(optimizer) > count:
            # Each window is heard, also when many came before it. In bfloat16 a short one may show
            # in the anchor alone.
            evidence, anchor = kept
            moved += not (torch.equal(state["evidence"], evidence)
                          and torch.equal(state["anchor"], anchor))  # fmt: skip
        if step % REGIME == REGIME // 2:
            gc.collect()
            assert_finite(optimizer, param)
            before = before or held(optimizer)
            assert held(optimizer) == before
            peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            blocks.append(sys.getallocatedblocks())
    assert moved == consolidations(optimizer) >= STEPS // REGIME - 1
    # The first samples warm caches up; after them, less than an object for every hundred steps.
    assert blocks[-1] - blocks[len(blocks) // 4] < STEPS // 100, blocks
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 * 1024, "kilobytes"


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_one_regime_of_all_steps(state_dtype: str | None) -> None:
    """No change is found where there is none, and the pending mean stays what it is."""
    param = parameter(torch.float32)
    optimizer = make("SALAdam", param, state_dtype=state_dtype, consolidate_every=None)
    for grad in gradients(None):
        param.grad = grad.float()
        optimizer.step()
    assert consolidations(optimizer) == 0
    state = optimizer.state[param]
    assert state["pending_steps"] <= PENDING_HORIZON
    mean = state["pending"].float() / state["pending_steps"]
    # Every element's share of the squared gradient is one third of three.
    rtol = 0.05 if state_dtype is None else 0.25
    torch.testing.assert_close(mean, torch.ones(SIZE), rtol=rtol, atol=0.0)
    optimizer.consolidate()
    assert float(optimizer.stability(param).min()) > 0
