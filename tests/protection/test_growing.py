"""A parameter that gains rows keeps what is known of the old ones."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sal_optim
from sal_optim import CommunicationLayer
from sal_optim.protection.growing import grows
from tests.testing.drive import assert_equal
from tests.testing.rows import KINDS, Row


def tensors(state: dict[int, dict[str, Any]]) -> list[torch.Tensor]:
    return [v for own in state.values() for v in own.values() if isinstance(v, torch.Tensor)]


def network(rows: int = 3) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, rows)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, low: int) -> None:
    """Steps on noise whose labels are three classes from ``low`` on."""
    draw = torch.Generator().manual_seed(low)
    for _ in range(steps):
        x = torch.randn(16, 6, generator=draw)
        y = low + x[:, :3].argmax(1)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()


def larger(model: nn.Linear, rows: int) -> nn.Linear:
    found = nn.Linear(model.in_features, rows)
    with torch.no_grad():
        found.weight[: model.out_features] = model.weight
        found.bias[: model.out_features] = model.bias
    return found


def grown(optimizer: sal_optim.SALOptimizer, model: nn.Linear, rows: int) -> nn.Linear:
    head = larger(model, rows)
    optimizer.grow(model.weight, head.weight)
    optimizer.grow(model.bias, head.bias)
    return head


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [2, 4, 16])
def test_old_rows_keep_their_importance(class_row: Row, kind: str, rank: int) -> None:
    model = network()
    optimizer = class_row(model.parameters(), importance=kind, rank=rank)
    train(model, optimizer, 80, 0)
    optimizer.consolidate()
    before = [optimizer.controller.importance(p)[0].clone() for p in model.parameters()]
    anchors = [optimizer.state[p]["anchor"].clone() for p in model.parameters()]
    moments = {n: optimizer.state[model.weight][n] for n in class_row.moments_of(model.weight)}
    head = grown(optimizer, model, 8)
    assert [p for g in optimizer.param_groups for p in g["params"]] == list(head.parameters())
    assert set(optimizer.state) == set(head.parameters())
    for param, old, anchor in zip(head.parameters(), before, anchors, strict=True):
        now = optimizer.controller.importance(param)[0]
        # Of two known directions of three, the third's mean is spread over the new ones.
        exact = kind != "kronecker" or rank >= 3 or param.dim() == 1
        torch.testing.assert_close(now[:3], old, **({} if exact else {"rtol": 0.5, "atol": 0.1}))
        assert float(now[3:].abs().max()) < (1e-6 if exact else float(old.mean()))
        assert float(now.sum()) == pytest.approx(float(old.sum()), rel=1e-4)
        assert torch.equal(optimizer.state[param]["anchor"][:3], anchor)
        assert torch.equal(optimizer.state[param]["anchor"][3:], param[3:])
    for name, old in moments.items():
        value = optimizer.state[head.weight][name]
        assert torch.equal(value[:3], old)
        assert value.shape == head.weight.shape
        assert not value[3:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_on_and_is_saved(class_row: Row, kind: str) -> None:
    """A state dict of the grown head goes into an optimizer made for it, exactly."""
    model = network()
    optimizer = class_row(model.parameters(), importance=kind, consolidate_every=20)
    train(model, optimizer, 50, 0)
    head = grown(optimizer, model, 40)
    train(head, optimizer, 5, 3)
    twin = copy.deepcopy(head)
    other = class_row(twin.parameters(), importance=kind, consolidate_every=20)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for trained, stepped in ((head, optimizer), (twin, other)):
        train(trained, stepped, 45, 3)
    assert all(p.isfinite().all() for p in head.parameters())
    for one, two in zip(head.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)


def test_old_rows_move_less_than_in_a_new_parameter() -> None:
    """What it is for: new classes displace the old rows less."""
    moved = []
    for keep in (True, False):
        model = network()
        optimizer = sal_optim.SALSGD(model.parameters(), lr=0.1, momentum=0.9)
        train(model, optimizer, 200, 0)
        optimizer.consolidate()
        if keep:
            head = grown(optimizer, model, 6)
        else:
            head = larger(model, 6)
            optimizer = sal_optim.SALSGD(head.parameters(), lr=0.1, momentum=0.9)
        train(head, optimizer, 100, 3)
        moved.append(float((head.weight[:3] - model.weight).detach().norm()))
    assert moved[0] < 0.7 * moved[1]


def test_before_any_step_and_of_what_is_pending() -> None:
    model = network()
    optimizer = sal_optim.SALAdam(model.parameters())
    head = grown(optimizer, model, 5)
    train(head, optimizer, 10, 0)
    assert optimizer.state[head.weight]["pending_steps"] > 0
    head = grown(optimizer, head, 7)
    state = optimizer.state[head.weight]
    assert state["pending_steps"] == 0
    assert state["evidence_weight"] > 0


def grown_in_a_layer(build: Any, steps: int) -> tuple[torch.optim.Optimizer, nn.Linear]:
    """An optimizer in a layer whose parameters have grown, and the head, after some more steps."""
    model = network()
    base = build(model.parameters())
    layer = CommunicationLayer(base)
    train(model, base, 30, 0)
    layer.consolidate()
    before = layer.controller.importance(model.weight)[0].clone()
    head = larger(model, 5)
    layer.grow(model.weight, head.weight)
    torch.testing.assert_close(layer.controller.importance(head.weight)[0][:3], before)
    layer.grow(model.bias, head.bias)
    train(head, base, steps, 0)
    torch.testing.assert_close(layer.controller.importance(head.weight)[0][:3], before)
    return base, head


def test_a_layer_around_an_optimizer() -> None:
    base, head = grown_in_a_layer(partial(torch.optim.RMSprop, momentum=0.9), 5)
    assert base.state[head.weight]["square_avg"].shape == head.weight.shape


def test_moments_that_are_not_by_element_begin_anew() -> None:
    base, head = grown_in_a_layer(partial(torch.optim.Adafactor, lr=0.01), 1)
    assert base.state[head.weight]["row_var"].shape == (5, 1)
    assert base.state[head.weight]["step"] == 1
    assert base.state[head.bias]["step"] == 31
    base.load_state_dict(copy.deepcopy(base.state_dict()))


def test_lbfgs_is_refused() -> None:
    model = network()
    base = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match=r"Invalid old value: .*LBFGS.*another optimizer"):
        CommunicationLayer(base).grow(model.weight, larger(model, 5).weight)
    assert base.param_groups[0]["params"] == [*model.parameters()]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [((3, 6), (5, 6), True), ((3,), (5,), True), ((3, 6), (3, 6), True), ((5, 6), (3, 6), False),
     ((3, 6), (3, 8), False), ((3, 6), (5, 8), False), ((3, 6), (18,), False), ((), (), False)],
)  # fmt: skip
def test_what_grows(old: tuple[int, ...], new: tuple[int, ...], expected: bool) -> None:
    """What has changed otherwise is another parameter: a trainer's plugin lets it begin anew."""
    assert grows(torch.zeros(old), torch.zeros(new)) is expected


def test_refused() -> None:
    model = network()
    optimizer = sal_optim.SALAdam(model.parameters())
    train(model, optimizer, 5, 0)
    before = copy.deepcopy(optimizer.state_dict())
    weight = model.weight
    for old, new, said in (
        (torch.zeros(3, 6), torch.zeros(5, 6), "Invalid old value: .*one of this"),
        (weight, model.bias, "Invalid new value: .*already"),
        (weight, torch.zeros(2, 6), r"Invalid new value: \(2, 6\)"),
        (weight, torch.zeros(5, 7), r"Invalid new value: \(5, 7\)"),
        (weight, torch.zeros(5, 6, dtype=torch.float64), "Invalid new value: .*float64"),
        (weight, torch.cat([weight, weight]), "Invalid new value: .*computed from"),
        (weight, torch.zeros(5, 6), "Invalid new value: .*first 3 rows"),
    ):
        with pytest.raises(ValueError, match=said):
            optimizer.grow(old, new)
    with pytest.raises(TypeError, match="Invalid new value: a list"):
        optimizer.grow(weight, [1.0])  # type: ignore[arg-type]
    assert_equal(tensors(optimizer.state_dict()["state"]), tensors(before["state"]))
    assert [p for g in optimizer.param_groups for p in g["params"]] == [weight, model.bias]
