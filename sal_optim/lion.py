"""SALLion: the update of Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2), protected.

torch.optim has no Lion, so that its few lines are here.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sal_optim import config
from sal_optim.optimizer import SALOptimizer
from sal_optim.sharding.dtensor import aligned, plain


class Lion(Optimizer):
    """Lion by lists of tensors; the base of :class:`SALLion`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        super().__init__(params, config.given(locals()))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Perform one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lists: dict[Any, list[Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    alone = param if group["foreach"] is False else None
                    lists.setdefault((param.device, param.dtype, alone), []).append(param)
            for params in lists.values():
                self._advance(group, params)
        return loss

    def _advance(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [aligned(cast(Tensor, param.grad), param) for param in params]
        for param in params:
            state = self.state[param]
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        exp_avgs = [self.state[param]["exp_avg"] for param in params]
        lr, (beta1, beta2) = group["lr"], group["betas"]
        if isinstance(lr, Tensor):
            lr = lr.reshape(())  # as torch takes one of one element
        # Lists of tensors hold no DTensor beside others, nor of two meshes.
        params, grads, exp_avgs = (
            [plain(t) for t in tensors] for tensors in (params, grads, exp_avgs)
        )
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        sign = -1.0 if group["maximize"] else 1.0
        updates = torch._foreach_mul(exp_avgs, beta1)
        torch._foreach_add_(updates, grads, alpha=sign * (1 - beta1))
        torch._foreach_sign_(updates)
        torch._foreach_mul_(updates, -lr)
        torch._foreach_add_(params, updates)
        torch._foreach_mul_(exp_avgs, beta2)
        torch._foreach_add_(exp_avgs, grads, alpha=sign * (1 - beta2))


class SALLion(SALOptimizer, Lion):  # type: ignore[misc]
    __doc__ = f"""Lion that forgets less.

    Until the first consolidation, and with ``protection=0`` always, it is Lion as published.

    Args:
        params: parameters, named parameters or param groups.
        lr: learning rate, at least 0; a third to a tenth of Adam's.
        betas: of the update's blend and of the running mean, each in [0, 1).
        weight_decay: at least 0; parameters are multiplied by ``1 - lr * weight_decay``.{
        config.SHARED
    }"""

    _moments = ("exp_avg",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        protection: float = config.LION_PROTECTION,
        pull: float = config.LION_PULL,
        importance: config.Kind = "kronecker",
        rank: int = config.RANK,
        consolidate_every: config.Clock = "auto",
        retention: float = config.RETENTION,
        tau0: float = config.TAU0,
        alpha: float = config.ALPHA,
        stats_beta: float = config.STATS_BETA,
        state_dtype: torch.dtype | str | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        granularity: str | None = None,
        plasticity: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(params, config.given(locals()))
