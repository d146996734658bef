"""SALAdam and SALAdamW: the update of Adam (Kingma and Ba 2015, arXiv 1412.6980), protected.

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) is a flag of the same class, as in torch.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sal_optim import fused, native
from sal_optim.arguments import SHARED, given
from sal_optim.kronecker import RANK
from sal_optim.optimizer import PLASTICITY, PROTECTION, PULL, SALOptimizer
from sal_optim.pieces import Piece
from sal_optim.update import Direction, Rule, Tensors, Whole
from sal_optim.utils import checks
from sal_optim.utils.rounding import Number


class SALAdam(SALOptimizer):
    __doc__ = f"""Adam that forgets less.

    Until the data changes, and with ``protection=0`` always, it is ``torch.optim.Adam`` bit for
    bit. State beyond Adam's: 12 bytes a parameter by default.

    Args:
        params: parameters, named parameters or param groups.
        lr: learning rate, at least 0; a one-element tensor will do without ``foreach``.
        betas: decay of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: at least 0; acts through the gradient.
        amsgrad: use the largest running mean of squares so far.{SHARED}"""

    _moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    _momenta = ("exp_avg",)
    _bias_correction: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        protection: float = PROTECTION,
        pull: float = PULL,
        tau0: float = 1.0,
        alpha: float = 4.0,
        stats_beta: float = 0.98,
        consolidate_every: int | None = None,
        retention: float = 1.0,
        plasticity: float = PLASTICITY,
        granularity: str = "element",
        rank: int = RANK,
        state_dtype: torch.dtype | str | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        compile: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(params, given(locals()))

    def _check_base(self, group: dict[str, Any]) -> dict[str, Any]:
        return {
            "betas": checks.betas(group["betas"]),
            "eps": checks.number("eps", group["eps"], label="epsilon value"),
            "amsgrad": checks.flag("amsgrad", group["amsgrad"]),
            "decoupled_weight_decay": checks.flag(
                "decoupled_weight_decay", group["decoupled_weight_decay"]
            ),
        }

    def _decoupled(self, group: dict[str, Any]) -> bool:
        return bool(group["decoupled_weight_decay"])

    def _moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (*self._moments, "max_exp_avg_sq") if group["amsgrad"] else self._moments

    def _rule(self, group: dict[str, Any], fresh: bool) -> Rule:
        return {name: group[name] for name in ("betas", "eps", "amsgrad")}

    def _numbers(
        self, group: dict[str, Any], lr: Number, steps: Sequence[Number]
    ) -> tuple[list[Number], ...]:
        beta1, beta2 = group["betas"]
        found = {}
        for step in steps:
            if step not in found:  # mostly, all are at one
                correction = (1 - beta2**step) ** 0.5
                found[step] = correction, 1 / correction, (lr / (1 - beta1**step)) * -1
        corrections, inverses, factors = zip(*(found[step] for step in steps), strict=True)
        return list(corrections), list(inverses), list(factors)

    def _whole(self, group: dict[str, Any], lr: float, piece: Piece) -> Whole | None:
        if type(self)._direction is not SALAdam._direction:
            return None  # another's update
        return fused.adam(group, lr, piece)

    def _base(self, group: dict[str, Any], fresh: bool) -> native.Base | None:
        if type(self)._direction is not SALAdam._direction:
            return None
        defines = ("ADAM=1", f"AMSGRAD={int(group['amsgrad'])}")
        return native.Base(defines, (*group["betas"], group["eps"]), self._moment_names(group))

    @staticmethod
    def _direction(
        rule: Rule, state: Tensors, grads: list[Tensor], numbers: tuple[Sequence[Number], ...]
    ) -> Direction:
        beta1, beta2 = rule["betas"]
        exp_avgs, exp_avg_sqs = state["exp_avg"], state["exp_avg_sq"]
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        if rule["amsgrad"]:
            torch._foreach_maximum_(state["max_exp_avg_sq"], exp_avg_sqs)
        return SALAdam._last_update(rule, state, numbers)

    @staticmethod
    def _last_update(
        rule: Rule, state: Tensors, numbers: tuple[Sequence[Number], ...]
    ) -> Direction:
        corrections, inverses, factors = numbers
        squares = state["max_exp_avg_sq" if rule["amsgrad"] else "exp_avg_sq"]
        denominators = list(torch._foreach_sqrt(squares))
        if isinstance(inverses[0], Tensor):  # compiled: a product where a quotient takes long
            torch._foreach_mul_(denominators, inverses)  # type: ignore[arg-type]
        else:
            torch._foreach_div_(denominators, corrections)  # type: ignore[arg-type]
        torch._foreach_add_(denominators, rule["eps"])
        return Direction(state["exp_avg"], denominators, factors)


class SALAdamW(SALAdam):
    __doc__ = f"""AdamW that forgets less.

    :class:`SALAdam` with decoupled weight decay, which is gated like the update: a protected weight
    does not decay away. Equal to ``torch.optim.AdamW`` until the data changes.

    Args:
        params: parameters, named parameters or param groups.
        lr: learning rate, at least 0; a one-element tensor will do without ``foreach``.
        betas: decay of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: at least 0; multiplies the parameter by ``1 - lr * weight_decay`` a step.
        amsgrad: use the largest running mean of squares so far.{SHARED}"""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        protection: float = PROTECTION,
        pull: float = PULL,
        tau0: float = 1.0,
        alpha: float = 4.0,
        stats_beta: float = 0.98,
        consolidate_every: int | None = None,
        retention: float = 1.0,
        plasticity: float = PLASTICITY,
        granularity: str = "element",
        rank: int = RANK,
        state_dtype: torch.dtype | str | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(params, **given(locals()), decoupled_weight_decay=True)
