"""SALSGD: stochastic gradient descent with momentum as in torch.optim.SGD, protected."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sal_optim import native
from sal_optim.arguments import SHARED, given
from sal_optim.kronecker import RANK
from sal_optim.optimizer import PLASTICITY, PROTECTION, PULL, SALOptimizer
from sal_optim.update import Direction, Rule, Tensors
from sal_optim.utils import checks
from sal_optim.utils.rounding import Number


class SALSGD(SALOptimizer):
    __doc__ = f"""SGD with momentum that forgets less.

    Until the data changes, and with ``protection=0`` always, it is ``torch.optim.SGD`` bit for bit.
    State beyond SGD's: 12 bytes a parameter by default.

    Args:
        params: parameters, named parameters or param groups.
        lr: learning rate, at least 0; a one-element tensor will do without ``foreach``.
        momentum: at least 0.
        dampening: of the momentum, in [0, 1].
        weight_decay: at least 0; acts through the gradient.
        nesterov: look ahead; needs a momentum and no dampening.{SHARED}"""

    _momenta = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
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
        super().__init__(params, given(locals()))

    def _check_base(self, group: dict[str, Any]) -> dict[str, Any]:
        checked = {
            "momentum": checks.number("momentum", group["momentum"]),
            "dampening": checks.number("dampening", group["dampening"], high=1.0, high_open=False),
            "nesterov": checks.flag("nesterov", group["nesterov"]),
        }
        if checked["nesterov"] and not (checked["momentum"] > 0 and checked["dampening"] == 0):
            raise ValueError(
                "Nesterov momentum requires a momentum and zero dampening; got "
                f"momentum={group['momentum']}, dampening={group['dampening']}"
            )
        return checked

    def _decoupled(self, group: dict[str, Any]) -> bool:
        return False

    def _moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self._momenta if group["momentum"] else ()

    def _rule(self, group: dict[str, Any], fresh: bool) -> Rule:
        names = ("momentum", "dampening", "nesterov")
        return {"fresh": fresh, **{name: group[name] for name in names}}

    def _gain(self, group: dict[str, Any]) -> float:
        # Momentum sums a lasting gradient; a pull that it does not sum must match that.
        momentum = group["momentum"]
        return (1 - group["dampening"]) / (1 - momentum) if 0 < momentum < 1 else 1.0

    def _base(self, group: dict[str, Any], fresh: bool) -> native.Base | None:
        if type(self)._direction is not SALSGD._direction:
            return None
        momentum, nesterov = group["momentum"], group["nesterov"]
        stays, enters = (0.0, 1.0) if fresh else (momentum, 1 - group["dampening"])
        blend = (1.0, momentum) if nesterov else (0.0, 1.0)
        return native.Base(
            ("SGD=1", f"MOMENTUM={int(momentum > 0)}"),
            (stays, enters, *blend),
            self._moment_names(group),
        )

    @staticmethod
    def _direction(
        rule: Rule, state: Tensors, grads: list[Tensor], numbers: tuple[Sequence[Number], ...]
    ) -> Direction:
        momentum, (factors,) = rule["momentum"], numbers
        if not momentum:
            return Direction(grads, None, factors)
        buffers = state["momentum_buffer"]
        if rule["fresh"]:
            # A first gradient enters whole, without dampening.
            torch._foreach_copy_(buffers, grads)
        else:
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, grads, alpha=1 - rule["dampening"])
        if rule["nesterov"]:
            return Direction(torch._foreach_add(grads, buffers, alpha=momentum), None, factors)
        return Direction(buffers, None, factors)

    @staticmethod
    def _last_update(
        rule: Rule, state: Tensors, numbers: tuple[Sequence[Number], ...]
    ) -> Direction | None:
        if not rule["momentum"] or rule["nesterov"]:
            return None
        return Direction(state["momentum_buffer"], None, numbers[0])
