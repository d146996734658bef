"""Importance of other blocks: within one old block its restriction, of several their sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim.importance import IMPORTANCE, reblocking
from sal_optim.importance.kronecker import SIDES, total
from sal_optim.importance.reblocking import Piece, reblocked
from sal_optim.sharding.places import Place
from tests.testing.drive import seeded

SHAPE = (40, 30)
STEPS = 200


def gradients(shape: tuple[int, int] = SHAPE) -> list[Tensor]:
    """Of importance that is a Kronecker product: smooth, of a few directions, and some noise."""
    draw = seeded(3)
    rows, columns = (torch.linspace(0.0, 3.0, n)[:, None] for n in shape)
    sizes = 0.5 ** torch.arange(4)
    left = torch.cat([(rows * k + 1).sin() for k in range(1, 5)], 1) * sizes
    right = torch.cat([(columns * k).cos() for k in range(1, 5)], 1) * sizes
    return [
        left @ torch.randn(4, 4, generator=draw) @ right.T
        + 0.02 * torch.randn(shape, generator=draw)
        for _ in range(STEPS)
    ]


def zeros(kind: str, shape: tuple[int, ...], rank: int) -> dict[str, Any]:
    return {name: torch.zeros(s) for name, s in IMPORTANCE[kind].shapes(shape, rank).items()}


def gathered(kind: str, grads: list[Tensor], rank: int) -> dict[str, Any]:
    state = zeros(kind, tuple(grads[0].shape), rank)
    for grad in grads:
        IMPORTANCE[kind].accumulate([state], [grad], 1.0, 0.5)
    merge: Any = IMPORTANCE[kind].merge
    merge(state, grads[0], new=1 / len(grads), old=0.0, memory=0.2, at=0.5)
    return state


def cut(way: str) -> list[Place]:
    """Uneven blocks of rows, of columns, or both."""
    rows = [(0, 13), (13, 20), (33, 7)] if way != "columns" else [(0, 40)]
    columns = [(0, 8), (8, 22)] if way != "rows" else [(0, 30)]
    return [Place((r, c), (m, n)) for r, m in rows for c, n in columns]


def given(kind: str, olds: list[tuple[Place, dict[str, Any]]], new: Place, rank: int) -> Any:
    pieces = []
    for place, state in olds:
        box = place.shared(new)
        if box is not None:
            there, here = place.rows_and_columns(box), new.rows_and_columns(box)
            pieces.append(Piece(state, there, here))
    found = zeros(kind, new.size, rank)
    reblocked(IMPORTANCE[kind], pieces, found)
    return found


def factors(state: dict[str, Any]) -> list[Tensor]:
    """L and R as matrices."""
    found = []
    for side in SIDES:
        basis, values = state[f"{side}_basis"].double(), state[f"{side}_values"].double()
        rest = values[-1] * torch.eye(len(basis), dtype=torch.float64)
        found.append(basis * (values[:-1] - values[-1]) @ basis.T + rest)
    return found


def elements(kind: str, state: dict[str, Any], shape: tuple[int, ...]) -> Tensor:
    return IMPORTANCE[kind].elements(state, torch.zeros(shape))


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


@pytest.mark.parametrize("rank", [4, 16, 64])
@pytest.mark.parametrize(
    "new", [Place((5, 0), (17, 30)), Place((0, 11), (40, 9)), Place((8, 3), (3, 20))]
)
def test_within_one_block_it_is_the_restriction(new: Place, rank: int) -> None:
    """Of L x R / T as an operator, to 1e-5, though only the strongest directions are kept."""
    whole = Place((0, 0), SHAPE)
    old = gathered("kronecker", gradients(), rank)
    found = given("kronecker", [(whole, old)], new, rank)
    (left, right), known = factors(old), float(total(old, torch.float64))
    rows, columns = new.slices
    wanted = torch.kron(left[rows, rows], right[columns, columns]) / known
    got = torch.kron(*factors(found)) / float(total(found, torch.float64))
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5
    torch.testing.assert_close(
        elements("kronecker", found, new.size),
        elements("kronecker", old, SHAPE)[new.slices],
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("way", ["rows", "columns", "both"])
def test_all_directions_of_several_blocks(way: str) -> None:
    """The sum of the other side is that of the gradients of the whole, to 1e-5."""
    grads, rank = gradients(), 64
    olds = [(p, gathered("kronecker", [g[p.slices] for g in grads], rank)) for p in cut(way)]
    found = given("kronecker", olds, Place((0, 0), SHAPE), rank)
    true = factors(gathered("kronecker", grads, rank))
    got = factors(found)
    for side, exact in enumerate({"rows": (False, True), "columns": (True, False)}.get(way, ())):
        error = float((got[side] - true[side]).norm() / true[side].norm())
        assert error < 1e-5 if exact else error > 0.1
        torch.testing.assert_close(got[side].diagonal(), true[side].diagonal(), rtol=1e-4, atol=0)
    energy = sum(float(g.square().sum()) for g in grads) / len(grads)
    assert [float(side.trace()) for side in got] == pytest.approx([energy, energy], rel=1e-5)


@pytest.mark.parametrize("way", ["rows", "columns", "both"])
@pytest.mark.parametrize("rank", [4, 16])
def test_several_blocks_of_low_rank(way: str, rank: int) -> None:
    """Energy is kept, and elements are as the mean of squared gradients is."""
    grads = gradients()
    olds = [(p, gathered("kronecker", [g[p.slices] for g in grads], rank)) for p in cut(way)]
    found = given("kronecker", olds, Place((0, 0), SHAPE), rank)
    energy = sum(float(total(state, torch.float64)) for _, state in olds)
    assert float(total(found, torch.float64)) == pytest.approx(energy, rel=1e-5)
    assert [float(side.trace()) for side in factors(found)] == pytest.approx([energy] * 2, rel=1e-4)
    true = torch.stack(grads).square().mean(0)
    own = elements("kronecker", gathered("kronecker", grads, rank), SHAPE)
    got = elements("kronecker", found, SHAPE)
    assert correlation(got, true) > 0.9
    assert correlation(got, own) > 0.95
    basis = found["left_basis"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(rank), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rank", [4, 64])
def test_parts_of_several_blocks(rank: int) -> None:
    """As where three processes become two."""
    grads, new = gradients(), Place((10, 0), (25, 30))
    olds = [(p, gathered("kronecker", [g[p.slices] for g in grads], rank)) for p in cut("rows")]
    found = given("kronecker", olds, new, rank)
    true = torch.stack(grads).square().mean(0)[new.slices]
    assert correlation(elements("kronecker", found, new.size), true) > 0.9


def test_very_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are narrowed on the way, which loses next to nothing of a few directions."""
    grads, places = gradients((64, 48)), [Place((r, 0), (4, 48)) for r in range(0, 64, 4)]
    olds = [(p, gathered("kronecker", [g[p.slices] for g in grads], 4)) for p in places]
    whole = Place((0, 0), (64, 48))
    one = given("kronecker", olds, whole, 4)
    calls = []
    narrowed = reblocking._narrowed
    monkeypatch.setattr(reblocking, "MANY", 24)
    monkeypatch.setattr(reblocking, "_narrowed", lambda *a: calls.append(a) or narrowed(*a))
    two = given("kronecker", olds, whole, 4)
    assert len(calls) > 2
    for left, right in zip(factors(one), factors(two), strict=True):
        assert float(right.trace()) == pytest.approx(float(left.trace()), rel=1e-5)
        assert float((left - right).norm() / left.norm()) < 0.05


def test_a_block_of_nothing_has_no_importance() -> None:
    """Rows that never had a gradient, beside others."""
    grads = [grad * (torch.arange(40) < 13)[:, None] for grad in gradients()]
    olds = [(p, gathered("kronecker", [g[p.slices] for g in grads], 4)) for p in cut("rows")]
    found = elements("kronecker", given("kronecker", olds, Place((0, 0), SHAPE), 4), SHAPE)
    assert bool(found.isfinite().all())
    # What is left out of the strongest directions is anywhere.
    assert float(found[13:].mean()) < 0.01 * float(found[:13].mean())
    nothing = given("kronecker", olds[1:], Place((13, 0), (27, 30)), 4)
    assert not elements("kronecker", nothing, (27, 30)).any()


@pytest.mark.parametrize("way", ["rows", "columns", "both"])
def test_factored_is_exact(way: str) -> None:
    """Means of rows and columns of several blocks are those of the whole, and back."""
    grads, whole = gradients(), Place((0, 0), SHAPE)
    true = gathered("factored", grads, 4)
    if way != "both":
        olds = [(p, gathered("factored", [g[p.slices] for g in grads], 4)) for p in cut(way)]
        found = given("factored", olds, whole, 4)
        for name in ("evidence_row", "evidence_column"):
            torch.testing.assert_close(found[name], true[name], rtol=1e-5, atol=0)
    for new in cut(way):
        part = given("factored", [(whole, true)], new, 4)
        torch.testing.assert_close(
            elements("factored", part, new.size), elements("factored", true, SHAPE)[new.slices]
        )


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"importance value: 'diagonal'; only 'kronecker'"):
        reblocked(IMPORTANCE["diagonal"], [], {})


@pytest.mark.parametrize("kind", ["kronecker", "factored"])
def test_another_default_device_changes_nothing(kind: str) -> None:
    """As under torch.set_default_device("cuda"): files are read on the host."""
    olds = [(p, gathered(kind, [g[p.slices] for g in gradients()], 4)) for p in cut("both")]
    new = Place((5, 3), (30, 20))
    expected, found = given(kind, olds, new, 4), zeros(kind, new.size, 4)
    pieces = []
    for place, state in olds:
        box = place.shared(new)
        assert box is not None
        pieces.append(Piece(state, place.rows_and_columns(box), new.rows_and_columns(box)))
    with torch.device("meta"):
        reblocked(IMPORTANCE[kind], pieces, found)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
