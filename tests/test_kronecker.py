"""Evidence by direction: what it holds, against the same mathematics written out densely."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim import SALSGD, CommunicationLayer, SALAdamW, kronecker


def state(rows: int, columns: int, rank: int = 128) -> dict[str, Tensor]:
    shapes = kronecker.shapes(rows, columns, rank)
    return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}


def gathered(sides: dict[str, Tensor], grads: list[Tensor]) -> Tensor:
    """The sum of squares of the gradients that the sides have taken in."""
    for grad in grads:
        kronecker.gather(sides, grad, 1.0, 0.0)
    return torch.stack([grad.square().sum() for grad in grads]).sum()


def settle(
    sides: dict[str, Tensor], weights: Tensor, anchor: Tensor, pending: Tensor, **known: float
) -> None:
    total = torch.tensor(known.pop("known", 0.0), dtype=weights.dtype)
    numbers = {"weight": 1.0, "keep": 1.0, "memory": 0.1, **known}
    kronecker.settle(sides, weights, anchor, pending=pending, known=total, **numbers)


def gradients(count: int, rows: int, columns: int, rank: int) -> list[Tensor]:
    """Gradients of low rank, all of one column space and one row space."""
    left = torch.randn(rows, rank, dtype=torch.float64)
    right = torch.randn(columns, rank, dtype=torch.float64)
    return [
        left @ torch.randn(rank, rank, dtype=torch.float64) @ right.T / rank for _ in range(count)
    ]


def pulled_densely(move: Tensor, left: Tensor, right: Tensor, stiffness: float) -> Tensor:
    """What is left of a move, with every direction of both sides written out."""
    rows, q = torch.linalg.eigh(left)
    columns, r = torch.linalg.eigh(right)
    springs = stiffness * torch.outer(rows, columns).clamp_min(0.0) / left.trace()
    kept = (q.T @ move @ r) / (1.0 + springs)
    found: Tensor = q @ kept @ r.T
    return found


@pytest.mark.parametrize(
    ("rank", "rows", "columns", "of"),
    [(128, 7, 5, 4), (128, 5, 7, 7), (4, 9, 6, 3), (4, 30, 6, 3), (4, 30, 40, 3)],
    ids=["whole", "wide", "cut", "one sketch", "two sketches"],
)
def test_pull_is_the_dense_one(rank: int, rows: int, columns: int, of: int) -> None:
    torch.manual_seed(0)
    sides, grads = state(rows, columns, rank), gradients(6, rows, columns, of)
    total = gathered(sides, grads)
    anchor = torch.randn(rows, columns, dtype=torch.float64)
    settle(sides, anchor.clone(), anchor, total)
    move = torch.randn(rows, columns, dtype=torch.float64)
    weights = anchor + move
    kronecker.pull(weights, anchor, sides, total, 0.7)
    left = torch.stack([g @ g.T for g in grads]).sum(0)
    right = torch.stack([g.T @ g for g in grads]).sum(0)
    expected = anchor + pulled_densely(move, left, right, 0.7)
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-6)
    assert (weights - anchor - move).norm() > 0.01 * move.norm()


@pytest.mark.parametrize("rank", [128, 4])
def test_second_regime_adds_and_moves_the_anchor(rank: int) -> None:
    """Where the second regime says all, the anchor is its weights; where the first, its own."""
    torch.manual_seed(0)
    rows, columns = 24, 6
    one, two = (torch.zeros(rows, columns, dtype=torch.float64) for _ in range(2))
    one[0, 0], two[1, 1] = 2.0, 1.0
    sides, anchor = state(rows, columns, rank), torch.zeros(rows, columns, dtype=torch.float64)
    first = torch.randn(rows, columns, dtype=torch.float64)
    settle(sides, first, anchor, gathered(sides, [one]))
    second = torch.randn(rows, columns, dtype=torch.float64)
    settle(sides, second, anchor, gathered(sides, [two]), known=4.0, weight=3.0)
    values = sides["left_values"]
    torch.testing.assert_close(values[:2], torch.tensor([4.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(anchor[1, 1], second[1, 1])
    torch.testing.assert_close(anchor[0, 0], first[0, 0])
    assert not sides["left_pending"].any()


def test_what_is_cut_away_counts_by_its_mean() -> None:
    torch.manual_seed(0)
    sides = state(20, 5, 3)
    anchor = torch.zeros(20, 5, dtype=torch.float64)
    total = gathered(sides, [torch.randn(20, 5, dtype=torch.float64) for _ in range(40)])
    settle(sides, anchor.clone(), anchor, total)
    for side, size in (("left_", 20), ("right_", 5)):
        values, basis = sides[f"{side}values"], sides[f"{side}basis"]
        torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
        assert values[-1] > 0
        torch.testing.assert_close(values[:-1].sum() + (size - 3) * values[-1], total)


def test_moves_that_change_nothing_stay_free() -> None:
    """Two inputs that are always equal: what one weight gains the other may lose.

    Evidence by element holds both, evidence by direction only their sum.
    """

    def moved(granularity: str) -> tuple[float, float]:
        torch.manual_seed(0)
        layer = nn.Linear(2, 1, bias=False)
        optimizer = SALSGD(
            layer.parameters(), lr=0.1, protection=1e-3, pull=1e7, granularity=granularity
        )
        for _ in range(40):
            x = torch.randn(16, 1).expand(16, 2)
            optimizer.zero_grad()
            (layer(x) - x[:, :1]).square().mean().backward()
            optimizer.step()
        optimizer.consolidate()
        before = layer.weight.detach().clone()
        for _ in range(40):
            layer.weight.grad = torch.tensor([[1e-2, -1e-2]])
            optimizer.step()
        apart = layer.weight.detach() - before
        for _ in range(40):
            layer.weight.grad = torch.tensor([[1e-2, 1e-2]])
            optimizer.step()
        together = layer.weight.detach() - before - apart
        return apart.norm().item(), together.norm().item()

    free, held = moved("kronecker")
    assert free > 8 * held
    by_element = moved("element")
    assert by_element[0] < 2 * by_element[1]


def test_rank_bounds_the_state() -> None:
    layer = nn.Linear(50, 30, bias=False)
    optimizer = SALAdamW(layer.parameters(), granularity="kronecker", rank=4)
    layer.weight.grad = torch.randn(30, 50)
    optimizer.step()
    found = {n: tuple(t.shape) for n, t in optimizer.state[layer.weight].items() if "_b" in n}
    assert found == {"left_basis": (30, 4), "right_basis": (50, 4)}
    with pytest.raises(ValueError, match=r"rank.*0"):
        SALAdamW(layer.parameters(), rank=0)


def test_two_byte_state_holds_as_well() -> None:
    def drift(state_dtype: torch.dtype | None) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
        settings: dict[str, Any] = {"protection": 0.01, "pull": 1e4, "granularity": "kronecker"}
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
        return float((model(inputs) - old).norm())

    assert drift(torch.bfloat16) < 1.3 * drift(None) + 0.1


def test_rows_that_no_gradient_has_touched() -> None:
    """An embedding's rows are zeros but for the words that were seen, some of them hardly."""
    torch.manual_seed(0)
    table = nn.Embedding(200, 40)
    optimizer = SALAdamW(table.parameters(), protection=0.01, pull=1e3, granularity="kronecker")
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


@pytest.mark.parametrize("granularity", ["element", "factored", "tensor", "kronecker"])
def test_restore_goes_back_to_the_anchor(granularity: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = SALAdamW(model.parameters(), lr=1e-2, granularity=granularity, protection=0.0)
    with optimizer.observe():
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(1, 6)).square().sum().backward()
            optimizer.step()
    optimizer.restore(1.0)  # no evidence yet
    optimizer.consolidate()
    start = [p.detach().clone() for p in model.parameters()]
    for _ in range(20):
        optimizer.zero_grad()
        (model(torch.randn(8, 6)) - 1).square().sum().backward()
        optimizer.step()
    gone = [(p.detach() - a).norm().item() for p, a in zip(model.parameters(), start, strict=True)]
    optimizer.restore(0.0)
    same = [(p.detach() - a).norm().item() for p, a in zip(model.parameters(), start, strict=True)]
    assert same == pytest.approx(gone, rel=1e-5)
    last = gone
    for strength in (0.1, 1.0, 1e9):
        optimizer.restore(strength)
        now = [
            (p.detach() - a).norm().item() for p, a in zip(model.parameters(), start, strict=True)
        ]
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
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    base = torch.optim.AdamW(model.parameters(), lr=1e-2)
    layer = CommunicationLayer(base, granularity="kronecker", rank=2)
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
