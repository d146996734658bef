"""CommunicationLayer as torch's hooks see it: copies, steps within steps, failures, graphs."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from sal_optim import CommunicationLayer
from sal_optim.layer import layer_of
from tests.layer.test_layer import adam
from tests.testing.drive import (
    assert_equal,
    assert_same_state,
    drive,
    make_params,
    profile,
    snapshot,
    step_with,
    stream,
)

optim = torch.optim


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("at", [0, 30, 70])
def test_copies_have_a_copy_of_the_optimizer(way: str, at: int) -> None:
    """At 0 importance was gathered, and the optimizer has no state to keep it in."""
    params = make_params()
    optimizer, layer = adam(params, protection=3.0)
    grads = stream(params, profile(90, (60,)))
    with layer.observe():
        drive(optimizer, params, grads[:5])
    drive(optimizer, params, grads[:at])
    other = copy.deepcopy(layer) if way == "deepcopy" else pickle.loads(pickle.dumps(layer))
    twin = other.optimizer
    theirs = twin.param_groups[0]["params"]
    assert twin is not optimizer
    assert layer_of(twin) is other
    assert layer_of(optimizer) is layer
    for one in (layer, other):
        one.consolidate()
    assert other.diagnostics() == layer.diagnostics()
    assert layer.diagnostics()["mean_gate"] < 1
    for now in grads[at:]:
        step_with(optimizer, params, now)
        step_with(twin, theirs, now)
    assert_equal(theirs, params)
    assert_same_state(snapshot(twin), snapshot(optimizer))


class Child(optim.SGD):
    """Calls its parent's step, which torch hooks as well."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise MemoryError
        return super().step(closure)


@pytest.mark.parametrize("closure", [False, True])
def test_a_step_within_a_step_is_one(closure: bool) -> None:
    optim.SGD(make_params(), lr=0.01)  # torch hooks a class when it is first used
    runs = []
    for cls in (optim.SGD, Child):
        params = make_params()
        optimizer = cls(params, lr=0.01)
        CommunicationLayer(optimizer, consolidate_every=8)
        for now in stream(params, profile(20)):
            for param, grad in zip(params, now, strict=True):
                param.grad = grad.clone()
            optimizer.step((lambda: 0.0) if closure else None)
            assert_equal([param.grad for param in params], now)
        runs.append((params, snapshot(optimizer)))
    assert_equal(runs[0][0], runs[1][0])
    assert_same_state(runs[0][1], runs[1][1])


@pytest.mark.parametrize("closure", [False, True])
def test_the_step_after_one_that_failed_is_whole(closure: bool) -> None:
    params = make_params()
    optimizer = Child(params, lr=0.01)
    CommunicationLayer(optimizer, consolidate_every=8)
    grads = stream(params, profile(20))
    drive(optimizer, params, grads[:10])
    for optimizer.fails in (True, False):
        for param, grad in zip(params, grads[10], strict=True):
            param.grad = grad.clone()
        with contextlib.suppress(MemoryError):
            optimizer.step((lambda: 0.0) if closure else None)
    assert_equal([param.grad for param in params], grads[10])
    # With a closure, the failing step had not called it.
    assert optimizer.param_groups[0]["threshold"]["total"] == (11 if closure else 12)


class Curvature(torch.optim.Optimizer):
    """Differentiates the gradients once more in its step, as Adahessian does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params, grads = group["params"], [p.grad for p in group["params"]]
            ones = [torch.ones_like(grad) for grad in grads]
            with torch.enable_grad():
                seconds = torch.autograd.grad(grads, params, ones)
            for param, grad, second in zip(params, grads, seconds, strict=True):
                param.sub_(group["lr"] * grad / (second.abs() + 1.0))


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_graph_over_the_weights_survives_a_change() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6))
    optimizer = Curvature([weight], {"lr": 0.1})
    layer = CommunicationLayer(optimizer)
    for step in range(90):
        inputs = torch.randn(32, 6)
        goal = inputs.sum(1) if step < 60 else -5.0 * inputs.sum(1)
        loss = (inputs @ weight - goal).pow(2).mean() + weight.pow(4).sum() * 1e-3
        optimizer.zero_grad()
        loss.backward(create_graph=True)
        optimizer.step()
    assert layer.diagnostics()["consolidations"] == 1


@pytest.mark.filterwarnings("ignore:Using backward")
def test_complex_gradients_that_have_a_graph() -> None:
    """The protected gradient is real, with a last dimension of 2; theirs is complex."""
    ends = []
    for graph in (False, True):
        torch.manual_seed(0)
        param = torch.randn(6, 5, dtype=torch.complex64, requires_grad=True)
        optimizer = torch.optim.Adam([param], lr=1e-3)
        layer = CommunicationLayer(optimizer)
        for _ in range(70):
            optimizer.zero_grad()
            aim = torch.randn(6, 5, dtype=torch.complex64)
            (param - aim).abs().square().sum().backward(create_graph=graph)  # type: ignore[no-untyped-call]
            optimizer.step()
        assert layer.diagnostics()["mean_gate"] < 1.0
        ends.append(param.detach())
    torch.testing.assert_close(*ends)


def test_a_closure_with_gradients_of_other_parameters_when_it_is_evaluated_again() -> None:
    """As of a block that is passed over at random: norms and lengths are of each evaluation."""
    torch.manual_seed(0)
    always, sometimes = nn.Linear(4, 4), nn.Linear(4, 4)
    params = [*always.parameters(), *sometimes.parameters()]
    optimizer = torch.optim.LBFGS(params, lr=0.01, max_iter=3)
    layer = CommunicationLayer(optimizer, consolidate_every=10)
    inputs, calls = torch.randn(8, 4), 0

    def closure() -> float:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        found = always(inputs)
        loss = ((found + sometimes(found) if calls % 3 else found) - 1.0).square().mean()
        loss.backward()
        return float(loss)

    for _ in range(30):
        optimizer.step(closure)
    assert layer.diagnostics()["consolidations"] > 0.0
    assert all(bool(param.isfinite().all()) for param in params)


def test_a_closure_whose_second_gradient_is_not_finite() -> None:
    """The first one was: what is given to the step is then the base's, as in a step of one."""

    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            with torch.enable_grad():
                closure()
                loss = closure()
            self.seen = [param.grad.clone() for param in self.param_groups[0]["params"]]
            return loss

    param = nn.Parameter(torch.ones(3, 3))
    optimizer = Twice([param], lr=0.1)
    layer = CommunicationLayer(optimizer)
    values = iter([1.0, 2.0, 1.0, 2.0, 1.0, math.inf])

    def closure() -> float:
        param.grad = torch.full_like(param, next(values))
        return 1.0

    optimizer.step(closure)
    layer.consolidate()
    optimizer.step(closure)
    optimizer.step(closure)
    assert bool(optimizer.seen[0].isinf().all())
