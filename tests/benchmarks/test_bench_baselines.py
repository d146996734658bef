"""Baselines against brute force and against steps computed by hand."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.data.errors import UserError
from benchmarks.methods import METHODS
from benchmarks.methods.bases import BASES
from benchmarks.methods.ewc import EWC, diagonal_fisher
from benchmarks.methods.plain import Lion
from benchmarks.methods.published_sal import PublishedSAL
from benchmarks.methods.si import SI
from benchmarks.runs.networks import build, mlp
from benchmarks.streams import Batch, masked

BATCH = Batch(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))


class Scalar(nn.Module):
    """One weight, so that steps can be followed with a pencil."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value]))


def step(method: Any, grad: float) -> None:
    method.model.w.grad = torch.tensor([grad])
    method.before_step(BATCH)
    method.optimizer.step()
    method.after_step(BATCH)


@pytest.mark.parametrize("with_mask", [False, True])
def test_fisher_equals_a_loop_over_examples_and_classes(with_mask: bool) -> None:
    model = mlp(5, (7, 6), 4, seed=0).double()
    x = torch.randn(11, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([True, False, True, True]) if with_mask else None
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for row in x:
        log_p = masked(model(row[None]), mask).log_softmax(1)[0]
        for label in range(4):
            if mask is not None and not mask[label]:
                continue
            grads = torch.autograd.grad(log_p[label], list(model.parameters()), retain_graph=True)
            for total, grad in zip(expected, grads, strict=True):
                total += log_p[label].exp().detach() * grad.square() / len(x)
    found = diagonal_fisher(model, Batch(x, torch.zeros(11), mask))
    for got, want in zip(found, expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-10)


def test_fisher_of_many_chunks_is_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(3, (4,), 2, seed=1), torch.rand(9, 3)
    whole = diagonal_fisher(model, Batch(x, torch.zeros(9)))
    monkeypatch.setattr("benchmarks.methods.per_example.CHUNK", 4)
    for got, want in zip(diagonal_fisher(model, Batch(x, torch.zeros(9))), whole, strict=True):
        assert torch.allclose(got, want, atol=1e-7)


@pytest.mark.parametrize("with_mask", [False, True])
def test_fisher_of_a_conv_net_equals_a_loop_over_examples(with_mask: bool) -> None:
    model = build("conv", 16, (5,), 3, seed=0).double()
    x = torch.rand(18, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([True, False, True]) if with_mask else None
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for row in x:
        log_p = masked(model(row[None]), mask).log_softmax(1)[0]
        for label in range(3):
            if mask is None or mask[label]:
                grads = torch.autograd.grad(
                    log_p[label], list(model.parameters()), retain_graph=True
                )
                for total, grad in zip(expected, grads, strict=True):
                    total += log_p[label].exp().detach() * grad.square() / len(x)
    found = diagonal_fisher(model, Batch(x, torch.zeros(18), mask))
    assert max(float(f.max()) for f in found) > 0
    for got, want in zip(found, expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-10)


def test_ewc_adds_the_gradient_of_all_past_penalties() -> None:
    model = mlp(3, (4,), 2, seed=0)
    method = EWC(model, BASES["sgd"].make(model.parameters(), 0.1), strength=5.0)
    penalties: list[tuple[list[Tensor], list[Tensor]]] = []
    for seed in (0, 1):
        x = torch.rand(6, 3, generator=torch.Generator().manual_seed(seed))
        task = Batch(x, torch.zeros(6))
        anchor = [p.detach().clone() for p in model.parameters()]
        penalties.append((diagonal_fisher(model, task), anchor))
        method.boundary(task)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3)
    loss = torch.stack(
        [
            2.5 * (f * (p - a).square()).sum()
            for fisher, anchor in penalties
            for f, p, a in zip(fisher, model.parameters(), anchor, strict=True)
        ]
    ).sum()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    method.before_step(BATCH)
    for p, want in zip(model.parameters(), expected, strict=True):
        assert p.grad is not None
        assert torch.allclose(p.grad, want, atol=1e-6)


def test_si_importance_by_hand() -> None:
    model = Scalar(1.0)
    method = SI(model, torch.optim.SGD(model.parameters(), lr=0.5), strength=2.0, xi=0.1)
    step(method, 1.0)  # w: 1 -> 0.5, path 1 * 0.5
    step(method, 0.4)  # w: 0.5 -> 0.3, path 0.5 + 0.4 * 0.2
    assert torch.allclose(method.path[0], torch.tensor([0.58]))
    method.boundary(BATCH)
    importance = 0.58 / (0.7**2 + 0.1)
    assert torch.allclose(method.importance[0], torch.tensor([importance]))
    assert torch.allclose(method.anchor[0], torch.tensor([0.3]))
    step(method, 1.0)  # at the anchor the penalty's gradient is 0: w: 0.3 -> -0.2
    step(method, 0.0)  # now it is 2 * 2 * importance * (-0.5), and the path does not see it
    assert torch.allclose(model.w, torch.tensor([-0.2 + 0.5 * 4 * importance * 0.5]))
    assert torch.allclose(method.path[0], torch.tensor([0.5]))


def test_published_sal_by_hand() -> None:
    model = Scalar(1.0)
    method = PublishedSAL(model, torch.optim.SGD(model.parameters(), lr=0.1))
    step(method, 2.0)  # no weight change known yet: a plain step of 0.2
    assert torch.allclose(model.w, torch.tensor([0.8]))
    # s = 1 / (1 + 0.2 * 1); mean 1.5, SD 0.5, tau = 0.5 + 0.1 / 3 < s: gradient times 1 - s
    s = 1 / 1.2
    step(method, 1.0)
    assert torch.allclose(model.w, torch.tensor([0.8 - 0.1 * (1 - s)]))
    # A loud gradient: s = 1 / (1 + Δw * 1000) is below tau, and the step is plain.
    before, delta = model.w.item(), 0.1 * (1 - s)
    assert 1 / (1 + delta * 1000) < 0.5
    step(method, 1000.0)
    assert torch.allclose(model.w, torch.tensor([before - 100.0]))


def test_published_sal_comes_to_a_halt_on_sgd() -> None:
    model = Scalar(1.0)
    method = PublishedSAL(model, torch.optim.SGD(model.parameters(), lr=0.05))
    ways = []
    for _ in range(30):
        before = model.w.item()
        step(method, 0.5)
        ways.append(abs(model.w.item() - before))
    assert ways[0] > 0.02
    assert ways[-1] < 1e-6


def test_lion_by_hand() -> None:
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = Lion([p], lr=0.1)
    for grad, expected in ((2.0, 0.9), (-0.1, 0.8), (-5.0, 0.9)):
        # exp_avg: 0.02, 0.0188; sign(0.9 m + 0.1 g): +, + (0.018 - 0.01), -
        p.grad = torch.tensor([grad])
        optimizer.step()
        assert torch.allclose(p.detach(), torch.tensor([expected]))


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if not row.is_sal])
def test_every_row_builds_and_steps(name: str) -> None:
    model = mlp(3, (4,), 2, seed=0)
    method = METHODS[name].build(model, 1e-3, {})
    weight = next(model.parameters())
    before = weight.detach().clone()
    torch.manual_seed(1)  # four units may all be silent for other inputs
    batch = Batch(torch.rand(5, 3), torch.tensor([0, 1, 0, 1, 1]))
    torch.autograd.backward(nn.functional.cross_entropy(model(batch.x), batch.y))
    method.before_step(batch)
    method.optimizer.step()
    method.after_step(batch)
    assert not torch.equal(weight, before)
    told = ("ewc", "si", "online-ewc", "kfac-ewc", "mas", "lwf", "l2", "lr-decay", "joint")
    told = (*told, "owm", "gpm", "ncl")
    assert METHODS[name].told == (name in told)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.is_sal])
def test_sal_rows_build_with_protection(name: str) -> None:
    try:
        method = METHODS[name].build(mlp(3, (4,), 2, seed=0), 1e-3, {"protection": 0.5})
    except UserError as error:
        pytest.skip(f"{error}")
    assert method.optimizer.param_groups[0]["protection"] == 0.5
    figures = method.diagnostics()
    assert {"surprise", "threshold", "consolidations"} <= figures.keys()


def test_sal_rows_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sal_optim", None)
    with pytest.raises(UserError, match=r"sal-adam needs sal_optim\.SALAdam"):
        METHODS["sal-adam"].build(mlp(3, (4,), 2, seed=0), 1e-3, {})


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(UserError, match=r"ewc has no option .*allowed: strength"):
        METHODS["ewc"].build(mlp(3, (4,), 2, seed=0), 1e-3, {"lambda": 1})
