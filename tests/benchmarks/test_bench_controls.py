"""The controls do what they are named for, on SAL's own importance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.methods import METHODS
from benchmarks.methods.controls import distance
from benchmarks.methods.sal import SAL
from benchmarks.runs.networks import mlp
from benchmarks.streams import Batch


def batch(seed: int) -> Batch:
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(16, 6, generator=source)
    return Batch(x, (x.sum(1) > 3).long())


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return METHODS[name].build(mlp(6, (8,), 2, seed=0), 1e-2, options)


def train(method: Any, seeds: range) -> None:
    for seed in seeds:
        data = batch(seed)
        method.optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(method.model(data.x), data.y))
        method.before_step(data)
        method.optimizer.step()
        method.after_step(data)


def weights(method: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in method.params]


SUBSTITUTED = [f"sal-{base}-{name}" for base in ("adam", "sgd")
               for name in ("random", "shuffled", "uniform")]  # fmt: skip
MATCHED = ["sal-adam-matched", "sal-sgd-matched"]


def shown(control: Any, place: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of a parameter, and what a control has in its place."""
    param = control.params[place]
    state = control.optimizer.state[param]
    return state, control.optimizer.controller.shown(param, state)


@pytest.mark.parametrize("name", [*SUBSTITUTED, *MATCHED])
def test_before_a_consolidation_each_is_its_base(name: str) -> None:
    base = name.split("-")[1]
    control, plain = build(name), METHODS[base].build(mlp(6, (8,), 2, seed=0), 1e-2, {})
    train(control, range(10))
    train(plain, range(10))
    for a, b in zip(control.params, plain.params, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", MATCHED)
def test_the_twin_is_sal_itself(name: str) -> None:
    control, sal = build(name), build(name.removesuffix("-matched"))
    for part in (range(20), range(20, 30)):
        train(control, part)
        train(sal, part)
        control.twin.optimizer.consolidate()
        sal.optimizer.consolidate()
    assert sal.diagnostics()["consolidations"] == 2
    for a, b in zip(control.twin.params, sal.params, strict=True):
        assert torch.equal(a, b)


def test_matched_moves_as_far_as_sal_and_elsewhere() -> None:
    control = build("sal-adam-matched")
    train(control, range(20))
    control.twin.optimizer.consolidate()
    for seed in range(20, 25):
        own, other = weights(control), [p.detach().clone() for p in control.twin.params]
        train(control, range(seed, seed + 1))
        way = distance(weights(control), own)
        assert way == pytest.approx(distance(control.twin.params, other), rel=1e-4)
    assert distance(weights(control), list(control.twin.params)) > 1e-4


@pytest.mark.parametrize("name", SUBSTITUTED)
def test_what_is_gathered_is_sals_and_steps_differ(name: str) -> None:
    control, sal = build(name), build(name.rpartition("-")[0])
    assert isinstance(control, SAL)
    for method in (control, sal):
        train(method, range(20))
        method.optimizer.consolidate()
    for p, q in zip(control.params, sal.params, strict=True):
        mine, own = control.optimizer.state[p], sal.optimizer.state[q]
        assert mine.keys() == own.keys()
        for key, value in own.items():
            assert torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(value)), key
    for method in (control, sal):
        train(method, range(20, 24))
    assert distance(control.params, sal.params) > 1e-6
    assert control.optimizer.state[control.params[0]]["anchor"] is not None


def consolidated(name: str, **options: Any) -> Any:
    control = build(name, **options)
    train(control, range(20))
    control.optimizer.consolidate()
    return control


def test_random_has_sals_values_along_other_directions() -> None:
    control = consolidated("sal-adam-random", rank=4)
    state, other = shown(control, 0)
    for side, values in (("left_basis", "left_values"), ("right_basis", "right_values")):
        assert torch.equal(other[values], state[values])
        assert torch.allclose(other[side].T @ other[side], torch.eye(4), atol=1e-5)
        assert not torch.allclose(other[side].abs(), state[side].abs(), atol=0.05)
    bias, mixed = shown(control, 1)
    assert torch.equal(mixed["evidence"].sort().values, bias["evidence"].sort().values)
    first = other["left_basis"]
    train(control, range(20, 30))
    control.optimizer.consolidate()
    assert torch.equal(shown(control, 0)[1]["left_basis"], first), "drawn once for the run"
    # As much of all as SAL has.
    assert float(control.optimizer.controller.importance(control.params[0])[0].sum()) == (
        pytest.approx(float(state["left_values"].sum() + state["left_values"][-1] * 3), rel=0.5)
    )


@pytest.mark.parametrize("importance", ["kronecker", "diagonal", "factored"])
def test_shuffled_has_sals_values_in_another_order(importance: str) -> None:
    control = consolidated("sal-adam-shuffled", importance=importance)
    state, other = shown(control, 0)
    moved = 0
    for name, value in other.items():
        if name != "anchor" and not name.endswith("basis"):
            assert torch.equal(value.flatten().sort().values, state[name].flatten().sort().values)
            moved += not torch.equal(value, state[name])
    assert moved


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("importance", ["kronecker", "diagonal", "factored"])
def test_uniform_has_the_mean_everywhere(importance: str, share: float) -> None:
    """However firmly it holds: the bound of moves along no known direction is not for it."""
    control, sal = (consolidated(name, importance=importance)
                    for name in ("sal-adam-uniform", "sal-adam"))  # fmt: skip
    controllers = control.optimizer.controller, sal.optimizer.controller
    own = torch.cat([controllers[1].importance(p)[0].flatten() for p in sal.params])
    shown = (controllers[0].importance(p, share)[0] for p in control.params)
    flat = torch.cat([each.flatten() for each in shown])
    assert torch.allclose(flat, own.mean().expand_as(flat), rtol=1e-4)
    assert own.std() > 0.1 * own.mean()


def test_options_of_the_controls() -> None:
    assert {"importance", "protection", "rank"} <= set(METHODS["sal-adam-shuffled"].allowed())
    assert "protection" in METHODS["sal-adam-matched"].allowed()
    assert METHODS["control-uniform"] is METHODS["sal-adam-uniform"]


def test_told_consolidates_where_a_task_ends() -> None:
    method = build("sal-adam-told")
    train(method, range(5))
    assert method.told
    assert method.optimizer.diagnostics()["consolidations"] == 0
    method.boundary(batch(0))
    assert method.optimizer.diagnostics()["consolidations"] == 1
    for param in method.params:
        assert torch.equal(method.optimizer.state[param]["anchor"], param)
