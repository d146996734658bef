"""The Kronecker factors against curvlinops: kfac-ewc's and the optimizers' own importance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.methods.kfac import kronecker_fisher, linear_layers
from benchmarks.runs.networks import mlp
from benchmarks.streams import Batch
from sal_optim.importance.kronecker import Kronecker, along, bases

curvlinops = pytest.importorskip("curvlinops", exc_type=ImportError)

EXAMPLES, CLASSES = 40, 3


def data(examples: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 6, dtype=torch.float64, generator=source)
    return x, torch.randint(CLASSES, (examples,), generator=source)


def operator(model: nn.Module, x: Tensor, y: Tensor, *, fisher: str, kind: str = "KFAC") -> object:
    """Theirs, over one batch of all examples and the mean of their losses."""
    made = getattr(curvlinops, f"{kind}LinearOperator")
    return made(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x, y)],
        fisher_type=fisher,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )


def moves(model: nn.Module, seed: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, dtype=p.dtype, generator=source) for p in model.parameters()]


def test_kfac_ewc_has_their_factors() -> None:
    """A move ΔW, the bias as last column, is B ΔW A in both, over the model's own predictions."""
    model = mlp(6, (5, 4), CLASSES, seed=0).double()
    x, y = data()
    theirs = operator(model, x, y, fisher="type-2")
    found = kronecker_fisher(model, Batch(x, y))
    move = moves(model, 1)
    expected = theirs @ move  # type: ignore[operator]
    for place, (a, b) in enumerate(found):
        weight, bias = move[2 * place], move[2 * place + 1]
        ours = b @ torch.cat([weight, bias[:, None]], 1) @ a
        want = torch.cat([expected[2 * place], expected[2 * place + 1][:, None]], 1)
        assert want.abs().max() > 1e-4
        assert torch.allclose(ours, want, rtol=1e-8, atol=1e-12)


def importance(model: nn.Module, x: Tensor, y: Tensor) -> list[tuple[Kronecker, dict[str, Tensor]]]:
    """Our importance of each weight matrix, from the gradients of single examples, all ranks."""
    layers = linear_layers(model)
    found = []
    for layer in layers:
        weight = layer.weight
        kind = Kronecker()
        rank = max(weight.shape)
        shapes = kind.shapes(tuple(weight.shape), rank)
        state = {name: torch.zeros(shape, dtype=weight.dtype) for name, shape in shapes.items()}
        for one, label in zip(x, y, strict=True):
            loss = nn.functional.cross_entropy(model(one[None]), label[None])
            (grad,) = torch.autograd.grad(loss, [weight])
            kind.accumulate([state], [grad], 1 / math.sqrt(len(x)), 0.0)
        kind.merge(state, weight.detach(), new=1.0, old=0.0, memory=1.0, at=0.0)
        found.append((kind, state))
    return found


def without_biases() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, CLASSES, bias=False)]
    return nn.Sequential(*layers).double()


def applied(found: tuple[Kronecker, dict[str, Tensor]], move: Tensor) -> Tensor:
    kind, state = found
    return along(kind._table(state, None, move.dtype), move, *bases(state, move.dtype))


@pytest.mark.parametrize("kind", ["KFAC", "EKFAC"])
def test_of_one_example_our_importance_is_theirs(kind: str) -> None:
    """There the empirical Fisher of a matrix is a Kronecker product, and all three are exact."""
    model, (x, y) = without_biases(), data(1)
    move = moves(model, 1)
    expected = operator(model, x, y, fisher="empirical", kind=kind) @ move  # type: ignore[operator]
    for found, step, want in zip(importance(model, x, y), move, expected, strict=True):
        assert want.abs().max() > 1e-4
        assert torch.allclose(applied(found, step), want, rtol=1e-6, atol=1e-10)


def quadratic(model: nn.Module, forms: object, seed: int) -> list[float]:
    """Of one random move of each matrix: its importance by an operator of theirs, or by ours."""
    move = moves(model, seed)
    if isinstance(forms, list):
        seen = [applied(form, step) for form, step in zip(forms, move, strict=True)]
    else:
        seen = forms @ move  # type: ignore[operator]
    return [float((step * one).sum()) for step, one in zip(move, seen, strict=True)]


def test_of_many_examples_the_total_is_ek_facs() -> None:
    """The trace of the empirical Fisher, which EK-FAC has exactly, and KFAC has not."""
    model, (x, y) = without_biases(), data()
    sizes = [p.numel() for p in model.parameters()]
    traces: dict[str, list[float]] = {}
    for kind in ("KFAC", "EKFAC"):
        theirs = operator(model, x, y, fisher="empirical", kind=kind)
        whole = theirs @ torch.eye(sum(sizes), dtype=x.dtype)  # type: ignore[operator]
        traces[kind] = [float(part.sum()) for part in whole.diagonal().split(sizes)]
    for place, (kind, state) in enumerate(importance(model, x, y)):
        own = float(kind.elements(state, list(model.parameters())[place]).sum())
        assert own == pytest.approx(traces["EKFAC"][place], rel=1e-8)
        assert own != pytest.approx(traces["KFAC"][place], rel=1e-3)


def test_of_many_examples_moves_rank_as_with_theirs() -> None:
    """Over 200 random moves: how far the forms agree is measured, and stays so."""
    model, (x, y) = without_biases(), data()
    ours = importance(model, x, y)
    for kind, least in (("KFAC", 0.95), ("EKFAC", 0.95)):
        theirs = operator(model, x, y, fisher="empirical", kind=kind)
        pairs = [(quadratic(model, ours, s), quadratic(model, theirs, s)) for s in range(200)]
        for place in range(len(ours)):
            own, other = (torch.tensor([pair[side][place] for pair in pairs]) for side in (0, 1))
            correlation = torch.corrcoef(torch.stack([own, other]))[0, 1].item()
            assert correlation > least
