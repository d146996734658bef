"""torch's fused kernels: a base optimizer's whole step in one pass over memory.

An unprotected step has to equal ``torch.optim``'s default bit for bit, which a kernel does not. A
protected one has no such model: there, a kernel moves zeros as it would move the weights if nothing
were protected, and the gate lets its share of that through.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sal_optim.distributed import PLAIN
from sal_optim.pieces import Piece, Work, packed
from sal_optim.update import Tensors, Whole

# What a kernel reads as it lies in memory, without strides.
_DTYPES = (torch.float32, torch.float64)


def fits(piece: Piece, moments: Sequence[str]) -> bool:
    """Whether a kernel may be given these parameters.

    On a CPU alone: elsewhere, lists are what was measured. Two-byte weights would be rounded twice.
    """
    if piece.served is None:
        piece.served = all(_fits(work, moments) for work in piece.works)
    return piece.served and all(packed(work.grad, work.param.dtype) for work in piece.works)


def _fits(work: Work, moments: Sequence[str]) -> bool:
    """But for its gradient."""
    param, dtype = work.param, work.param.dtype
    if type(param) not in PLAIN or dtype not in _DTYPES:
        return False
    if not (param.is_cpu and work.owner["step"].is_cpu):
        return False
    return all(packed(tensor, dtype) for tensor in (param, *(work.state[n] for n in moments)))


def adam(group: dict[str, Any], lr: float, piece: Piece) -> Whole:
    """Adam's step, or AdamW's, with the settings of a group."""
    decay, decoupled = group["weight_decay"], group["decoupled_weight_decay"]
    beta1, beta2 = group["betas"]
    steps = [work.owner["step"] for work in piece.works]

    def moves(params: list[Tensor], grads: list[Tensor], state: Tensors) -> list[Tensor]:
        if decay and not decoupled:
            sign = -1.0 if group["maximize"] else 1.0  # the kernel turns gradients round
            grads = list(torch._foreach_add(grads, params, alpha=sign * decay))
        found = [torch.zeros_like(param) for param in params]
        torch._fused_adam_(
            found,
            grads,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["max_exp_avg_sq"] if group["amsgrad"] else [],
            steps,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
        )
        if decay and decoupled:
            torch._foreach_add_(found, params, alpha=-lr * decay)
        return found

    def sizes(state: Tensors, into: list[Tensor]) -> list[float]:
        units = [(1 - beta2 ** float(work.step)) ** 0.5 for work in piece.works]
        squares = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        for root, square in zip(into, squares, strict=True):
            torch.sqrt(square, out=root)
        torch._foreach_add_(into, [group["eps"] * unit for unit in units])
        return units

    return Whole(moves, sizes, piece.gate)
