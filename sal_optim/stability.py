"""The mathematics of protection: stability, the gate on an update, the pull toward an anchor.

Pure functions over lists of tensors; they hold no state and know no optimizer. Symbols are those of
``docs/mechanism.md``: ``Omega`` evidence, ``c`` protection, ``a`` activity, ``s`` stability.
"""

import torch
from torch import Tensor

from sal_optim.utils.rounding import Number

# stability() reports a scalar as protected above the first, volatile below the second bound.
PROTECTED, VOLATILE = 2 / 3, 1 / 3


def resistance(
    evidence: list[Tensor],
    protection: Number,
    *,
    sizes: list[Tensor] | None,
    activity: list[Tensor] | None,
) -> list[Tensor]:
    """``size / (1 - s) = size * (1 + c * Omega / a**2)``: what an update is divided by.

    From ``s = 1 / (1 + a**2 / (c * Omega))``; ``size`` exactly where there is no evidence.

    Args:
        evidence: Omega, each broadcastable to its update.
        protection: c, at least 0.
        sizes: what the base optimizer itself divides its update by; overwritten. None: 1.
        activity: a, gradients over the root of their mean square, in the shapes of the updates;
            overwritten. None: 1.
    """
    if activity is not None:
        square(activity)
        evidence = list(torch._foreach_div(evidence, activity))
    if sizes is not None and not isinstance(protection, Tensor):
        torch._foreach_addcmul_(sizes, sizes, evidence, protection)
        return sizes
    if isinstance(protection, Tensor):
        divisors = torch._foreach_mul(evidence, protection)
        torch._foreach_add_(divisors, 1.0)
    else:
        ones = [evidence[0].new_ones(())] * len(evidence)
        divisors = torch._foreach_add(ones, evidence, alpha=protection)
    return list(divisors if sizes is None else torch._foreach_mul(divisors, sizes))


def square(activity: list[Tensor]) -> None:
    """``a**2`` in place, from gradients over the root of their mean square."""
    torch._foreach_mul_(activity, activity)
    # A gradient of exactly 0 stops its element: the divisor is huge, not infinite, so that no
    # evidence over it is 0 and not NaN.
    torch._foreach_clamp_min_(activity, 1e-24)


def stability(evidence: Tensor, protection: float) -> Tensor:
    """``s`` at mean activity, in [0, 1): 0 where nothing is protected. Shape of ``evidence``."""
    weighted = evidence * protection
    return weighted / (weighted + 1.0)


def pull_weights(
    evidence: list[Tensor], stiffness: Number, denominators: list[Tensor] | None
) -> list[Tensor]:
    """``k / (1 + k)`` with ``k = stiffness * Omega / denominator``: how far to go to the anchor.

    The implicit form of a spring of stiffness k, stable for every ``k >= 0``; 0 without evidence.
    """
    springs = torch._foreach_mul(evidence, stiffness)
    if denominators is None:
        totals = torch._foreach_add(springs, 1.0)
    else:
        totals = torch._foreach_add(springs, denominators)
    return list(torch._foreach_div(springs, totals))


def pull(params: list[Tensor], anchors: list[Tensor], weights: list[Tensor]) -> None:
    """Move each parameter toward its anchor, in place: ``p += weight * (anchor - p)``."""
    alike = all(
        a.dtype == w.dtype == p.dtype for p, a, w in zip(params, anchors, weights, strict=True)
    )
    # A compiler does not take a lerp of lists apart, and would keep what it reads in memory.
    if alike and not torch.compiler.is_compiling():
        torch._foreach_lerp_(params, anchors, weights)
    else:
        moves = list(torch._foreach_sub(anchors, params))
        torch._foreach_mul_(moves, weights)
        torch._foreach_add_(params, moves)


def draw(params: list[Tensor], anchors: list[Tensor], kept: list[Tensor]) -> None:
    """The same by what is left of the way to the anchor, ``1 - weight``."""
    for param, anchor, share in zip(params, anchors, kept, strict=True):
        alike = anchor if anchor.dtype is param.dtype else anchor.to(param.dtype)
        torch.lerp(alike, param, share, out=param)
