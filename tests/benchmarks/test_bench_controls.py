"""The controls do what they are named for, on SAL's own gates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.methods import METHODS
from benchmarks.methods.controls import distance
from benchmarks.runs.networks import mlp
from benchmarks.streams import Batch


def batch(seed: int) -> Batch:
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(16, 6, generator=source)
    return Batch(x, (x.sum(1) > 3).long())


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return METHODS[name].build(mlp(6, (8,), 2, seed=0), 1e-2, {"protection": 1.0, **options})


def train(method: Any, seeds: range) -> None:
    for seed in seeds:
        data = batch(seed)
        method.optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(method.model(data.x), data.y))
        method.before_step(data)
        method.optimizer.step()
        method.after_step(data)


def weights(method: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in method.params]


@pytest.mark.parametrize("name", ["control-uniform", "control-matched", "control-shuffled"])
def test_before_a_consolidation_each_is_adam(name: str) -> None:
    control, adam = build(name), METHODS["adam"].build(mlp(6, (8,), 2, seed=0), 1e-2, {})
    train(control, range(10))
    train(adam, range(10))
    for a, b in zip(control.params, adam.params, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", ["control-uniform", "control-matched"])
def test_the_twin_is_sal_adam_itself(name: str) -> None:
    control, sal = build(name), build("sal-adam")
    for part in (range(20), range(20, 30)):
        train(control, part)
        train(sal, part)
        control.twin.optimizer.consolidate()
        sal.optimizer.consolidate()
    assert sal.diagnostics()["consolidations"] == 2
    for a, b in zip(control.twin.params, sal.params, strict=True):
        assert torch.equal(a, b)


def test_uniform_scales_adam_by_the_mean_gate() -> None:
    control = build("control-uniform")
    train(control, range(20))
    control.twin.optimizer.consolidate()
    gate = control.twin.diagnostics()["mean_gate"]
    assert 0.01 < gate < 0.95
    before = weights(control)
    train(control, range(20, 21))
    moved = distance(weights(control), before)
    control.twin.optimizer.param_groups[0]["protection"] = 0.0
    # Adam's own way from there: the same step again, whole.
    state = control.optimizer.state[control.params[0]]
    group = control.optimizer.param_groups[0]
    step = float(state["step"])
    whole = 0.0
    for p in control.params:
        entry = control.optimizer.state[p]
        mean = entry["exp_avg"] / (1 - group["betas"][0] ** step)
        root = (entry["exp_avg_sq"] / (1 - group["betas"][1] ** step)).sqrt() + group["eps"]
        whole += float((group["lr"] * mean / root).square().sum())
    assert moved == pytest.approx(gate * whole**0.5, rel=1e-4)


def test_matched_moves_as_far_as_sal_and_elsewhere() -> None:
    control = build("control-matched")
    train(control, range(20))
    control.twin.optimizer.consolidate()
    for seed in range(20, 25):
        own, other = weights(control), [p.detach().clone() for p in control.twin.params]
        train(control, range(seed, seed + 1))
        way = distance(weights(control), own)
        assert way == pytest.approx(distance(control.twin.params, other), rel=1e-4)
    assert distance(weights(control), list(control.twin.params)) > 1e-4


def test_shuffled_has_sals_evidence_on_other_elements() -> None:
    control, sal = build("control-shuffled"), build("sal-adam")
    for part in (range(20), range(20, 40)):
        train(control, part)
        control.optimizer.consolidate()
        control.after_step(batch(0))
    evidence = [control.optimizer.state[p]["evidence"] for p in control.params]
    for shown, truth, places in zip(evidence, control.truth, control.places, strict=True):
        assert torch.allclose(shown.flatten().sort().values, truth.flatten().sort().values)
        assert torch.equal(shown.flatten(), truth.flatten()[places])
    assert not torch.allclose(evidence[0], control.truth[0])
    # What it gathered in the first regime, while it was Adam, is what SAL gathers.
    again = build("control-shuffled")
    train(again, range(20))
    train(sal, range(20))
    for method in (again, sal):
        method.optimizer.consolidate()
    again.after_step(batch(0))
    for p, q, truth in zip(again.params, sal.params, again.truth, strict=True):
        assert torch.allclose(truth, sal.optimizer.state[q]["evidence"], rtol=1e-4)
        assert again.optimizer.state[p]["evidence"].sum() > 0


def test_shuffled_takes_no_other_granularity() -> None:
    assert "granularity" not in METHODS["control-shuffled"].allowed()
    assert "protection" in METHODS["control-uniform"].allowed()
