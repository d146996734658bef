"""One row a class and configuration, and the modes that each runs in: what every test runs on.

A new base optimizer is one more row here, and its options in ``VARIANTS`` of ``test_base.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sal_optim import SALSGD, SALAdam, SALAdamW, SALLion, SALMuon, SALOptimizer
from sal_optim.muon import COEFFICIENTS, HAS_MUON

# Classes that have arguments which are deprecated; a newer one never had them.
WITH_DEPRECATED = {"SALAdam", "SALAdamW", "SALSGD", "SALLion", "SALMuon"}


def _times(tensor: Tensor, scalar: float) -> Tensor:
    """A product in place, rounded as foreach rounds it, which differs for 2-byte floats."""
    torch._foreach_mul_([tensor], scalar)
    return tensor


class PlainLion(Optimizer):
    """Lion as published (arXiv 2302.06675, algorithm 2), in its plainest form."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                grad = -param.grad if group["maximize"] else param.grad
                state = self.state[param]
                exp_avg: Tensor = state.setdefault("exp_avg", torch.zeros_like(param))
                _times(param, 1 - group["lr"] * group["weight_decay"])
                parts = (torch.view_as_real(t) if t.is_complex() else t for t in (exp_avg, grad))
                average, slope = parts
                sign = average.mul(beta1).add_(slope, alpha=1 - beta1).sign_()
                if param.is_complex():
                    torch.view_as_real(param).add_(sign, alpha=-group["lr"])
                else:
                    param.add_(sign, alpha=-group["lr"])
                _times(average, beta2).add_(slope, alpha=1 - beta2)


class PlainMuon(Optimizer):
    """What Muon's users write: torch.optim.Muon for real matrices, torch.optim.AdamW for the rest.

    Both are made anew in each step, on the state that is kept here.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        own = {name: value for name, value in locals().items() if name in self.MUON}
        super().__init__(params, {**own, "betas": betas, "foreach": foreach, "maximize": maximize})

    SHARED = ("lr", "weight_decay", "eps")
    MUON = (*SHARED, "momentum", "nesterov", "ns_coefficients", "ns_steps", "adjust_lr_fn")
    ADAMW = (*SHARED, "betas", "foreach", "maximize")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            of_muon: list[Tensor] = []
            of_adamw: list[Tensor] = []
            for param in group["params"]:
                matrix = param.dim() == 2 and param.numel() > 0 and not param.is_complex()
                (of_muon if matrix else of_adamw).append(param)
            sign = -1.0 if group["maximize"] else 1.0
            for param in of_muon:
                param.grad = None if param.grad is None else sign * param.grad
            self._step(torch.optim.Muon, of_muon, {n: group[n] for n in self.MUON})
            for param in of_muon:
                param.grad = None if param.grad is None else sign * param.grad
            self._step(torch.optim.AdamW, of_adamw, {n: group[n] for n in self.ADAMW})

    def _step(self, kind: Any, params: list[Tensor], settings: dict[str, Any]) -> None:
        if params:
            part = kind(params, **settings)
            part.state = self.state
            part.step()


@dataclass(frozen=True)
class Row:
    """A class in one configuration."""

    name: str
    cls: type[SALOptimizer]
    peer: type[Optimizer]  # its base optimizer
    moments: tuple[str, ...]  # the base optimizer's state, shaped like the parameter
    kwargs: dict[str, Any] = field(default_factory=dict)
    has_betas: bool = True
    # Settings with which its update is by element, where it is not with all.
    by_element: dict[str, Any] = field(default_factory=dict)

    def __call__(self, params: Any, **changes: Any) -> SALOptimizer:
        return self.cls(params, **{**self.kwargs, **changes})

    def base(self, params: Any, **changes: Any) -> Optimizer:
        return self.peer(params, **{**self.kwargs, **changes})

    def moments_of(self, param: Tensor) -> tuple[str, ...]:
        """Those of one parameter."""
        if self.peer is not PlainMuon:
            return self.moments
        matrix = param.dim() == 2 and param.numel() > 0 and not param.is_complex()
        return self.moments[:1] if matrix else self.moments[1:]

    @property
    def from_torch(self) -> bool:
        return self.peer not in (PlainLion, PlainMuon)

    @property
    def scale_free(self) -> bool:
        """Whether scaling the loss leaves its steps as they are."""
        return self.has_betas

    def __str__(self) -> str:
        return self.name


_ADAM = ("exp_avg", "exp_avg_sq")
_SGD = {"lr": 0.01, "weight_decay": 1e-3}
_MUON = Row(
    "SALMuon",
    SALMuon,
    PlainMuon,
    ("momentum_buffer", *_ADAM),
    {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"},
    by_element={"use_muon": False},
)

ROWS = (
    Row("SALAdam", SALAdam, torch.optim.Adam, _ADAM, {"lr": 0.01}),
    Row(
        "SALAdamW",
        SALAdamW,
        torch.optim.AdamW,
        (*_ADAM, "max_exp_avg_sq"),
        {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True},
    ),
    Row("SALSGD", SALSGD, torch.optim.SGD, (), _SGD, has_betas=False),
    Row(
        "SALSGD-momentum",
        SALSGD,
        torch.optim.SGD,
        ("momentum_buffer",),
        {**_SGD, "momentum": 0.9, "dampening": 0.1},
        has_betas=False,
    ),
    Row(
        "SALSGD-nesterov",
        SALSGD,
        torch.optim.SGD,
        ("momentum_buffer",),
        {**_SGD, "momentum": 0.9, "nesterov": True},
        has_betas=False,
    ),
    Row("SALLion", SALLion, PlainLion, ("exp_avg",), {"lr": 1e-3, "weight_decay": 0.1}),
    *([_MUON] if HAS_MUON else []),
)
# One row a class, for what does not depend on the configuration and takes long.
CLASSES = tuple({row.cls: row for row in ROWS}.values())
KINDS = ("kronecker", "diagonal", "factored")
GRANULARITIES = KINDS


def row_of(name: str) -> Row:
    """The row of that name."""
    return next(row for row in ROWS if row.name == name)


MODES: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "default": {},
}
