"""The mathematics of protection: stability, the gate on an update, the pull toward an anchor.

Pure functions over lists of tensors; they hold no state and know no optimizer. Symbols are those of
``docs/mechanism.md``: ``Omega`` evidence, ``c`` protection, ``a`` activity, ``s`` stability.
"""

import torch
from torch import Tensor

TensorList = tuple[Tensor, ...] | list[Tensor]

# stability() reports a scalar as protected above the first, volatile below the second bound.
PROTECTED, VOLATILE = 2 / 3, 1 / 3


def resistance(
    evidence: TensorList,
    protection: float,
    *,
    grads: TensorList = (),
    exponent: int = 0,
    scale: float = 1.0,
) -> list[Tensor]:
    """What an update is divided by: ``1 / (1 - s) = 1 + c * Omega / a**exponent``.

    From ``s = 1 / (1 + a**q / (c * Omega))``; 1 exactly where there is no evidence.

    Args:
        evidence: Omega, each broadcastable to its update.
        protection: c, at least 0.
        grads: needed for an exponent other than 0; the shapes of the updates.
        exponent: q, 0, 1 or 2.
        scale: 1 / mean(|grad|), so that the activity ``a = scale * |grad|`` has mean 1.
    """
    if exponent == 0:
        divisors = list(torch._foreach_mul(evidence, protection))
    else:
        activity = torch._foreach_mul(grads, scale)
        torch._foreach_abs_(activity)
        # A gradient of exactly 0 stops its element: the divisor is huge, not infinite, so that no
        # evidence times it is 0 and not NaN.
        torch._foreach_clamp_min_(activity, 1e-12)
        if exponent == 2:
            torch._foreach_mul_(activity, activity)
        divisors = [omega / a for omega, a in zip(evidence, activity, strict=True)]
        torch._foreach_mul_(divisors, protection)
    torch._foreach_add_(divisors, 1.0)
    return divisors


def stability(evidence: Tensor, protection: float) -> Tensor:
    """``s`` at mean activity, in [0, 1): 0 where nothing is protected. Shape of ``evidence``."""
    weighted = evidence * protection
    return weighted / (weighted + 1.0)


def pull(params: TensorList, anchors: TensorList, strength: TensorList) -> None:
    """Move each parameter toward its anchor, in place: ``p += k / (1 + k) * (anchor - p)``.

    The implicit form of a spring of stiffness k, stable for every ``k >= 0``. ``strength`` holds k
    and is overwritten.
    """
    total = torch._foreach_add(strength, 1.0)
    torch._foreach_div_(strength, total)
    for param, anchor, weight in zip(params, anchors, strength, strict=True):
        param.add_((anchor - param).mul_(weight))
