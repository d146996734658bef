"""Value learning among the everyday situations: its exact values, and what its errors say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sal_optim
from benchmarks.commands.ordinary import BASES, main
from benchmarks.data.errors import UserError
from benchmarks.runs import values
from benchmarks.runs.situations import SITUATIONS, run


@pytest.mark.parametrize("seed", [0, 1])
def test_exact_values_are_those_of_the_best_policy(seed: int) -> None:
    world = values.grid(seed)
    assert world.chances.sum(2).allclose(torch.ones(()))
    found = torch.zeros_like(world.values)
    for _ in range(200):
        found = world.rewards + values.DISCOUNT * world.chances @ found.max(1).values
    assert world.values.allclose(found, atol=1e-5)


def test_value_learning_comes_nearer_to_the_exact_values() -> None:
    options = {"lr": 1e-3}
    short, long = (run("target", 0, torch.optim.Adam, options, steps) for steps in (1, 300))
    assert long.training < 0.5 * short.training
    assert long.held_out < 0.5 * short.held_out


def test_value_learning_without_protection_is_the_base() -> None:
    base = run("target", 0, torch.optim.Adam, {"lr": 1e-3}, 90)
    assert run("target", 0, sal_optim.SALAdam, {"lr": 1e-3, "protection": 0.0}, 90) == base
    assert run("target", 0, sal_optim.SALAdam, {"lr": 1e-3}, 90) != base


def test_rates_of_a_situation_are_of_a_base_and_of_sal() -> None:
    assert SITUATIONS["target"].rates == {}
    assert set(SITUATIONS["target-tuned"].rates) == set(BASES)
    plain, protected = SITUATIONS["target-tuned"].rates["SGD"]
    assert plain < protected


@pytest.mark.parametrize("name", ["plain", "target", "embeddings"])
def test_a_loss_is_told(name: str) -> None:
    """In each of the three loops; which the optimizer's state has in it at the end."""
    seen: list[Any] = []

    def make(params: Any, **options: Any) -> Any:
        seen.append(sal_optim.SALAdam(params, **options))
        return seen[-1]

    for told in (False, True):
        run(name, 0, make, {"lr": 1e-3}, 20, told=told)
    assert [each.param_groups[0]["threshold"]["loss_steps"] for each in seen] == [0.0, 20.0]


def test_telling_is_for_cases() -> None:
    with pytest.raises(UserError, match="--told: it is for --cases"):
        main(["--told"])


KINDS = ["parity", "recurrent", "embeddings", "heads", "bandit"]


@pytest.mark.parametrize("name", KINDS)
def test_other_kinds_of_training_without_protection_are_the_base(name: str) -> None:
    assert set(SITUATIONS[name].rates) == set(BASES)
    options = {"lr": SITUATIONS[name].rates["Adam"][0]}
    base = run(name, 0, torch.optim.Adam, options, 90)
    assert run(name, 0, sal_optim.SALAdam, {**options, "protection": 0.0}, 90) == base
    assert run(name, 0, sal_optim.SALAdam, options, 90) != base
    assert run(name, 1, torch.optim.Adam, options, 90).held_out != base.held_out


@pytest.mark.parametrize("name", KINDS)
def test_other_kinds_of_training_learn(name: str) -> None:
    options = {"lr": SITUATIONS[name].rates["Adam"][0]}
    short, long = (run(name, 0, torch.optim.Adam, options, steps) for steps in (5, 600))
    assert 0.0 < long.held_out < 0.5 * short.held_out
