"""Value learning with a target network, for `python -m benchmarks ordinary --cases target`.

Q-learning on a small grid that never changes. What a step learns toward leaps whenever the target
network is copied. The exact values are known by linear algebra, so that no game has to be played.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.runs.networks import build

SIDE, SLIP, DISCOUNT, GOAL, PIT = 10, 0.2, 0.8, 1.0, -0.5
MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))
WAVES = 3  # of each coordinate, as features
HIDDEN, BATCH = (100, 100), 64
COPY = 30  # steps from one copy of the target network to the next
HELD_OUT = 5  # of so many states one is never trained on
# The best rates of a base and of SAL around it: the lowest error on states held out, seeds 1000 to
# 1005, 900 steps, of four to six rates each that are a factor of two or so apart.
RATES = {
    "Adam": (5e-4, 1e-3),
    "SGD, momentum": (0.1, 0.4),
    "SGD": (1.0, 1.5),
    "Lion": (6e-4, 1e-3),
}


class Grid(NamedTuple):
    """A grid world of S states and A moves."""

    features: Tensor  # (S, 4 * WAVES)
    chances: Tensor  # (S, A, S): where a move leads to
    rewards: Tensor  # (S, A): expected
    values: Tensor  # (S, A): exact, of the best policy


def grid(seed: int) -> Grid:
    """A goal and five pits at random places; a move slips to a random side now and then."""
    draw = torch.Generator().manual_seed(seed)
    states = SIDE * SIDE
    chances = torch.zeros(states, len(MOVES), states)
    for state in range(states):
        row, column = divmod(state, SIDE)
        for move in range(len(MOVES)):
            for taken, (down, right) in enumerate(MOVES):
                there = min(max(row + down, 0), SIDE - 1) * SIDE
                there += min(max(column + right, 0), SIDE - 1)
                chance = SLIP / len(MOVES) + (1.0 - SLIP) * (taken == move)
                chances[state, move, there] += chance
    gains = torch.zeros(states)
    places = torch.randperm(states, generator=draw)
    gains[places[0]], gains[places[1:6]] = GOAL, PIT
    rewards = chances @ gains
    at = torch.arange(states)
    angles = [
        math.pi * wave * coordinate / (SIDE - 1)
        for coordinate in (at // SIDE, at % SIDE)
        for wave in range(1, WAVES + 1)
    ]
    features = torch.stack([wave(a) for a in angles for wave in (torch.sin, torch.cos)], 1)
    return Grid(features, chances, rewards, exact(chances, rewards))


def exact(chances: Tensor, rewards: Tensor) -> Tensor:
    """Values of the best policy, by policy iteration: a linear system for each policy."""
    chances, wide = chances.double(), rewards.double()
    each, policy = torch.arange(len(wide)), wide.argmax(1)
    while True:
        system = torch.eye(len(wide), dtype=wide.dtype) - DISCOUNT * chances[each, policy]
        values = wide + DISCOUNT * chances @ torch.linalg.solve(system, wide[each, policy])
        best, known = values.max(1).values, values[each, policy]
        better = best > known + 1e-9
        if not better.any():
            return torch.as_tensor(values, dtype=rewards.dtype)
        policy = torch.where(better, values.argmax(1), policy)


def learn(
    seed: int, make: Callable[..., Any], options: dict[str, Any], steps: int, told: bool = False
) -> tuple[Any, float, float]:
    """The optimizer at the end, and the errors on states that were held out and on the others.

    An error is the mean square distance to the exact values, as a share of these values' variance.
    """
    world = grid(seed)
    model = build("mlp", world.features.shape[1], HIDDEN, len(MOVES), seed=seed)
    target = copy.deepcopy(model)
    optimizer, draw = make(model.parameters(), **options), torch.Generator().manual_seed(seed)
    held = torch.arange(len(world.features)) % HELD_OUT == seed % HELD_OUT
    known = (~held).nonzero().flatten()
    for step in range(steps):
        if step % COPY == 0:
            target.load_state_dict(model.state_dict())
        state = known[torch.randint(len(known), (BATCH,), generator=draw)]
        move = torch.randint(len(MOVES), (BATCH,), generator=draw)
        there = torch.multinomial(world.chances[state, move], 1, generator=draw).flatten()
        with torch.no_grad():
            best = target(world.features[there]).max(1).values
            aim = world.rewards[state, move] + DISCOUNT * best
        optimizer.zero_grad()
        found = model(world.features[state]).gather(1, move[:, None]).flatten()
        loss = functional.mse_loss(found, aim)
        loss.backward()  # type: ignore[no-untyped-call]
        if told:
            optimizer.tell(loss=loss)
        optimizer.step()
    with torch.no_grad():
        squares = (model(world.features) - world.values).square() / world.values.var()
    return optimizer, squares[held].mean().item(), squares[~held].mean().item()
