"""Consistency edges: gradients that stay in their block, multipliers, convergence, bad input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from sal_optim.companions import ConsistencyEdges

pytest.importorskip("cooper")


def made(count: int = 2, **settings: Any) -> tuple[list[nn.Module], ConsistencyEdges]:
    torch.manual_seed(0)
    widths = [4, *[6] * (count - 1), 3]
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Linear(widths[i], widths[i + 1]), nn.Tanh()) for i in range(count)
    ]
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    x[:, :3] += 2.0 * torch.nn.functional.one_hot(y)
    return blocks, ConsistencyEdges(blocks, x, y, **settings)


def weights(block: nn.Module) -> list[torch.Tensor]:
    return [param.detach().clone() for param in block.parameters()]


def test_it_begins_consistent() -> None:
    _, edges = made(4)
    assert edges.edges == 3
    assert edges.violations() == pytest.approx([0.0] * 3, abs=1e-6)
    assert all(not edges.multiplier(k).any() for k in range(3))


def test_the_terms_are_those_of_the_augmented_lagrangian() -> None:
    blocks, edges = made(3, penalty=2.0)
    torch.manual_seed(1)
    edges.values[0] += torch.randn(60, 6)
    edges.multiplier(0).normal_()
    edges.multiplier(1).normal_()
    rows = torch.tensor([3, 10, 40])
    edges.local(rows)
    for place, block in enumerate(blocks):
        found = [param.grad.clone() for param in block.parameters() if param.grad is not None]
        # Steps changed the weights: gradients are compared at the weights that they were taken at.
        blocks_again, edges_again = made(3, penalty=2.0)
        given = [edges_again._x, edges.values[0], edges.values[1]][place][rows]
        out = blocks_again[place](given)
        if place == 2:
            term = nn.functional.cross_entropy(out, edges_again._y[rows])
        else:
            gap = out - edges.values[place][rows]
            multiplier = edges.multiplier(place)[rows]
            term = ((multiplier * gap).sum() + gap.square().sum()) / len(rows)
        expected = torch.autograd.grad(term, list(blocks_again[place].parameters()))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_no_gradient_passes_between_blocks() -> None:
    blocks, edges = made(3)
    before = [weights(block) for block in blocks]
    edges.local(torch.arange(20), block=1)
    edges.values[1] += 1.0
    edges.local(torch.arange(20), block=1)
    changed = [
        any(not torch.equal(a, b) for a, b in zip(then, weights(block), strict=True))
        for then, block in zip(before, blocks, strict=True)
    ]
    assert changed == [False, True, False]


def test_the_outer_step() -> None:
    blocks, edges = made(2, penalty=0.5, edge_lr=0.1)
    rows = torch.tensor([0, 1, 30])
    edges.values[0] += 0.3
    edges.multiplier(0).fill_(0.2)
    before, held = edges.values[0].clone(), edges.multiplier(0).clone()
    z = before[rows].requires_grad_()
    gap = blocks[0](edges._x[rows]) - z
    whole = (held[rows] * gap).sum() + 0.25 * gap.square().sum()
    whole = whole + nn.functional.cross_entropy(blocks[1](z), edges._y[rows], reduction="sum")
    (grad,) = torch.autograd.grad(whole, z)
    edges.outer(rows)
    torch.testing.assert_close(edges.values[0][rows], before[rows] - 0.1 * grad)
    after = blocks[0](edges._x[rows]) - edges.values[0][rows]
    torch.testing.assert_close(edges.multiplier(0)[rows], held[rows] + 0.5 * after.detach())
    rest = torch.ones(60, dtype=torch.bool)
    rest[rows] = False
    assert torch.equal(edges.values[0][rest], before[rest])
    assert torch.equal(edges.multiplier(0)[rest], held[rest])


def test_the_blocks_learn_together() -> None:
    def make(params: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=0.02)

    blocks, edges = made(3, optimizer=make, penalty=0.3)
    rows, first = torch.arange(60), weights(blocks[0])
    for _ in range(300):
        edges.local(rows)
        edges.outer(rows)
    assert any(not torch.equal(a, b) for a, b in zip(first, weights(blocks[0]), strict=True))
    right = (edges.model()(edges._x).argmax(1) == edges._y).float().mean()
    assert right > 0.9
    assert max(edges.violations()) < 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_blocks_of_another_precision(dtype: torch.dtype) -> None:
    blocks, _ = made(3)
    x, y = torch.randn(60, 4, dtype=dtype), torch.arange(60) % 3
    edges = ConsistencyEdges([block.to(dtype) for block in blocks], x, y)
    for _ in range(3):
        edges.local(torch.arange(60))
        edges.outer(torch.arange(60))
    assert all(value.dtype == dtype for value in edges.values)
    assert edges.multiplier(0).any()
    assert 0.0 < max(edges.violations()) < 1.0


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, edges = made()
    x, y = torch.randn(5, 4), torch.zeros(5, dtype=torch.long)
    for wrong in ([blocks[0]], 3, [blocks[0], nn.ReLU()]):
        with pytest.raises(ValueError, match=r"blocks.*two or more modules that have parameters"):
            ConsistencyEdges(wrong, x, y)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"inputs.*list.*2 samples"):
        ConsistencyEdges(blocks, [1.0], y)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"targets.*\(1,\).*2 samples"):
        ConsistencyEdges(blocks, x, y[:1])
    with pytest.raises(ValueError, match=r"targets.*4 samples.*5 inputs"):
        ConsistencyEdges(blocks, x, y[:4])
    with pytest.raises(TypeError, match=r"loss.*str"):
        ConsistencyEdges(blocks, x, y, "mse")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"optimizer.*int.*function of parameters"):
        ConsistencyEdges(blocks, x, y, optimizer=3)  # type: ignore[arg-type]
    for make in (list, torch.optim.LBFGS):
        with pytest.raises(TypeError, match=r"optimizer.*(list|LBFGS).*without a closure"):
            ConsistencyEdges(blocks, x, y, optimizer=make)  # type: ignore[arg-type]
    flat = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"blocks.*block 0.*shape \(5,\).*samples by features"):
        ConsistencyEdges([flat, blocks[1]], x, y)
    with pytest.raises(ValueError, match=r"blocks.*block 0.*parameters to train"):
        ConsistencyEdges([nn.Linear(4, 6).requires_grad_(False), blocks[1]], x, y)
    with pytest.raises(TypeError, match=r"can't be copied.*multiplier\(\)"):
        copy.deepcopy(edges)
    for name in ("penalty", "edge_lr"):
        with pytest.raises(ValueError, match=rf"{name}.*0.*\(0, inf\)"):
            ConsistencyEdges(blocks, x, y, **{name: 0.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"block.*2.*below 2"):
        edges.local(torch.arange(3), block=2)
    for rows in (torch.tensor([60]), torch.tensor([], dtype=torch.long), [1], torch.ones(3)):
        with pytest.raises(ValueError, match=r"rows.*below 60"):
            edges.outer(rows)  # type: ignore[arg-type]

    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("sal_optim.utils.lazy_import.importlib.import_module", absent)
    with pytest.raises(ImportError, match=r"needs the package cooper.*sal_optim\[channels\]"):
        ConsistencyEdges(blocks, x, y)
