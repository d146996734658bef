"""The Kronecker-factored penalties against brute force and against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.data.errors import UserError
from benchmarks.methods.bases import BASES
from benchmarks.methods.ewc import diagonal_fisher
from benchmarks.methods.kfac import KFAC, joined, kronecker_fisher, linear_layers
from benchmarks.runs.networks import build, mlp
from benchmarks.streams import Batch, masked


def inputs(rows: int, features: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(rows, features, dtype=torch.float64, generator=source)


@pytest.mark.parametrize("bias", [True, False])
def test_of_one_example_it_is_the_fisher_of_every_layer(bias: bool) -> None:
    """Of one example a aᵀ ⊗ Σ p g gᵀ is the layer's Fisher, not only its diagonal."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5, bias=bias), nn.Tanh(), nn.Linear(5, 3, bias=bias)]
    model = nn.Sequential(*layers).double()
    x = inputs(1, 4)
    log_p = model(x).log_softmax(1)[0]
    for layer, (a, b) in zip(
        linear_layers(model), kronecker_fisher(model, Batch(x, torch.zeros(1))), strict=True
    ):
        fisher = torch.zeros(b.shape[0] * a.shape[0], b.shape[0] * a.shape[0]).double()
        for one in log_p:
            grads = torch.autograd.grad(one, list(layer.parameters()), retain_graph=True)
            whole = torch.cat([grad.view(len(b), -1) for grad in grads], 1).flatten()
            fisher += one.detach().exp() * torch.outer(whole, whole)
        assert torch.allclose(torch.kron(b, a), fisher, rtol=1e-10, atol=1e-14)
        assert fisher.diagonal().max() > 0


@pytest.mark.parametrize("with_mask", [False, True])
def test_factors_are_means_over_examples(with_mask: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean by mean: the factors of one example at a time, in chunks of another size."""
    monkeypatch.setattr("benchmarks.methods.kfac.CHUNK", 4)
    model, x = mlp(5, (7, 6), 4, seed=0).double(), inputs(11, 5)
    mask = torch.rand(11, 4) < 0.6
    mask[:, 1] = True
    found = kronecker_fisher(model, Batch(x, torch.zeros(11), mask if with_mask else None))
    each = [
        kronecker_fisher(model, Batch(x[i : i + 1], torch.zeros(1), mask[i] if with_mask else None))
        for i in range(11)
    ]
    for place, factors in enumerate(found):
        for side in (0, 1):
            mean = torch.stack([one[place][side] for one in each]).mean(0)
            assert torch.allclose(factors[side], mean, rtol=1e-10, atol=1e-14)


def test_where_inputs_have_one_size_the_diagonal_is_ewcs() -> None:
    """Inputs of ±1 make A's diagonal 1, so that the product of the diagonals is exact."""
    model, x = mlp(5, (), 3, seed=0).double(), inputs(9, 5).sign()
    task = Batch(x, torch.zeros(9))
    ((a, b),) = kronecker_fisher(model, task)
    weight, bias = diagonal_fisher(model, task)
    assert torch.allclose(torch.outer(b.diagonal(), a.diagonal()[:-1]), weight, rtol=1e-10)
    assert torch.allclose(b.diagonal() * a[-1, -1], bias, rtol=1e-10)
    assert torch.allclose(a[:-1, -1], x.mean(0))


def test_it_adds_the_gradient_of_all_past_penalties() -> None:
    model = mlp(3, (4,), 2, seed=0).double()
    method = KFAC(model, BASES["sgd"].make(model.parameters(), 0.1), strength=5.0)
    past = []
    for seed in (0, 1):
        task = Batch(inputs(6, 3, seed), torch.zeros(6))
        anchors = [joined(layer) for layer in linear_layers(model)]
        past.append((kronecker_fisher(model, task), anchors))
        method.boundary(task)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.linspace(-0.3, 0.5, p.numel()).view_as(p))
    terms = []
    for factors, anchors in past:
        for layer, (a, b), anchor in zip(linear_layers(model), factors, anchors, strict=True):
            moved = torch.cat([layer.weight, layer.bias[:, None]], 1) - anchor
            terms.append(2.5 * torch.trace(moved @ a @ moved.T @ b))
    expected = torch.autograd.grad(torch.stack(terms).sum(), list(model.parameters()))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    method.before_step(task)
    for p, want in zip(model.parameters(), expected, strict=True):
        assert p.grad is not None
        assert want.abs().max() > 1e-3
        assert torch.allclose(p.grad, want + 1, rtol=1e-10)


def test_the_penalty_of_a_small_move_is_the_loss_of_what_was_learned() -> None:
    """One layer and one input: λ/2 · tr(ΔW A ΔWᵀ B) is the divergence from the old answers."""
    model, x = mlp(4, (), 3, seed=0).double(), inputs(1, 4)
    ((a, b),) = kronecker_fisher(model, Batch(x, torch.zeros(1)))
    before = masked(model(x), None).log_softmax(1).detach()
    moved = 1e-3 * inputs(3, 5, seed=1)
    with torch.no_grad():
        model[0].weight.add_(moved[:, :-1])
        model[0].bias.add_(moved[:, -1])
    after = model(x).log_softmax(1)
    divergence = (before.exp() * (before - after)).sum()
    penalty = 0.5 * torch.trace(moved @ a @ moved.T @ b)
    assert penalty.item() == pytest.approx(divergence.item(), rel=1e-2)


def test_a_conv_net_is_refused() -> None:
    model = build("conv", 16, (5,), 3, seed=0)
    with pytest.raises(UserError, match="need a network of linear layers"):
        KFAC(model, BASES["sgd"].make(model.parameters(), 0.1))
