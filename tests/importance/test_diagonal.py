"""Importance by element and by row and column, against the formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim.importance import IMPORTANCE, Penalty, code_of, kind_of
from sal_optim.sharding.stacked import Layout

KINDS = ("diagonal", "factored")


def state_of(kind: str, shape: tuple[int, ...], anchor: Tensor | None = None) -> dict[str, Tensor]:
    names = IMPORTANCE[kind].shapes(shape, 16)
    state = {name: torch.zeros(size, dtype=torch.float64) for name, size in names.items()}
    return state if anchor is None else {**state, "anchor": anchor}


def squares(grads: list[Tensor]) -> Tensor:
    return torch.stack([g.square() for g in grads]).mean(0)


def read(kind: str, omega: Tensor) -> Tensor:
    """As the kind reads a mean of squares."""
    if kind == "diagonal":
        return omega
    matrix = omega.flatten(1)
    row, column = matrix.mean(1), matrix.mean(0)
    return (torch.outer(row, column) / matrix.mean()).view_as(omega)


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 2)])
@pytest.mark.parametrize("name", KINDS)
def test_merge_and_protect(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    kind = IMPORTANCE[name]
    first, second = torch.randn(2, *shape, dtype=torch.float64)
    state = state_of(name, shape, first.clone())
    old, new = list(torch.randn(5, *shape, dtype=torch.float64)), [second, first]
    for grads, weights, part in ((old, first, 1.0), (new, second, 0.4)):
        for grad in grads:
            kind.accumulate([state], [grad], 2.0, 0.0)
        kind.merge(state, weights, new=part / len(grads), old=1.0 - part, memory=0.2, at=0.0)
    # The scale of 2 is squared.
    mean = 0.6 * 4.0 * squares(old) + 0.4 * 4.0 * squares(new)
    omega = read(name, mean)
    torch.testing.assert_close(kind.elements(state, first), omega)
    held = read(name, 0.6 * 4.0 * squares(old))
    gain = (omega - held).clamp(min=0.0)
    share = gain / (0.2 * held + gain)
    torch.testing.assert_close(state["anchor"], first + share * (second - first))
    grad, moved = torch.randn(2, *shape, dtype=torch.float64)
    (found,) = kind.protect([state], [grad], Penalty([moved.clone()], 0.7), 3.0)
    torch.testing.assert_close(found, (grad + 0.7 * omega * moved) / (1.0 + 3.0 * omega))
    assert not any(value.any() for key, value in state.items() if "pending" in key)


@pytest.mark.parametrize("name", IMPORTANCE)
def test_vectors_are_diagonal_and_parts_are_blocks(name: str) -> None:
    matrix = torch.zeros(3, 2)
    whole: dict[str, Any] = {"layout": None, "rank": 4}
    assert kind_of(name, matrix, **whole) is IMPORTANCE[name]
    assert kind_of(name, matrix[0], **whole) is IMPORTANCE["diagonal"]
    assert kind_of(name, matrix[0, 0], **whole) is IMPORTANCE["diagonal"]
    part = kind_of(name, matrix, layout=Layout((2,), (2, 3)), rank=4)
    assert code_of(part) == (0.0 if name == "diagonal" else 2.0)


@pytest.mark.parametrize("name", IMPORTANCE)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_of_no_elements(name: str, shape: tuple[int, int]) -> None:
    kind, value = IMPORTANCE[name], torch.zeros(shape, dtype=torch.float64)
    state = state_of(name, shape, value.clone())
    kind.accumulate([state], [value], 1.0, 0.0)
    kind.merge(state, value, new=1.0, old=0.0, memory=0.2, at=0.0)
    (found,) = kind.protect([state], [value], Penalty([value.clone()], 1.0), 1.0)
    assert found.shape == kind.elements(state, value).shape == shape
