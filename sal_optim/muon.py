"""SALMuon: ``torch.optim.Muon`` for matrices and AdamW for the rest, protected.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/); Liu et al. 2025 (arXiv 2502.16982).
Muon takes matrices alone. Its users give all other parameters, embeddings and heads to AdamW.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from sal_optim import config
from sal_optim.optimizer import SALOptimizer
from sal_optim.sharding.dtensor import put_whole, whole
from sal_optim.utils import checks

HAS_MUON = hasattr(torch.optim, "Muon")  # since torch 2.9
if TYPE_CHECKING or HAS_MUON:
    from torch.optim import Muon
    from torch.optim._muon import muon
else:
    Muon = Optimizer

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # torch's, of the Newton-Schulz iteration
OF_MUON = ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "ns_steps", "eps",
           "adjust_lr_fn")  # fmt: skip


def takes_muon(param: Tensor, group: dict[str, Any]) -> bool:
    """Whether a parameter has Muon's update: a real matrix, in a group that has ``use_muon``."""
    return bool(group["use_muon"] and param.dim() == 2 and param.numel() and not param.is_complex())


class MuonAdamW(Muon):
    """Muon and AdamW by torch's own functions, in one optimizer; the base of :class:`SALMuon`."""

    def __init__(self, params: ParamsT, **settings: Any) -> None:
        if not HAS_MUON:
            raise RuntimeError(
                f"torch {torch.__version__} has no torch.optim.Muon, which SALMuon needs; torch "
                "has it since 2.9"
            )
        # Muon's own constructor refuses what AdamW is for.
        Optimizer.__init__(self, params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Perform one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            self._muon(group, [param for param in params if takes_muon(param, group)])
            self._adamw(group, [param for param in params if not takes_muon(param, group)])
        return loss

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        settings = {name: group[name] for name in OF_MUON}
        for param in params:
            assert param.grad is not None
            buffer = self._moment(param, "momentum_buffer")
            # Muon orthogonalizes a matrix as a whole: a sharded one is gathered.
            wholes = [whole(param), whole(buffer)]
            grad = whole(-param.grad if group["maximize"] else param.grad)
            muon(wholes[:1], [grad], wholes[1:], has_complex=False, **settings)
            put_whole(param, wholes[0])
            put_whole(buffer, wholes[1])

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for param in params:
            step = self.state[param].get("step", 0.0)
            if not isinstance(step, Tensor):
                self.state[param]["step"] = torch.tensor(step, dtype=torch.float32, device="cpu")
        beta1, beta2 = group["betas"]
        adamw(
            params,
            [param.grad for param in params if param.grad is not None],
            [self._moment(param, "exp_avg") for param in params],
            [self._moment(param, "exp_avg_sq") for param in params],
            [],
            [self.state[param]["step"] for param in params],
            foreach=group["foreach"],
            has_complex=any(param.is_complex() for param in params),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"] * group["adamw_lr_ratio"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    def _moment(self, param: Tensor, name: str) -> Tensor:
        state = self.state[param]
        if name not in state:
            state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        found: Tensor = state[name]
        return found


class SALMuon(SALOptimizer, MuonAdamW):  # type: ignore[misc]
    __doc__ = f"""Muon that forgets less, for a whole model; needs torch 2.9.

    Real matrices have the update of ``torch.optim.Muon``. All other parameters, and those of groups
    with ``use_muon=False``, have that of ``torch.optim.AdamW``. Until the first consolidation, and
    with ``protection=0`` always, these are torch's bit for bit. One learning rate fits both with
    ``adjust_lr_fn="match_rms_adamw"``; otherwise groups have their own, or ``adamw_lr_ratio``.

    Args:
        params: parameters, named parameters or param groups.
        lr: learning rate, at least 0; a tensor as in torch.optim.
        weight_decay: at least 0; multiplies a parameter by ``1 - weight_decay`` times its learning
            rate a step.
        momentum: of Muon, at least 0.
        nesterov: look ahead, in Muon.
        ns_coefficients: three numbers of Muon's Newton-Schulz iteration.
        eps: at least 0; added to AdamW's denominator, and the least norm that Muon divides by.
        ns_steps: of the Newton-Schulz iteration, 0 to 99.
        adjust_lr_fn: of Muon: ``"original"``, as None: times the root of rows over columns, at
            least 1; ``"match_rms_adamw"``: times 0.2 of the root of the longer side.
        use_muon: False in a group of embeddings or of a head, which AdamW then takes.
        betas: of AdamW: decay of the running means of the gradient and of its square, in [0, 1).
        adamw_lr_ratio: learning rate of AdamW, over ``lr``; schedulers of ``lr`` then move both.{
        config.SHARED
    }"""

    _moments = ("momentum_buffer", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        use_muon: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
        adamw_lr_ratio: float = 1.0,
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
        granularity: str | None = None,
        plasticity: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(params, config.given(locals()))

    def _moments_of(self, param: Tensor, group: dict[str, Any]) -> tuple[str, ...]:
        return self._moments[:1] if takes_muon(param, group) else self._moments[1:]

    def _checked_base(self, settings: dict[str, Any]) -> dict[str, Any]:
        checked = super()._checked_base(settings)
        checked["use_muon"] = checks.flag("use_muon", checked["use_muon"])
        checked["adamw_lr_ratio"] = checks.number("adamw_lr_ratio", checked["adamw_lr_ratio"])
        allowed = "ns_steps must be a whole number from 0 to 99"
        steps = checks.whole("ns_steps", checked["ns_steps"], low=0, high=99, allowed=allowed)
        checked["ns_steps"] = steps
        checked["ns_coefficients"] = _three(checked["ns_coefficients"])
        adjust = checked["adjust_lr_fn"]
        if adjust is not None:
            checks.choice("adjust_lr_fn", adjust, ["original", "match_rms_adamw"])
        if checked["foreach"] and isinstance(checked["lr"], Tensor):
            # As torch's AdamW says it.
            raise ValueError(
                "lr as a Tensor is not supported for capturable=False and foreach=True"
            )
        return checked


def _three(coefficients: Any) -> tuple[float, ...]:
    given = coefficients if isinstance(coefficients, (list, tuple)) else ()
    if len(given) != 3:
        raise ValueError(
            f"Invalid ns_coefficients value: {coefficients!r}; ns_coefficients must be three "
            "numbers"
        )
    return tuple(checks.number("ns_coefficients", value, low=-math.inf) for value in given)
