"""SALLion: the update of Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2), protected.

The sign keeps weights moving at full speed whose gradient has died; the gate's exponent of 2 on the
activity stops exactly those.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sal_optim import native
from sal_optim.arguments import SHARED, given
from sal_optim.kronecker import RANK
from sal_optim.optimizer import PROTECTION, PULL, SALOptimizer
from sal_optim.update import Direction, Rule, Tensors
from sal_optim.utils import checks
from sal_optim.utils.rounding import Number


class SALLion(SALOptimizer):
    __doc__ = f"""Lion that forgets less.

    Until the data changes, and with ``protection=0`` always, it is Lion as published. State beyond
    Lion's: 12 bytes a parameter by default.

    Args:
        params: parameters, named parameters or param groups.
        lr: learning rate, at least 0; a third to a tenth of Adam's.
        betas: of the update's blend and of the running mean, each in [0, 1).
        weight_decay: at least 0; parameters are multiplied by ``1 - lr * weight_decay``.{SHARED}"""

    _moments: ClassVar[tuple[str, ...]] = ("exp_avg",)
    _momenta = ("exp_avg",)
    _activity = True
    _unit_update = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        protection: float = PROTECTION,
        pull: float = PULL,
        tau0: float = 1.0,
        alpha: float = 4.0,
        stats_beta: float = 0.98,
        consolidate_every: int | None = None,
        retention: float = 1.0,
        # Told at mean activity: most elements' is below it, and their gate is smaller.
        plasticity: float = 0.6,
        granularity: str = "element",
        rank: int = RANK,
        state_dtype: torch.dtype | str | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(params, given(locals()))

    def _check_base(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"betas": checks.betas(group["betas"])}

    def _decoupled(self, group: dict[str, Any]) -> bool:
        return True

    def _rule(self, group: dict[str, Any], fresh: bool) -> Rule:
        return {"betas": group["betas"]}

    def _base(self, group: dict[str, Any], fresh: bool) -> native.Base | None:
        if type(self)._direction is not SALLion._direction:
            return None
        return native.Base(("LION=1",), group["betas"], self._moments)

    @staticmethod
    def _direction(
        rule: Rule, state: Tensors, grads: list[Tensor], numbers: tuple[Sequence[Number], ...]
    ) -> Direction:
        (beta1, beta2), (factors,) = rule["betas"], numbers
        exp_avgs = state["exp_avg"]
        signs = torch._foreach_mul(exp_avgs, beta1)
        torch._foreach_add_(signs, grads, alpha=1 - beta1)
        torch._foreach_sign_(signs)
        torch._foreach_mul_(exp_avgs, beta2)
        torch._foreach_add_(exp_avgs, grads, alpha=1 - beta2)
        return Direction(signs, None, factors)
