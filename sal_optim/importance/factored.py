"""Factored importance: row and column means, combined as ``row * column / mean(column)``.

The form of Adafactor's second moment (Shazeer and Stern 2018, arXiv 1804.04235, algorithm 1). A
tensor of more than two dimensions counts as its first dimension by all the others. It takes next to
no memory beyond the anchor; vectors are diagonal.
"""

import math

import torch
from torch import Tensor

from sal_optim.importance.base import Penalty, State
from sal_optim.importance.diagonal import Diagonal, lerp_anchor, scaled
from sal_optim.utils.rounding import Number, add, wide


class Factored:
    """Means of rows and of columns."""

    _diagonal = Diagonal()

    def shapes(self, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
        rows, columns = shape[0], math.prod(shape[1:])
        names = {"row": (rows, 1), "column": (1, columns)}
        return {f"{when}_{n}": s for when in ("pending", "evidence") for n, s in names.items()}

    def accumulate(
        self, states: list[State], grads: list[Tensor], scale: Number, at: float
    ) -> None:
        for state, grad in zip(states, grads, strict=True):
            if grad.numel():
                square = scaled(grad, state["pending_row"].dtype, scale).flatten(1).square_()
                add(state["pending_row"], square.mean(1, keepdim=True), at)
                add(state["pending_column"], square.mean(0, keepdim=True), at)

    def merge(
        self, state: State, values: Tensor, *, new: float, old: float, memory: float, at: float
    ) -> None:
        before = self.elements(state, values) * old
        for name in ("row", "column"):
            pending = state[f"pending_{name}"]
            add(state[f"evidence_{name}"], pending, at, keep=old, weight=new)
            pending.zero_()
        if "anchor" in state and values.numel():
            # Importance of rank 1 does not add exactly.
            gain = (self.elements(state, values) - before).clamp_min_(0.0)
            lerp_anchor(state["anchor"], values, gain, before.mul_(memory))

    def protect(
        self, states: list[State], grads: list[Tensor], penalty: Penalty | None, damping: float
    ) -> list[Tensor]:
        dense = [{"evidence": self.elements(s, g)} for s, g in zip(states, grads, strict=True)]
        return self._diagonal.protect(dense, grads, penalty, damping)

    def draw(self, state: State, values: Tensor, strength: float) -> None:
        dense = {"evidence": self.elements(state, values), "anchor": state["anchor"]}
        self._diagonal.draw(dense, values, strength)

    def elements(self, state: State, values: Tensor, damping: float = 0.0) -> Tensor:
        exact = wide(state["evidence_row"].dtype)
        row: Tensor = state["evidence_row"].to(exact)
        column: Tensor = state["evidence_column"].to(exact)
        if not values.numel():
            return torch.zeros_like(values, dtype=exact)
        mean = column.mean().clamp_min(torch.finfo(exact).tiny)
        return (row * (column / mean)).view(values.shape)
