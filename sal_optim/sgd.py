"""SALSGD: stochastic gradient descent with momentum as in ``torch.optim.SGD``, protected."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sal_optim import config
from sal_optim.optimizer import SALOptimizer


class SALSGD(SALOptimizer, torch.optim.SGD):
    __doc__ = f"""SGD with momentum that forgets less.

    Until the first consolidation, and with ``protection=0`` always, it is ``torch.optim.SGD`` bit
    for bit.

    Args:
        params: parameters, named parameters or param groups.
        lr: learning rate, at least 0; a tensor as in torch.optim.
        momentum: at least 0.
        dampening: of the momentum, in [0, 1].
        weight_decay: at least 0; acts through the gradient.
        nesterov: look ahead; needs a momentum and no dampening.{config.SHARED}"""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
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
        differentiable: bool = False,
        fused: bool | None = None,
        granularity: str | None = None,
        plasticity: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(params, config.given(locals()))
