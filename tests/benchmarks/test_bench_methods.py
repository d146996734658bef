"""The methods beyond EWC and SI: against brute force, and against steps done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.data.sets import Dataset
from benchmarks.methods import METHODS
from benchmarks.methods.bases import BASES
from benchmarks.methods.ewc import OnlineEWC, diagonal_fisher
from benchmarks.methods.lwf import LwF
from benchmarks.methods.mas import MAS, sensitivity
from benchmarks.methods.quadratic import L2
from benchmarks.methods.streaming import AR1, StreamingEWC, StreamingSI
from benchmarks.methods.upgd import UPGD, AdaUPGD
from benchmarks.runs.networks import build, mlp
from benchmarks.streams import STREAMS, Batch, masked

EMPTY = Batch(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))


class Scalar(nn.Module):
    """logits = (w x, 0), with one weight."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x * self.w, torch.zeros_like(x)], 1)


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def give(method: Any, grad: float) -> None:
    method.model.w.grad = torch.tensor([grad])
    method.before_step(EMPTY)
    method.optimizer.step()
    method.after_step(EMPTY)


def task(seed: int, rows: int = 6, features: int = 3) -> Batch:
    source = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(rows, features, generator=source), torch.arange(rows) % 2)


def train(method: Any, batches: list[Batch]) -> None:
    for batch in batches:
        method.optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(masked(method.model(batch.x), batch.mask), batch.y))
        method.before_step(batch)
        method.optimizer.step()
        method.after_step(batch)


def test_l2_by_hand() -> None:
    model = Scalar(1.0)
    method = L2(model, sgd(model, 0.5), strength=0.2)
    give(method, 1.0)  # no boundary yet: 1 -> 0.5
    assert model.w.item() == pytest.approx(0.5)
    method.boundary(EMPTY)
    give(method, 1.0)  # at the anchor the penalty has no gradient: 0.5 -> 0
    give(method, 0.0)  # 0.2 * (0 - 0.5) = -0.1: 0 -> 0.05
    assert model.w.item() == pytest.approx(0.05)


def test_online_ewc_decays_its_fisher_and_moves_its_anchor() -> None:
    model = mlp(3, (4,), 2, seed=0)
    method = OnlineEWC(model, sgd(model, 0.1), strength=3.0, decay=0.5)
    fishers = []
    for seed in (0, 1):
        fishers.append(diagonal_fisher(model, task(seed)))
        method.boundary(task(seed))
        anchor = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    method.before_step(EMPTY)
    for p, a, one, two in zip(model.parameters(), anchor, *fishers, strict=True):
        assert p.grad is not None
        assert torch.allclose(p.grad, 3.0 * (0.5 * one + two) * (p - a), atol=1e-6)


@pytest.mark.parametrize("net", ["mlp", "conv", "conv-bn"])
def test_mas_equals_a_loop_over_examples(net: str) -> None:
    model = build(net, 16, (5,), 3, seed=0).double().eval()
    x = torch.rand(7, 16, dtype=torch.float64)
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for row in x:
        grads = torch.autograd.grad(model(row[None]).square().sum(), list(model.parameters()))
        for total, grad in zip(expected, grads, strict=True):
            total += grad.abs() / len(x)
    for got, want in zip(sensitivity(model, Batch(x, torch.zeros(7))), expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-10)


def test_mas_penalty_has_no_half() -> None:
    model = Scalar(1.0)
    method = MAS(model, sgd(model, 1.0), strength=0.5)
    method.importance[0].fill_(2.0)
    with torch.no_grad():
        model.w.fill_(1.5)
    model.w.grad = torch.zeros(1)
    method.before_step(EMPTY)  # d/dw of 0.5 * 2 * (w - 1)²
    assert model.w.grad.item() == pytest.approx(1.0)


def test_lwf_is_the_cross_entropy_with_the_old_answers() -> None:
    model = mlp(3, (4,), 4, seed=0)
    method = LwF(model, sgd(model, 0.1), strength=2.0, temperature=2.0)
    batch = task(0)
    assert method.penalty(batch, model(batch.x)) is None
    mask = torch.tensor([True, True, False, False])
    method.boundary(Batch(batch.x, batch.y, mask))
    before = model(batch.x).detach()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    logits = model(batch.x)
    found = method.penalty(batch, logits)
    p, log_q = (before[:, :2] / 2).softmax(1), (logits[:, :2] / 2).log_softmax(1)
    assert found is not None
    assert found.item() == pytest.approx(float(-8 * (p * log_q).sum(1).mean().detach()), rel=1e-5)
    # Its gradient vanishes for the old network and for no other.
    torch.autograd.backward(found)
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) > 1e-3


def test_lwf_without_heads_distils_all_classes_seen() -> None:
    model = mlp(3, (4,), 5, seed=0)
    method = LwF(model, sgd(model, 0.1))
    for labels in ([0, 1], [3, 3]):
        method.boundary(Batch(torch.rand(2, 3), torch.tensor(labels)))
    assert [head.tolist() for head in method.heads] == [[True, True, False, True, False]]


def test_decay_lowers_lr_at_boundaries() -> None:
    method = METHODS["lr-decay"].build(mlp(3, (4,), 2, seed=0), 0.4, {"factor": 0.5})
    method.boundary(EMPTY)
    method.boundary(EMPTY)
    assert method.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_streaming_ewc_consolidates_the_last_examples_every_n_steps() -> None:
    model = mlp(3, (4,), 2, seed=0)
    method = StreamingEWC(model, sgd(model, 0.1), strength=0.0, every=4, fisher_examples=12)
    batches = [task(seed) for seed in range(4)]
    train(method, batches[:3])
    assert all(not importance.any() for importance in method.importance)
    train(method, batches[3:])
    # Four batches of six; twelve examples are the last two.
    expected = diagonal_fisher(model, Batch.joined(batches[2:]))
    for got, want, anchor, p in zip(
        method.importance, expected, method.anchor, model.parameters(), strict=True
    ):
        assert torch.allclose(got, want)
        assert torch.equal(anchor, p)
    assert not METHODS["streaming-ewc"].told


def test_streaming_si_is_si_with_boundaries_every_n_steps() -> None:
    one, two = Scalar(1.0), Scalar(1.0)
    streaming = StreamingSI(one, sgd(one, 0.5), strength=2.0, every=2)
    told = METHODS["si"].kind(two, sgd(two, 0.5), strength=2.0)  # type: ignore[call-arg]
    for step, grad in enumerate((1.0, 0.4, 1.0, -0.5, 0.3)):
        give(streaming, grad)
        give(told, grad)
        if step % 2:
            told.boundary(EMPTY)
    assert one.w.item() == pytest.approx(two.w.item())
    assert streaming.importance[0].item() > 0


def test_ar1_slows_by_importance() -> None:
    model = Scalar(1.0)
    method = AR1(model, sgd(model, 0.5), max_importance=4.0, every=100)
    method.importance[0].fill_(1.0)
    give(method, 1.0)  # a quarter of F_max: three quarters of 0.5
    assert model.w.item() == pytest.approx(0.625)
    method.importance[0].fill_(9.0)
    give(method, 1.0)
    assert model.w.item() == pytest.approx(0.625)


def test_upgd_by_hand() -> None:
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = UPGD([p], lr=0.1, beta_utility=0.5, noise=0.0, weight_decay=0.5)
    p.grad = torch.tensor([-1.0, 0.25])
    optimizer.step()
    # Utility -g w = (1, 0.5), of which the largest is 1; decay 1 - 0.05.
    free = 1 - torch.sigmoid(torch.tensor([1.0, 0.5]))
    expected = torch.tensor([0.95, -1.9]) - 0.1 * torch.tensor([-1.0, 0.25]) * free
    assert torch.allclose(p.detach(), expected)


def test_upgd_perturbs_what_is_useless_more() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.ones(20_000))
    grad = torch.cat([-torch.ones(10_000), 20 * torch.ones(10_000)]) * 1e-9
    optimizer = UPGD([p], lr=1.0, noise=0.1)
    p.grad = grad
    optimizer.step()
    useful, useless = p.detach()[:10_000], p.detach()[10_000:]
    assert useless.std().item() == pytest.approx(0.1, rel=0.05)
    assert useful.std().item() == pytest.approx(0.1 * (1 - 1 / (1 + 2.71828**-1)), rel=0.05)


def test_adaupgd_goes_along_adam() -> None:
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = AdaUPGD([p], lr=0.1, noise=0.0)
    p.grad = torch.tensor([-3.0])
    optimizer.step()  # Adam's first step has size lr; utility is the largest: σ(1)
    assert p.item() == pytest.approx(1 + 0.1 * (1 - 1 / (1 + 2.718281828**-1)), rel=1e-4)


@pytest.mark.parametrize("name", ["bgd", "mesu"])
def test_bayesian_step_from_the_same_noise(name: str) -> None:
    options = {"std": 0.3, "samples": 2, **({"window": 50.0} if name == "mesu" else {})}
    model = Scalar(0.5)
    method: Any = METHODS[name].kind(model, BASES[name].make(model.parameters(), 0.2), **options)
    batch = Batch(torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([0, 1, 1]))
    torch.manual_seed(7)
    method.before_step(batch)
    assert model.w.item() == pytest.approx(0.5)
    method.optimizer.step()
    torch.manual_seed(7)
    grads, products = [], []
    for _ in range(2):
        eps = torch.randn(1)
        w = (0.5 + 0.3 * eps).requires_grad_()
        logits = torch.cat([batch.x * w, torch.zeros(3, 1)], 1)
        (g,) = torch.autograd.grad(cross_entropy(logits, batch.y, reduction="sum"), [w])
        grads.append(float(g))
        products.append(float(g * eps))
    g, ge, std = sum(grads) / 2, sum(products) / 2, 0.3
    if name == "bgd":
        mean = 0.5 - 0.2 * std**2 * g
        deviation = std * (1 + (std * ge / 2) ** 2) ** 0.5 - std**2 * ge / 2
    else:  # at σ = σ₀ the prior moves only the mean
        mean = 0.5 - 0.2 * std**2 * g - 0.5 / 50
        deviation = std - 0.2 * std**2 * ge / 2
    assert model.w.item() == pytest.approx(mean, rel=1e-5)
    assert method.optimizer.state[model.w]["std"].item() == pytest.approx(deviation, rel=1e-5)


@pytest.mark.parametrize("name", ["split-task", "split-domain", "permuted"])
def test_joint_batches_hold_all_tasks_so_far(name: str, digits: Dataset) -> None:
    stream = STREAMS[name](digits, seed=0, tasks=3, steps=5, batch=60)
    first, last = stream.joint(0, 0), stream.joint(2, 0)
    assert torch.equal(last.x, stream.joint(2, 0).x)
    assert not torch.equal(last.x, stream.joint(2, 1).x)
    assert len(last.x) == len(last.y) == 60
    known = [{row.numpy().tobytes() for row in stream.train(t).x} for t in range(3)]
    of = [sum(row.numpy().tobytes() in rows for row in last.x) for rows in known]
    assert all(count >= 8 for count in of)
    assert all(row.numpy().tobytes() in known[0] for row in first.x)
    if last.mask is not None:
        assert last.mask.shape == (60, 10)
        assert last.mask[torch.arange(60), last.y].all()
        assert int(last.mask.sum()) == 120


def test_bytes_per_parameter() -> None:
    def size(name: str, steps: int = 2) -> float:
        model = mlp(30, (40,), 10, seed=0)
        method = METHODS[name].build(model, 1e-3, {})
        batch = task(0, rows=4, features=30)
        train(method, [batch] * steps)
        return method.state_bytes() / sum(p.numel() for p in model.parameters())

    # float32: two moments; one; none; two moments with an importance and an anchor.
    assert size("adam") == pytest.approx(8, abs=0.05)
    assert size("sgd") == pytest.approx(4, abs=0.05)
    assert size("plain-sgd") == pytest.approx(0, abs=0.05)
    assert size("online-ewc") == pytest.approx(16, abs=0.05)
    assert size("sal-adam-diagonal") == pytest.approx(20, abs=0.1)
    assert size("sal-adam-factored") < 13.5
