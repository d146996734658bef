"""Other kinds of training than classification, each on data that does not change.

Situations of ``situations.py`` that are no network on digits: full batches, a recurrent network
that learns nothing for long and then all at once, rare rows of embeddings, heads in turn whose
losses differ in size, a bandit's policy. Each is drawn from a seed, and its loss is at least 0.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.runs.networks import mlp

LOOKS = 10  # at held-out data in the last fifth of a run, of which the mean counts
BATCH, HELD_OUT = 32, 2000
APART = 1_000_000  # between the seeds of batches and of held-out data
# By base: rates at which it learns in most, the same with SAL; none is tuned.
Rates = dict[str, tuple[float, float]]


def both(adam: float, momentum: float, sgd: float, lion: float) -> Rates:
    rates = {"Adam": adam, "SGD, momentum": momentum, "SGD": sgd, "Lion": lion}
    return {name: (rate, rate) for name, rate in rates.items()}


class Kind(NamedTuple):
    """A model, the loss of a batch of so many examples at a step, and what it is judged by."""

    model: nn.Module
    loss: Callable[[int, int], Tensor]
    judged: Callable[[], Tensor] | None = None  # None: by the loss of a large batch


def parity(draw: torch.Generator) -> Kind:
    """Whether an odd number of six signs is positive; all 64 inputs in each step."""
    x = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6)
    y = (x.prod(1) < 0.0).float()
    model = mlp(6, (64,), 1, seed=draw.initial_seed())

    def loss(step: int, batch: int) -> Tensor:
        return functional.binary_cross_entropy_with_logits(model(x)[:, 0], y)

    return Kind(model, loss)


class Recurrent(nn.Module):
    """A gated recurrent network with an output at each place."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.layer = nn.GRU(symbols, 32, batch_first=True)
        self.head = nn.Linear(32, symbols)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.layer(x)[0])
        return found


def recurrent(draw: torch.Generator) -> Kind:
    """At each place of a sequence of four symbols, the sum of those two and three places back."""
    symbols, length, back = 4, 12, 3
    model = Recurrent(symbols)

    def loss(step: int, batch: int) -> Tensor:
        drawn = torch.randint(symbols, (batch, length), generator=draw)
        sums = (drawn[:, :-back] + drawn[:, 1 : 1 - back]) % symbols
        found = model(functional.one_hot(drawn, symbols).float())[:, back:]
        return functional.cross_entropy(found.flatten(0, 1), sums.flatten())

    return Kind(model, loss)


def embeddings(draw: torch.Generator) -> Kind:
    """Products of rows of two tables, of which the k-th is met as often as 1 / k."""
    rows, own = 300, torch.Generator().manual_seed(draw.initial_seed())
    left, right = torch.randn(2, rows, 4, generator=own)
    often = 1.0 / torch.arange(1.0, rows + 1.0)
    model = nn.ModuleList([nn.Embedding(rows, 8), nn.Embedding(rows, 8)])

    def loss(step: int, batch: int) -> Tensor:
        one, other = torch.multinomial(often, 4 * batch, True, generator=draw).chunk(2)
        found = (model[0](one) * model[1](other)).sum(1)
        return functional.mse_loss(found, (left[one] * right[other]).sum(1) / 2.0)

    return Kind(model, loss)


def teacher(features: int, outputs: int, draw: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A fixed network of one hidden layer, whose outputs are near 1."""
    first = torch.randn(features, 32, generator=draw) * 1.5 / features**0.5
    second = torch.randn(32, outputs, generator=draw) * 2.0 / 32**0.5
    return lambda x: torch.tanh(x @ first) @ second


def heads(draw: torch.Generator) -> Kind:
    """Three regressions through one trunk, a batch of each in turn, times 1, 10 and 0.1."""
    sizes, own = (1.0, 10.0, 0.1), torch.Generator().manual_seed(draw.initial_seed())
    goals = [teacher(16, 1, own) for _ in sizes]
    trunk = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model = nn.ModuleList([trunk, *(nn.Linear(64, 1) for _ in sizes)])

    def error(head: int, batch: int) -> Tensor:
        x = torch.randn(batch, 16, generator=draw)
        return functional.mse_loss(model[1 + head](trunk(x)), goals[head](x))

    def loss(step: int, batch: int) -> Tensor:
        head = step % len(sizes)
        return sizes[head] * error(head, batch)

    def judged() -> Tensor:
        return torch.stack([error(head, HELD_OUT) for head in range(len(sizes))]).sum()

    return Kind(model, loss, judged)


def bandit(draw: torch.Generator) -> Kind:
    """A policy over five moves, by REINFORCE with noisy rewards; judged by what it misses."""
    own = torch.Generator().manual_seed(draw.initial_seed())
    worth, model = teacher(8, 5, own), mlp(8, (32,), 5, seed=draw.initial_seed())

    def loss(step: int, batch: int) -> Tensor:
        x = torch.randn(batch, 8, generator=draw)
        chances = model(x).log_softmax(1)
        move = torch.multinomial(chances.detach().exp(), 1, generator=draw)
        reward = worth(x).gather(1, move) + 0.5 * torch.randn(batch, 1, generator=draw)
        found: Tensor = -(chances.gather(1, move) * (reward - reward.mean())).mean()
        return found

    def judged() -> Tensor:
        x = torch.randn(HELD_OUT, 8, generator=draw)
        found = worth(x)
        missed: Tensor = found.max(1).values - (model(x).softmax(1) * found).sum(1)
        return missed.mean()

    return Kind(model, loss, judged)


def learn(
    begin: Callable[[torch.Generator], Kind],
    seed: int,
    make: Callable[..., Any],
    options: dict[str, Any],
    steps: int,
    told: bool = False,
) -> tuple[Any, float, float]:
    """The optimizer at the end, the held-out loss, and that of the batches, in the last fifth."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    kind = begin(draw)
    optimizer = make(kind.model.parameters(), **options)
    # The same held-out data at each look, and none of the batches.
    held = torch.Generator().manual_seed(seed + APART).get_state()
    looks, batches = [], []
    last = max(1, steps // 5)
    for step in range(steps):
        optimizer.zero_grad()
        loss = kind.loss(step, BATCH)
        loss.backward()  # type: ignore[no-untyped-call]
        if told:
            optimizer.tell(loss=loss)
        optimizer.step()
        left = steps - 1 - step
        if left >= last:
            continue
        batches.append(loss.item())
        if left % max(1, last // LOOKS) == 0:
            kept = draw.get_state()
            draw.set_state(held)
            with torch.no_grad():
                look = kind.judged() if kind.judged is not None else kind.loss(0, HELD_OUT)
            draw.set_state(kept)
            looks.append(look.item())
    return optimizer, fmean(looks), fmean(batches)
