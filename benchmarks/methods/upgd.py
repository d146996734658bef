"""UPGD and AdaUPGD: utility-based perturbed gradient descent, untold.

Elsayed and Mahmood 2024 (arXiv 2404.00781), algorithm 1: a weight's utility is a running mean of
-g·w, the loss that its removal would cost; scaled by the largest in the network and squashed,
ū = σ(U/max U), it protects: w ← (1 - lr·λ)w - lr·(g + ξ)(1 - ū) with noise ξ ~ N(0, sd²).
AdaUPGD has Adam's direction in the place of g, and the noise added outside of it, as in the
authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class UPGD(Optimizer):
    """First-order UPGD with global scaling, protecting."""

    adaptive = False

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        beta_utility: float = 0.999,
        noise: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta_utility": beta_utility,
            "noise": noise,
            "weight_decay": weight_decay,
            "betas": betas,
            "eps": eps,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        entries = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        most = torch.tensor(-torch.inf)
        for group, p in entries:
            state = self.state[p]
            if not state:
                state["step"] = 0
                state["utility"] = torch.zeros_like(p)
            state["step"] += 1
            state["utility"].lerp_(-p.grad * p, 1 - group["beta_utility"])
            correction = 1 - group["beta_utility"] ** state["step"]
            most = torch.maximum(most, state["utility"].max() / correction)
        for group, p in entries:
            state = self.state[p]
            correction = 1 - group["beta_utility"] ** state["step"]
            free = 1 - torch.sigmoid(state["utility"] / correction / most)
            noise = torch.randn_like(p) * group["noise"]
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_((self._direction(group, p, state) + noise) * free, alpha=group["lr"])
        return loss

    def _direction(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> Tensor:
        assert p.grad is not None
        return p.grad


class AdaUPGD(UPGD):
    """UPGD along Adam's direction."""

    def _direction(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> Tensor:
        assert p.grad is not None
        (beta1, beta2), step = group["betas"], state["step"]
        mean: Tensor = state.setdefault("exp_avg", torch.zeros_like(p))
        square: Tensor = state.setdefault("exp_avg_sq", torch.zeros_like(p))
        mean.lerp_(p.grad, 1 - beta1)
        square.lerp_(p.grad.square(), 1 - beta2)
        root: Tensor = (square / (1 - beta2**step)).sqrt() + group["eps"]
        direction: Tensor = mean / (1 - beta1**step) / root
        return direction
