"""OWM, GPM and NCL against what their equations say, on networks small enough to do it by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.methods import METHODS
from benchmarks.methods.base import Method
from benchmarks.methods.bases import BASES
from benchmarks.methods.kfac import joined, kronecker_fisher, linear_layers
from benchmarks.methods.ncl import NCL, nearest_sum
from benchmarks.methods.projection import GPM, OWM, extended, moments
from benchmarks.runs.networks import mlp
from benchmarks.streams import Batch

RANK = 3


def task(seed: int, rank: int = RANK, rows: int = 40) -> Batch:
    """Inputs in a random subspace of `rank` of the 8 dimensions, and labels."""
    source = torch.Generator().manual_seed(seed)
    span = torch.randn(rank, 8, dtype=torch.float64, generator=source)
    x = torch.rand(rows, rank, dtype=torch.float64, generator=source) @ span
    return Batch(x, torch.randint(3, (rows,), generator=source))


def backward(model: nn.Module, batch: Batch) -> None:
    model.zero_grad()
    cross_entropy(model(batch.x), batch.y).backward()  # type: ignore[no-untyped-call]


def step(model: nn.Module, method: Method, batch: Batch) -> None:
    backward(model, batch)
    method.before_step(batch)
    method.optimizer.step()


def network() -> nn.Sequential:
    return mlp(8, (), 3, seed=0).double()


def test_gpm_leaves_the_answers_to_old_inputs_alone() -> None:
    model, old, new = network(), task(0), task(1)
    method = GPM(model, BASES["plain-sgd"].make(model.parameters(), 0.5), first_threshold=1 - 1e-12)
    free = model(old.x).detach()
    step(model, method, new)
    assert (model(old.x) - free).abs().max() > 1e-2  # nothing is held before the first boundary
    method.boundary(old)
    # The subspace of the inputs, with the 1 that is appended.
    assert method.bases[0].shape == (9, RANK + 1)
    held, other = model(old.x).detach(), model(new.x).detach()
    for _ in range(10):
        step(model, method, new)
    assert torch.allclose(model(old.x), held, atol=1e-9)
    assert (model(new.x) - other).abs().max() > 1e-2


def test_gpm_holds_the_fewest_directions_that_reach_the_threshold() -> None:
    source = torch.Generator().manual_seed(0)
    columns = torch.randn(6, 20, dtype=torch.float64, generator=source)
    shares = torch.linalg.svdvals(columns).square()
    shares = shares.cumsum(0) / shares.sum()
    for count in range(1, 6):
        threshold = float(shares[count - 1]) - 1e-9
        basis = extended(torch.zeros(6, 0, dtype=torch.float64), columns, threshold)
        assert basis.shape == (6, count)
        assert torch.allclose(basis.T @ basis, torch.eye(count).double(), atol=1e-9)
        assert extended(basis, columns, threshold) is basis
    more = torch.randn(6, 20, dtype=torch.float64, generator=source)
    wider = extended(basis, more, 1 - 1e-12)
    assert torch.equal(wider[:, :5], basis)
    assert torch.allclose(wider.T @ wider, torch.eye(6).double(), atol=1e-9)


def test_owm_is_recursive_least_squares() -> None:
    """P ← P - P a aᵀ P / (1 + aᵀ P a) over examples, which is what the paper does by batches."""
    model, first, second = network(), task(0), task(1)
    method = OWM(model, BASES["sgd"].make(model.parameters(), 0.1), damping=0.3)
    expected = torch.eye(9, dtype=torch.float64)
    for batch in (first, second):
        method.boundary(batch)
        for x in batch.x:
            a = torch.cat([x, x.new_ones(1)]) / (0.3 * len(batch.x)) ** 0.5
            seen = expected @ a
            expected = expected - torch.outer(seen, seen) / (1 + a @ seen)
    assert torch.allclose(method.projectors[0], expected, atol=1e-10)
    backward(model, second)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    method.before_step(second)
    want = torch.cat([before[0], before[1][:, None]], 1) @ expected
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert torch.allclose(torch.cat([after[0], after[1][:, None]], 1), want)
    assert not torch.allclose(after[0], before[0])


def test_moments_are_means_over_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.methods.projection.CHUNK", 7)
    model, batch = mlp(8, (5,), 3, seed=0).double(), task(0)
    hidden = torch.relu(model[0](batch.x))
    for found, inputs in zip(moments(model, batch), (batch.x, hidden), strict=True):
        whole = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
        want = torch.stack([torch.outer(a, a) for a in whole]).mean(0)
        assert torch.allclose(found, want)


def test_ncl_follows_the_gradient_in_the_posteriors_geometry() -> None:
    """ΔW against the dense precision Λ = A ⊗ G of all of a layer's weights."""
    model, old, new, prior = network(), task(0), task(1), 0.05
    method = NCL(model, BASES["plain-sgd"].make(model.parameters(), 0.1), prior=prior)
    (layer,) = linear_layers(model)
    ((a, g),) = kronecker_fisher(model, old)
    backward(model, new)
    plain = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)  # type: ignore[list-item,index]
    method.before_step(new)
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, (plain + prior * joined(layer))[:, :-1])
    method.boundary(old)
    eyes = prior**0.5 * torch.eye(9).double(), prior**0.5 * torch.eye(3).double()
    a, g = nearest_sum(eyes, (a, g))
    mean = joined(layer)
    step(model, method, new)
    backward(model, new)
    plain = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)  # type: ignore[list-item]
    method.before_step(new)
    dense = torch.linalg.solve(torch.kron(g, a), plain.flatten()).view_as(plain)
    want = prior * (dense + joined(layer) - mean)
    assert (joined(layer) - mean).abs().max() > 1e-6
    assert torch.allclose(layer.weight.grad, want[:, :-1])
    assert torch.allclose(layer.bias.grad, want[:, -1])


def test_a_sum_of_kronecker_products_has_its_cross_terms_balanced() -> None:
    def factor(size: int, seed: int) -> Tensor:
        root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double()
        return root @ root.T

    a, g, c, h = factor(4, 0), factor(3, 1), factor(4, 2), factor(3, 3)
    total_a, total_g = nearest_sum((a, g), (c, h))
    more_a, more_g = total_a - a, total_g - g
    assert float(a.trace() * more_g.trace()) == pytest.approx(float(more_a.trace() * g.trace()))
    assert torch.allclose(torch.kron(more_a, more_g), torch.kron(c, h))
    nothing = torch.zeros_like(c), torch.zeros_like(h)
    assert nearest_sum((a, g), nothing) == (a, g)


@pytest.mark.parametrize("name", ["owm", "gpm", "ncl"])
def test_they_hold_more_than_their_base(name: str) -> None:
    """Trained on one task and then on another of other inputs, against the base optimizer."""
    old, new = task(0), task(1)
    losses = {}
    for method_name in (METHODS[name].base, name):
        model = mlp(8, (16,), 3, seed=0).double()
        method = METHODS[method_name].build(model, 0.1, {})
        for batch in (old, new):
            for _ in range(200):
                step(model, method, batch)
            if batch is old:
                before = cross_entropy(model(old.x), old.y).item()
                if method.told:
                    method.boundary(old)
        losses[method_name] = cross_entropy(model(old.x), old.y).item() - before
    assert losses[name] < 0.5 * losses[METHODS[name].base]


@pytest.mark.parametrize("name", ["owm", "gpm", "ncl"])
def test_momentum_of_the_past_is_dropped(name: str) -> None:
    model = network()
    method = METHODS[name].build(model, 0.1, {})
    step(model, method, task(0))
    method.boundary(task(0))
    assert not method.optimizer.state
