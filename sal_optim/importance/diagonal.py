"""Diagonal importance: one number an element, as in elastic weight consolidation.

Kirkpatrick et al. 2017 (arXiv 1612.00796), with the minibatch gradients that training makes anyway.
It is the kind for vectors, whatever the setting.
"""

import torch
from torch import Tensor

from sal_optim.importance.base import Penalty, State
from sal_optim.utils.rounding import Number, add, wide


def scaled(grad: Tensor, dtype: torch.dtype, scale: Number) -> Tensor:
    """``scale`` times a gradient, new, as exact as sums of ``dtype`` need."""
    # Scaled before it is squared: g * g leaves the range of float32 for |g| < 1e-19.
    value = grad.to(wide(dtype)) * scale
    # A gradient that is not finite has the scale 0 on an accelerator, and enters as 0.
    return value.nan_to_num_(0.0, 0.0, 0.0) if isinstance(scale, Tensor) else value


def lerp_anchor(anchor: Tensor, values: Tensor, gain: Tensor, before: Tensor) -> None:
    """Move the anchor to the weights by ``gain / (before + gain)``; 0 where both are."""
    total = before + gain
    share = gain / total.clamp_min_(torch.finfo(total.dtype).tiny)
    anchor.copy_(torch.lerp(anchor.to(share.dtype), values.to(share.dtype), share))


class Diagonal:
    """One number an element: exact, and as large as the parameters, twice."""

    def shapes(self, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
        return {"pending": shape, "evidence": shape}

    def accumulate(
        self, states: list[State], grads: list[Tensor], scale: Number, at: float
    ) -> None:
        sums = [state["pending"] for state in states]
        values = [scaled(g, total.dtype, scale) for g, total in zip(grads, sums, strict=True)]
        if all(v.dtype == total.dtype for v, total in zip(values, sums, strict=True)):
            torch._foreach_addcmul_(sums, values, values)
            return
        for total, square in zip(sums, torch._foreach_mul(values, values), strict=True):
            add(total, square, at)

    def merge(
        self, state: State, values: Tensor, *, new: float, old: float, memory: float, at: float
    ) -> None:
        pending, evidence = state["pending"], state["evidence"]
        exact = wide(evidence.dtype)
        if "anchor" in state:
            before = evidence.to(exact) * (old * memory)
            lerp_anchor(state["anchor"], values, pending.to(exact) * new, before)
        add(evidence, pending, at, keep=old, weight=new)
        pending.zero_()

    def protect(
        self, states: list[State], grads: list[Tensor], penalty: Penalty | None, damping: float
    ) -> list[Tensor]:
        # In float16 the importance of a small head may be infinite, and its product with 0 is NaN.
        kept, exact = grads[0].dtype, wide(grads[0].dtype)
        evidence = [state["evidence"].to(exact) for state in states]
        protected = [grad.to(exact) for grad in grads]
        if penalty is not None:
            moved = [move.to(exact) for move in penalty.moved]
            torch._foreach_mul_(moved, evidence)
            torch._foreach_mul_(moved, penalty.stiffness)
            protected = list(torch._foreach_add(protected, moved))
        divisors = torch._foreach_mul(evidence, damping)
        torch._foreach_add_(divisors, 1.0)
        return [found.to(kept) for found in torch._foreach_div(protected, divisors)]

    def draw(self, state: State, values: Tensor, strength: float) -> None:
        springs = self.elements(state, values).to(wide(values.dtype)) * strength
        share = (springs / (springs + 1.0)).nan_to_num_(nan=1.0)
        anchor = state["anchor"].to(share.dtype)
        values.copy_(torch.lerp(values.to(share.dtype), anchor, share))

    def elements(self, state: State, values: Tensor, damping: float = 0.0) -> Tensor:
        evidence: Tensor = state["evidence"]
        return evidence
