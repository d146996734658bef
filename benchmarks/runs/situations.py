"""Everyday situations on data that does not change, for `python -m benchmarks ordinary --cases`.

Each is a network on digits and an order of its batches, in which the gradient leaps or grows though
the data stays what it is, or another kind of training (``values.py``, ``other_kinds.py``). What is
compared, and how it is shown, is in the command.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

import sal_optim
from benchmarks.data.sets import load
from benchmarks.runs import values
from benchmarks.runs.networks import build
from benchmarks.runs.other_kinds import bandit, both, embeddings, heads, learn, parity, recurrent

HIDDEN, CLASSES, BATCH = (100, 100), 10, 64


class Outcome(NamedTuple):
    """How one run ended."""

    held_out: float  # loss on test data, or error of values of states that were held out
    training: float  # on all training data, without dropout
    changes: float  # detected; nothing changes, so that each is a false alarm


@dataclass(frozen=True)
class Situation:
    """What is out of the ordinary; each part is given the step and the number of steps."""

    hint: str
    batch: Callable[[int, int], int] = lambda step, steps: BATCH
    rate: Callable[[int, int], float] = lambda step, steps: 1.0  # factor on the learning rate
    bad: Callable[[int, int], bool] = lambda step, steps: False  # noise with random labels
    frozen: Callable[[int, int], bool] = lambda step, steps: False  # the first layer
    dropout: float = 0.0
    clip: float | None = None
    plateau: bool = False  # a deep tanh network with small weights
    # Another kind of training in the place of digits: seed, optimizer, its options, steps, told.
    learn: Callable[..., tuple[Any, float, float]] | None = None
    # Of a base and of SAL around it, where not the usual one for both.
    rates: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def _restarts(step: int, steps: int, periods: int = 4) -> float:
    """Cosine annealing from 1 to 0, begun anew in each period (Loshchilov and Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * (step * periods / steps % 1.0)))


SITUATIONS = {
    "plain": Situation("batches of 64"),
    "third": Situation("a third of the learning rate", rate=lambda step, steps: 1.0 / 3.0),
    "tenth": Situation("a tenth of the learning rate", rate=lambda step, steps: 0.1),
    "last-1": Situation(
        "every 20th batch has one example", batch=lambda step, _: 1 if step % 20 == 19 else BATCH
    ),
    "last-5": Situation(
        "every 20th batch has five examples", batch=lambda step, _: 5 if step % 20 == 19 else BATCH
    ),
    "restarts": Situation("cosine learning rate in four periods", rate=_restarts),
    "batch-falls": Situation(
        "batches of 256, of 8 from halfway on",
        batch=lambda step, steps: 256 if step < steps // 2 else 8,
    ),
    "plateau": Situation("five tanh layers with small initial weights", plateau=True),
    "unfreeze": Situation(
        "the first layer is frozen until halfway", frozen=lambda step, steps: step < steps // 2
    ),
    "bad-twice": Situation(
        "one batch of noise with random labels, shown in two steps running at halfway",
        bad=lambda step, steps: step in (steps // 2, steps // 2 + 1),
    ),
    "dropout": Situation("dropout of 0.3", dropout=0.3),
    "clipping": Situation("gradients clipped to a norm of 1", clip=1.0),
    "target": Situation(
        "Q-learning on a grid, its target network copied every 30 steps", learn=values.learn
    ),
    "target-tuned": Situation(
        "the same, each at its own best rate", learn=values.learn, rates=values.RATES
    ),
    "parity": Situation(
        "parity of six signs, all inputs in each step",
        learn=partial(learn, parity),
        rates=both(3e-3, 3e-2, 0.2, 1e-3),
    ),
    "recurrent": Situation(
        "a recurrent network that learns nothing for long, then all at once",
        learn=partial(learn, recurrent),
        rates=both(3e-3, 0.3, 3.0, 1e-3),
    ),
    "embeddings": Situation(
        "products of embeddings, most of them rare",
        learn=partial(learn, embeddings),
        rates=both(1e-2, 0.3, 1.0, 3e-3),
    ),
    "heads": Situation(
        "three heads in turn, their losses times 1, 10 and 0.1",
        learn=partial(learn, heads),
        rates=both(3e-3, 1e-3, 1e-2, 1e-3),
    ),
    "bandit": Situation(
        "a bandit's policy by REINFORCE",
        learn=partial(learn, bandit),
        rates=both(3e-3, 3e-2, 0.2, 1e-3),
    ),
}


def network(situation: Situation, features: int, seed: int) -> nn.Sequential:
    """The network of a situation, its weights drawn from the seed alone."""
    if not situation.plateau:
        return build("mlp", features, HIDDEN, CLASSES, seed=seed, dropout=situation.dropout)
    found = build("mlp", features, (50,) * 4, CLASSES, seed=seed)
    layers = [nn.Tanh() if isinstance(layer, nn.ReLU) else layer for layer in found]
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(0.6)
                layer.bias.zero_()
    return nn.Sequential(*layers)


def run(
    name: str,
    seed: int,
    make: Callable[..., Any],
    options: dict[str, Any],
    steps: int,
    told: bool = False,
) -> Outcome:
    """Train one network in one situation.

    Args:
        name: a key of SITUATIONS.
        seed: of weights, batches and dropout.
        make: builds the optimizer from parameters and ``options``.
        options: its arguments, the learning rate among them.
        steps: of training.
        told: whether the optimizer, one of the family, is told the loss of each step.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    situation = SITUATIONS[name]
    if situation.learn is not None:
        optimizer, held_out, training = situation.learn(seed, make, options, steps, told)
        return Outcome(held_out, training, _changes(optimizer))
    data = load("digits", None)
    model = network(situation, data.features, seed)
    optimizer, draw = make(model.parameters(), **options), torch.Generator().manual_seed(seed)
    noise = 4.0 * torch.rand((BATCH, data.features), generator=draw)
    bad = noise, torch.randint(CLASSES, (BATCH,), generator=draw)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x), y)

    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = options["lr"] * situation.rate(step, steps)
        model[0].requires_grad_(not situation.frozen(step, steps))
        rows = torch.randint(len(data.train_x), (situation.batch(step, steps),), generator=draw)
        good = data.train_x[rows], data.train_y[rows]
        optimizer.zero_grad()
        now = loss(*(bad if situation.bad(step, steps) else good))
        now.backward()  # type: ignore[no-untyped-call]
        if told:
            optimizer.tell(loss=now)
        if situation.clip is not None:
            clip_grad_norm_(model.parameters(), situation.clip)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return Outcome(
            loss(data.test_x, data.test_y).item(),
            loss(data.train_x, data.train_y).item(),
            _changes(optimizer),
        )


def _changes(optimizer: Any) -> float:
    sal = isinstance(optimizer, sal_optim.SALOptimizer)
    return optimizer.diagnostics()["changes"] if sal else 0.0
