"""Protected gradients: what a step is given in the place of its own, and how they are put back."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sal_optim.detection.grad_norm import joined, norms
from sal_optim.importance import Penalty
from sal_optim.protection import anchor
from sal_optim.protection.block import Block, Group, in_force
from sal_optim.protection.clock import INTERVAL
from sal_optim.protection.judge import Decision
from sal_optim.sharding.dtensor import PLAIN, plain
from sal_optim.utils.rounding import on_host

# The most that the protected gradients of plain gradient descent are scaled up by, and how many
# standard deviations they are then above the mean norm of the last steps at most.
LARGEST_GAIN = 10.0
DEVIATIONS = 0.75


def descends(optimizer: Optimizer) -> bool:
    """Whether a step may be as long as its gradient, as that of gradient descent is.

    Torch's own optimizers are known, and so is the family, which is derived from them or from one
    of this package. Of any other nothing is.
    """
    if isinstance(optimizer, (torch.optim.SGD, torch.optim.ASGD)):
        return True
    known = ("torch.optim.", "sal_optim.")
    return not any(
        cls.__module__.startswith(known) for cls in type(optimizer).__mro__ if cls is not Optimizer
    )


def batches(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks that have importance, by what can be computed in one call."""
    found: dict[Any, list[Block]] = {}
    for block in blocks:
        if block.state["evidence_weight"] > 0.0:
            place = (id(block.group["params"]), id(block.kind), "anchor" in block.local,
                     block.grad.dtype, block.grad.device)  # fmt: skip
            found.setdefault(place, []).append(block)
    return list(found.values())


def damped(blocks: Sequence[Block]) -> list[Tensor]:
    """Gradients whose parts are divided by 1 + their importance."""
    states, grads = [b.local for b in blocks], [b.grad for b in blocks]
    return blocks[0].kind.protect(states, grads, None, 1.0)


def protected(
    blocks: Sequence[Block], decision: Decision, *, share: float, descends: bool
) -> list[Tensor]:
    """Gradients as the step is to see them.

    Args:
        blocks: of one group and kind.
        share: of the protection that is in force.
        descends: whether a step may be as long as its gradient, see :func:`descends`.
    """
    group, penalty = blocks[0].group, None
    damping = in_force(group, share)
    if decision.penalizes and group["pull"] > 0.0 and "anchor" in blocks[0].local:
        moved = anchor.distances([block.local for block in blocks], [b.values for b in blocks])
        stiffness = INTERVAL * damping * group["pull"] * decision.unit
        if descends:
            stiffness = min(stiffness, _largest_stiffness(group, damping))
        stiffness *= -decision.loss_scale if group.get("maximize") else decision.loss_scale
        penalty = Penalty(moved, stiffness)
    states, grads = [b.local for b in blocks], [b.grad for b in blocks]
    return blocks[0].kind.protect(states, grads, penalty, damping)


def _largest_stiffness(group: Group, damping: float) -> float:
    """The penalty's bound: gradient descent, with its momentum, never passes the anchor by it."""
    lr, momentum = group.get("lr"), group.get("momentum")
    if lr is None or (isinstance(lr, Tensor) and not on_host(lr)) or float(lr) == 0.0:
        return math.inf
    left = 1.0 - float(momentum) if isinstance(momentum, (int, float)) else 1.0
    # A schedule that goes on past its end leaves a rate below 0.
    return damping * max(left, 0.0) / abs(float(lr))


def regain_norm(blocks: list[Block], grads: list[Tensor], decision: Decision) -> None:
    """Scale protected gradients to the norm of those they stand for, in place.

    Damping shortens them where the data is the one that importance is of. Without this, gradient
    descent would learn more slowly there. What is left points where little is known of the loss,
    so that a leap of the norm is not made up for.
    """
    before = joined(norms_of(blocks, decision)).norm()
    after = joined(norms(grads, [block.sharding for block in blocks])).norm()
    most = decision.loss_scale * usual_norm(blocks)
    factor = before.clamp_max(most) / after.clamp_min(torch.finfo(after.dtype).tiny)
    factor = factor.clamp(1.0, LARGEST_GAIN).nan_to_num(1.0)
    torch._foreach_mul_(grads, float(factor) if on_host(factor) else factor)


def usual_norm(blocks: Sequence[Block]) -> float:
    """The longest that gradients of some blocks are as a rule, by their running statistics.

    Without the loss's scale, as these are.
    """
    mean = math.hypot(*(block.state["grad_norm_mean"] for block in blocks))
    return mean + DEVIATIONS * math.sqrt(sum(block.state["grad_norm_var"] for block in blocks))


def norms_of(blocks: Sequence[Block], decision: Decision) -> list[Tensor]:
    """The norms of some blocks' gradients, as the decision knows them."""
    own = {id(block): norm for block, norm in zip(decision.blocks, decision.norms, strict=True)}
    return [own[id(block)] for block in blocks]


def replace(block: Block, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Give the parameter another gradient; returns the parameter and the one that it had."""
    param = block.param
    old = param.grad
    assert old is not None
    new = grad
    if type(old) not in PLAIN or param.is_complex() or grad.stride() != param.stride():
        # Fused kernels take memory as it lies, so that it must lie as the parameter's does.
        new = torch.empty_like(param.detach(), dtype=old.dtype)
        plain(new).copy_(grad)
    if old.requires_grad:
        # Second-order optimizers differentiate the gradient's graph once more.
        with torch.enable_grad():
            new = old + (new - old.detach())
    param.grad = new
    return param, old
