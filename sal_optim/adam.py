"""SALAdam and SALAdamW: Adam and AdamW of ``torch.optim``, protected.

Kingma and Ba 2015 (arXiv 1412.6980); Loshchilov and Hutter 2019 (arXiv 1711.05101).
"""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sal_optim import config
from sal_optim.optimizer import SALOptimizer


class SALAdam(SALOptimizer, torch.optim.Adam):
    __doc__ = f"""Adam that forgets less.

    Until the first consolidation, and with ``protection=0`` always, it is ``torch.optim.Adam`` bit
    for bit.

    Args:
        params: parameters, named parameters or param groups.
        lr: learning rate, at least 0; a tensor as in torch.optim.
        betas: decay of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: at least 0; acts through the gradient, or with ``decoupled_weight_decay`` as
            AdamW's.
        amsgrad: use the largest running mean of squares so far.{config.SHARED}"""

    _moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        protection: float = config.PROTECTION,
        pull: float = config.PULL,
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
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        granularity: str | None = None,
        plasticity: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(params, config.given(locals()))


class SALAdamW(SALOptimizer, torch.optim.AdamW):
    __doc__ = f"""AdamW that forgets less.

    :class:`SALAdam` with decoupled weight decay. Equal to ``torch.optim.AdamW`` until the first
    consolidation, and with ``protection=0`` always.

    Args:
        params: parameters, named parameters or param groups.
        lr: learning rate, at least 0; a tensor as in torch.optim.
        betas: decay of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: at least 0; multiplies the parameter by ``1 - lr * weight_decay`` a step.
        amsgrad: use the largest running mean of squares so far.{config.SHARED}"""

    _moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        protection: float = config.PROTECTION,
        pull: float = config.PULL,
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
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        granularity: str | None = None,
        plasticity: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(params, config.given(locals()))
