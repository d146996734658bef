"""The base optimizers without any protection, by name: what everything else builds on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

Closure = Callable[[], float]


class Lion(Optimizer):
    """Lion (Chen et al. 2023, algorithm 2) without weight decay; kept apart from sal_optim's so
    that the baseline does not share the code it is compared with."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                exp_avg = state["exp_avg"]
                p.sub_(exp_avg.lerp(p.grad, 1 - beta1).sign_(), alpha=group["lr"])
                exp_avg.lerp_(p.grad, 1 - beta2)
        return loss


def adam(params: Iterable[Tensor], lr: float) -> Optimizer:
    return Adam(params, lr=lr)


def sgd(params: Iterable[Tensor], lr: float) -> Optimizer:
    return SGD(params, lr=lr, momentum=0.9)


def lion(params: Iterable[Tensor], lr: float) -> Optimizer:
    return Lion(params, lr=lr)
