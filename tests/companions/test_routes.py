"""Typed routes: gradients by channel, gaps of routes whose use is known, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sal_optim.companions import TypedRoutes, route_gaps


def test_a_channel_trains_its_own_route() -> None:
    torch.manual_seed(0)
    model, x = TypedRoutes(4, 8, 3), torch.randn(5, 4)
    for channel in model.names:
        model.zero_grad()
        model(x, channel).square().sum().backward()
        trained = {
            name: any(p.grad is not None and bool(p.grad.any()) for p in route.parameters())
            for name, route in model.routes.items()
        }
        assert trained == {name: name == channel for name in model.names}
        assert model.gate.weight.grad is not None
        assert model.gate.weight.grad.any()
    model.zero_grad()
    model(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    assert torch.equal(model(x), model(x, "memory"))


def test_the_mixture() -> None:
    torch.manual_seed(0)
    model, x = TypedRoutes(4, 8, 3, ["a", "b"]), torch.randn(5, 4)
    gate = model.gate(x).softmax(1)
    expected = gate[:, :1] * model.routes["a"](x) + gate[:, 1:] * model.routes["b"](x)
    torch.testing.assert_close(model(x), expected)
    shares = model.shares(x)
    assert shares["a"] == pytest.approx(gate[:, 0].mean().item())
    assert sum(shares.values()) == pytest.approx(1.0)
    assert model(x[None]).shape == (1, 5, 3)


def test_gaps_of_known_routes() -> None:
    """One route decides one metric, another the other, and the third none."""
    torch.manual_seed(0)
    model = TypedRoutes(2, 16, 3)
    x = torch.randn(200, 2)
    with torch.no_grad():
        for route in model.routes.values():
            route[2].weight.zero_()
            route[2].bias.zero_()
        model.routes["task"][2].weight[0].normal_()
        model.routes["memory"][2].weight[1].normal_()
        first, second = model(x)[:, 0] > 0, model(x)[:, 1] > 0
    metrics = {
        "task": lambda: ((model(x)[:, 0] > 0) == first).float().mean(),
        "memory": lambda: ((model(x)[:, 1] > 0) == second).float().mean(),
    }
    for how in ("zero", "scramble"):
        found = route_gaps(model.routes, metrics, how)
        assert found["task"]["task"] > 0.1
        assert found["memory"]["memory"] > 0.1
        assert found["task"]["memory"] == found["memory"]["task"] == 0.0
        assert set(found["safety"].values()) == {0.0}
        assert found == route_gaps(model.routes, metrics, how)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"names": "task"}, TypeError, r"names.*'task'.*list"),
        ({"names": ["task"]}, ValueError, r"names.*2 or more"),
        ({"names": ["a", "a"]}, ValueError, r"names.*different"),
        ({"names": ["a", "b.c"]}, ValueError, r"names.*'b\.c'.*dot"),
        ({"names": ["a", ""]}, ValueError, r"names.*''.*empty"),
        ({"names": ["a", "keys"]}, ValueError, r"names.*'keys'.*ModuleDict"),
        ({"names": ["training", "a"]}, ValueError, r"names.*'training'.*ModuleDict"),
        ({"hidden": 0}, ValueError, r"hidden.*0"),
        ({"inputs": 1.5}, ValueError, r"inputs.*1\.5"),
        ({"outputs": None}, TypeError, r"outputs.*None"),
    ],
)
def test_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TypedRoutes(**{"inputs": 2, "hidden": 3, "outputs": 4, **arguments})


def test_what_is_refused() -> None:
    model = TypedRoutes(2, 3, 4)
    with pytest.raises(ValueError, match=r"channel.*'other'.*'task', 'memory', 'safety'"):
        model(torch.zeros(1, 2), "other")
    for used in (model, model.shares):
        with pytest.raises(ValueError, match=r"x value: shape \(5, 3\).*samples by 2 features"):
            used(torch.zeros(5, 3))
        with pytest.raises(TypeError, match=r"x value: a list"):
            used([1.0, 2.0])
    with pytest.raises(TypeError, match=r"routes.*list.*dict"):
        route_gaps([nn.Identity()], {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"metrics.*int.*dict"):
        route_gaps(model.routes, 3)  # type: ignore[arg-type]
