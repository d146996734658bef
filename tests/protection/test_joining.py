"""Parameters that join those with a gradient: other gradients, and no other data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sal_optim import SALSGD
from tests.testing.drive import make_params, profile, step_with, stream
from tests.testing.rows import Row

CALM, LOUD = 100, 30
# A parameter's first step with a gradient and the one after its last, and whether its gradients are
# eight times as large from step CALM on.
Part = tuple[int, int, bool]
END = CALM + LOUD
STAYS: Part = (0, END, False)
STAYS_LOUD: Part = (0, END, True)
LEAVES: Part = (0, CALM, True)
JOINS: Part = (CALM, END, True)


@pytest.mark.parametrize(
    ("parts", "changes"),
    [
        ((STAYS, STAYS, JOINS), 0.0),
        ((STAYS, JOINS, JOINS), 0.0),
        ((STAYS, STAYS, STAYS_LOUD), 1.0),
        ((STAYS, LEAVES, JOINS), 1.0),  # another task's head
        ((STAYS_LOUD, STAYS, JOINS), 1.0),  # a head more, and other data
    ],
)
def test_what_is_unfrozen_is_no_change(
    class_row: Row, parts: tuple[Part, ...], changes: float
) -> None:
    params = make_params(((6, 5), (4, 5), (5, 6)))
    optimizer = class_row(params)
    calm = stream(params, profile(END))
    for step, grads in enumerate(calm):
        here = [
            grad * (8.0 if loud and step >= CALM else 1.0) if first <= step < last else None
            for grad, (first, last, loud) in zip(grads, parts, strict=True)
        ]
        step_with(optimizer, params, here)
    assert optimizer.diagnostics()["changes"] == changes


def test_a_layer_that_has_no_gradient_yet_does_not_silence(class_row: Row) -> None:
    """One of zeros in each step is there from the beginning."""
    params = make_params(((6, 5), (4, 5)))
    optimizer = class_row(params)
    for now in stream(params, profile(CALM + LOUD, (CALM,))):
        step_with(optimizer, params, [now[0], torch.zeros_like(now[1])])
    assert optimizer.diagnostics()["changes"] == 1.0


def batch(draw: torch.Generator, ways: Tensor) -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 20, generator=draw)
    return x, (x @ ways).argmax(1)


def test_an_unfrozen_layer_leaves_protection_as_it_was() -> None:
    """Neither the norm nor the novelty of a network takes it for other data."""
    torch.manual_seed(0)
    draw, ways = torch.Generator().manual_seed(0), torch.randn(20, 5)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
    optimizer = SALSGD(model.parameters(), lr=0.2)
    for step in range(400):
        model[0].requires_grad_(step >= 200)
        x, y = batch(draw, ways)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    state = optimizer.param_groups[0]["threshold"]
    assert (state["changes"], state["firm"]) == (0.0, 0.0)
