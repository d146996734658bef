"""Importance by direction: what it holds, against the same mathematics written out densely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim import SALSGD, CommunicationLayer, SALAdam, SALAdamW
from sal_optim.importance import IMPORTANCE, Penalty
from sal_optim.importance.kronecker import ROOM, SIDES, total
from sal_optim.protection.block import in_force
from tests.testing.rows import KINDS

KRONECKER = IMPORTANCE["kronecker"]
MEMORY = 0.2
State = dict[str, Tensor]


def empty(rows: int, columns: int, rank: int = 64, *, anchor: Tensor | None = None) -> State:
    shapes = KRONECKER.shapes((rows, columns), rank)
    state = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    return state if anchor is None else {**state, "anchor": anchor}


def gather(state: State, grads: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Take in gradients; the mean of both sides' sums, by hand."""
    for grad in grads:
        KRONECKER.accumulate([state], [grad], 1.0, 0.0)
    left = torch.stack([g @ g.T for g in grads]).mean(0)
    right = torch.stack([g.T @ g for g in grads]).mean(0)
    return left, right


def merge(state: State, weights: Tensor, count: int, *, part: float = 1.0) -> None:
    """``part`` is the weight of what is pending, the mean of ``count`` gradients."""
    KRONECKER.merge(state, weights, new=part / count, old=1.0 - part, memory=MEMORY, at=0.0)


def side(state: State, name: str) -> Tensor:
    """The whole matrix of one side."""
    basis, values = state[f"{name}_basis"], state[f"{name}_values"]
    rest = values[-1] * torch.eye(len(basis), dtype=torch.float64)
    return rest + basis @ (values[:-1] - values[-1]).diag() @ basis.T


def gradients(count: int, rows: int, columns: int, rank: int | None = None) -> list[Tensor]:
    """Gradients of one column space and one row space, of a rank."""
    rank = rank or min(rows, columns)
    left = torch.randn(rows, rank, dtype=torch.float64)
    right = torch.randn(columns, rank, dtype=torch.float64)
    return [
        left @ torch.randn(rank, rank, dtype=torch.float64) @ right.T / rank for _ in range(count)
    ]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ---------------------------------------------------------------- what is stored


def test_merging_at_full_rank_is_the_weighted_mean_of_factors() -> None:
    state = empty(6, 5)
    one = gather(state, gradients(8, 6, 5))
    merge(state, torch.zeros(6, 5, dtype=torch.float64), 8)
    for name, wanted in zip(SIDES, one, strict=True):
        torch.testing.assert_close(side(state, name), wanted)
    two = gather(state, gradients(4, 6, 5))
    merge(state, torch.zeros(6, 5, dtype=torch.float64), 4, part=0.3)
    for name, old, new in zip(SIDES, one, two, strict=True):
        torch.testing.assert_close(side(state, name), 0.7 * old + 0.3 * new)
        assert not state[f"{name}_pending"].any()
    assert state["pending_total"] == 0.0


@pytest.mark.parametrize(("rows", "columns", "rank"), [(20, 5, 3), (9, 40, 4), (30, 40, 2)])
def test_truncation_keeps_the_trace(rows: int, columns: int, rank: int) -> None:
    """What is cut away counts by its mean, over both consolidations."""
    state = empty(rows, columns, rank)
    wanted = 0.0
    for count, part in ((40, 1.0), (10, 0.4)):
        draws = torch.randn(count, rows, columns, dtype=torch.float64)
        left, _ = gather(state, list(draws))
        merge(state, torch.zeros(rows, columns, dtype=torch.float64), count, part=part)
        wanted = (1.0 - part) * wanted + part * float(left.trace())
        for name in SIDES:
            basis, values = state[f"{name}_basis"], state[f"{name}_values"]
            kept = (basis.norm(dim=0) > 0.5).nonzero().flatten()
            exact = torch.eye(len(kept), dtype=torch.float64)
            torch.testing.assert_close(basis[:, kept].T @ basis[:, kept], exact)
            whole = values[:-1].sum() + values[-1] * (len(basis) - basis.shape[1])
            assert float(whole) == pytest.approx(wanted, rel=1e-6)
        assert float(total(state, torch.float64)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("rank", "rows", "columns", "of"),
    [(128, 7, 5, 4), (128, 5, 7, 5), (4, 9, 6, 3), (4, 30, 6, 3), (4, 30, 40, 3)],
    ids=["whole", "wide", "cut", "one sketch", "two sketches"],
)
def test_known_directions_are_dense(rank: int, rows: int, columns: int, of: int) -> None:
    """Damping and penalty against Omega as one matrix over all elements.

    Gradients of a rank that is kept, also by a sketch.
    """
    anchor = torch.randn(rows, columns, dtype=torch.float64)
    state = empty(rows, columns, rank, anchor=anchor.clone())
    left, right = gather(state, gradients(6, rows, columns, of))
    merge(state, anchor.clone(), 6)
    omega = torch.kron(left, right) / left.trace()
    grad, moved = (torch.randn(rows, columns, dtype=torch.float64) for _ in range(2))
    one = torch.eye(len(omega), dtype=torch.float64)
    for damping, stiffness in ((3.0, 0.0), (0.0, 0.7), (3.0, 0.7)):
        penalty = Penalty([moved.clone()], stiffness) if stiffness else None
        (found,) = KRONECKER.protect([state], [grad], penalty, damping)
        force = grad.flatten() + stiffness * omega @ moved.flatten()
        wanted = torch.linalg.solve(one + damping * omega, force).view_as(grad)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
        assert (found - grad).norm() > 0.01 * grad.norm()
    torch.testing.assert_close(
        KRONECKER.elements(state, anchor).flatten(), omega.diagonal(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("damping", [0.1, 10.0, 1000.0])
def test_moves_in_no_known_direction_keep_three_quarters(damping: float) -> None:
    """However much of the gradients is noise; known directions stand out as before."""
    torch.manual_seed(1)
    rows, columns, rank = 40, 30, 4
    state = empty(rows, columns, rank)
    gather(state, gradients(200, rows, columns))  # of full rank, which is noise
    merge(state, torch.zeros(rows, columns, dtype=torch.float64), 200)
    left, right = (side(state, name) for name in SIDES)
    outside = float(state["left_values"][-1] * state["right_values"][-1] / left.trace())
    omega = torch.kron(left, right) / left.trace() / max(1.0, damping * outside / ROOM)
    grad = torch.randn(rows, columns, dtype=torch.float64)
    (found,) = KRONECKER.protect([state], [grad], None, damping)
    one = torch.eye(len(omega), dtype=torch.float64)
    wanted = torch.linalg.solve(one + damping * omega, grad.flatten())
    torch.testing.assert_close(found.flatten(), wanted, rtol=1e-6, atol=1e-6)
    unknown = grad
    for name, of in (("left", 0), ("right", 1)):
        basis = state[f"{name}_basis"]
        known = basis @ basis.T
        unknown = unknown - (known @ unknown if of == 0 else unknown @ known)
    (kept,) = KRONECKER.protect([state], [unknown], None, damping)
    share = float((kept * unknown).sum() / unknown.square().sum())
    assert 1.0 / (1.0 + ROOM) - 1e-9 <= share < 1.0
    elements = KRONECKER.elements(state, grad, damping).flatten()
    torch.testing.assert_close(elements, omega.diagonal(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("protection", [10.0, 1e39])
def test_stability_is_what_a_step_holds(protection: float) -> None:
    """Of a matrix whose gradients are noise, the share that the damping takes, and no more."""
    torch.manual_seed(2)
    param = torch.nn.Parameter(torch.randn(40, 30))
    optimizer = SALAdam([param], lr=1e-3, rank=4, protection=protection)
    for _ in range(32):
        param.grad = torch.randn(40, 30)
        optimizer.step()
    optimizer.consolidate()
    damping = in_force({"protection": protection}, 1.0)
    (found,) = KRONECKER.protect([optimizer.state[param]], [torch.ones(40, 30)], None, damping)
    assert torch.isfinite(found).all()
    taken = optimizer.stability(param)
    # Elements are no directions, but the mean over all is near.
    assert 0.5 * ROOM < float(taken.mean()) < 2.0 * ROOM
    assert float(found.mean()) > 1.0 / (1.0 + 2.0 * ROOM)


def test_damping_follows_what_it_depends_on() -> None:
    """It is kept between steps, and made anew after a merge and for another damping."""
    state = empty(6, 5)
    grad = torch.randn(6, 5, dtype=torch.float64)
    for part in (1.0, 0.5):
        left, right = gather(state, gradients(8, 6, 5))
        merge(state, grad, 8, part=part)
        for damping in (1.0, 9.0, 1.0):
            (found,) = KRONECKER.protect([state], [grad], None, damping)
            left, right = side(state, "left"), side(state, "right")
            omega = damping * torch.kron(left, right) / left.trace()
            one = torch.eye(len(omega), dtype=torch.float64)
            wanted = torch.linalg.solve(one + omega, grad.flatten()).view_as(grad)
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("rank", [128, 4])
def test_a_second_merge_moves_the_anchor_where_it_knows_more(rank: int) -> None:
    """Where the second says all, the anchor is its weights; where the first, its own."""
    rows, columns = 24, 6
    one, two = (torch.zeros(rows, columns, dtype=torch.float64) for _ in range(2))
    one[0, 0], two[1, 1] = 2.0, 1.0
    first, second = (torch.randn(rows, columns, dtype=torch.float64) for _ in range(2))
    state = empty(rows, columns, rank, anchor=first.clone())
    gather(state, [one])
    merge(state, first, 1)
    gather(state, [two])
    merge(state, second, 1, part=0.75)
    found, _ = state["left_values"][:2].sort(descending=True)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.75], dtype=torch.float64))
    torch.testing.assert_close(state["anchor"][1, 1], second[1, 1])
    torch.testing.assert_close(state["anchor"][0, 0], first[0, 0])
    # Where no gradient ever was, the anchor stays.
    torch.testing.assert_close(state["anchor"][5:, 3:], first[5:, 3:])


def test_rank_bounds_the_state() -> None:
    layer = nn.Linear(50, 30, bias=False)
    optimizer = SALAdamW(layer.parameters(), rank=4)
    layer.weight.grad = torch.randn(30, 50)
    optimizer.step()
    found = {n: tuple(t.shape) for n, t in optimizer.state[layer.weight].items() if "_b" in n}
    assert found == {"left_basis": (30, 4), "right_basis": (50, 4)}
    with pytest.raises(ValueError, match=r"rank.*0"):
        SALAdamW(layer.parameters(), rank=0)


# ---------------------------------------------------------------- what it does in training


def test_moves_that_change_nothing_stay_free() -> None:
    """Two inputs that are always equal: what one weight gains the other may lose.

    Importance by element holds both, by direction only their sum.
    """

    def moved(importance: str) -> tuple[float, float]:
        torch.manual_seed(0)
        layer = nn.Linear(2, 1, bias=False)
        optimizer = SALSGD(
            layer.parameters(), lr=0.1, protection=100.0, importance=importance,
            consolidate_every=None,
        )  # fmt: skip
        for _ in range(40):
            x = torch.randn(16, 1).expand(16, 2)
            optimizer.zero_grad()
            (layer(x) - x[:, :1]).square().mean().backward()
            optimizer.step()
        optimizer.consolidate()
        before = layer.weight.detach().clone()
        for _ in range(20):
            layer.weight.grad = torch.tensor([[1e-2, -1e-2]])
            optimizer.step()
        apart = layer.weight.detach() - before
        for _ in range(20):
            layer.weight.grad = torch.tensor([[1e-2, 1e-2]])
            optimizer.step()
        together = layer.weight.detach() - before - apart
        return apart.norm().item(), together.norm().item()

    free, held = moved("kronecker")
    assert free > 8 * held
    by_element = moved("diagonal")
    assert by_element[0] < 2 * by_element[1]


def test_two_byte_state_holds_as_well() -> None:
    def drift(state_dtype: torch.dtype | None, protection: float = 100.0) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
        settings: dict[str, Any] = {"protection": protection, "consolidate_every": None}
        optimizer = SALAdamW(model.parameters(), lr=1e-2, state_dtype=state_dtype, **settings)
        inputs, targets = torch.randn(64, 12), torch.randn(64, 3)
        for step in range(80):
            if step == 40:
                optimizer.consolidate()
                old = model(inputs).detach()
                targets = targets.flip(0)
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()
        return float((model(inputs).detach() - old).norm())

    assert drift(torch.bfloat16) < 1.3 * drift(None) + 0.1
    assert drift(None) < 0.9 * drift(None, protection=0.0)


def test_factors_stay_in_four_bytes() -> None:
    """Directions in two bytes are not orthogonal, and forget as much as without protection."""
    param = nn.Parameter(torch.randn(40, 50, dtype=torch.bfloat16))
    optimizer = SALAdamW([param], state_dtype=torch.bfloat16)
    for _ in range(8):
        param.grad = torch.randn_like(param)
        optimizer.step()
    optimizer.consolidate()
    state = optimizer.state[param]
    assert state["anchor"].dtype is torch.bfloat16
    factors = {name: t.dtype for name, t in state.items() if name.startswith(SIDES)}
    assert set(factors.values()) == {torch.float32}
    basis = state["left_basis"]
    one = torch.eye(basis.shape[1])
    torch.testing.assert_close(basis.T @ basis, one, rtol=0.0, atol=1e-4)


def test_rows_that_no_gradient_has_touched() -> None:
    """An embedding's rows are zeros but for the words that were seen, some of them hardly."""
    table = nn.Embedding(200, 40)
    optimizer = SALSGD(table.parameters(), lr=0.1, protection=100.0, consolidate_every=None)
    with optimizer.observe():
        for _ in range(12):
            words = torch.randint(30, (6,))
            optimizer.zero_grad()
            (table(words).square() * 10.0 ** -(words[:, None] % 9).double()).mean().backward()
            optimizer.step()
    optimizer.consolidate()
    before = table.weight.detach().clone()
    for _ in range(8):
        table.weight.grad = torch.randn(200, 40)
        optimizer.step()
    assert table.weight.isfinite().all()
    moved = (table.weight - before).norm(dim=1)
    assert moved[30:].mean() > moved[:30:9].mean()


@pytest.mark.parametrize("kind", KINDS)
def test_restore_goes_back_to_the_anchor(kind: str) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = SALAdamW(model.parameters(), lr=1e-2, importance=kind, protection=0.01)
    with optimizer.observe():
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(1, 6)).square().sum().backward()
            optimizer.step()
    with pytest.warns(UserWarning, match="no consolidation yet"):
        optimizer.restore(1.0)
    optimizer.consolidate()
    start = [p.detach().clone() for p in model.parameters()]
    for _ in range(20):
        optimizer.zero_grad()
        (model(torch.randn(8, 6)) - 1).square().sum().backward()
        optimizer.step()

    def away() -> list[float]:
        pairs = zip(model.parameters(), start, strict=True)
        return [(p.detach() - a).norm().item() for p, a in pairs]

    gone = away()
    optimizer.restore(0.0)
    assert away() == pytest.approx(gone, rel=1e-5)
    last = gone
    for strength in (0.1, 1.0, 1e9):
        optimizer.restore(strength)
        now = away()
        assert all(new < old for new, old in zip(now, last, strict=True))
        last = now
    assert sum(last) < 1e-3 * sum(gone)
    optimizer.restore(1e300)
    assert all(p.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match=r"Invalid strength value: -1"):
        optimizer.restore(-1.0)
    with pytest.raises(ValueError, match="pull"):
        SALAdamW(model.parameters(), pull=0.0).restore(1.0)


def test_a_layer_restores_as_well() -> None:
    model = nn.Linear(6, 3)
    base = torch.optim.AdamW(model.parameters(), lr=1e-2)
    layer = CommunicationLayer(base, rank=2)
    for _ in range(4):
        base.zero_grad()
        model(torch.randn(8, 6)).square().sum().backward()
        base.step()
    layer.consolidate()
    start = model.weight.detach().clone()
    for _ in range(4):
        base.zero_grad()
        (model(torch.randn(8, 6)) - 1).square().sum().backward()
        base.step()
    gone = (model.weight - start).norm().item()
    layer.restore(10.0)
    assert (model.weight - start).norm().item() < gone
