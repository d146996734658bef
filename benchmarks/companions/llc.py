"""The local learning coefficient of a trained network, by devinterp's Langevin sampler.

Its estimator of Lau et al. (arXiv 2308.12108): nβ · (mean loss of weights sampled around w* - loss
at w*), nβ = n / ln n. Both losses are taken on the same batches, which takes most of their noise
out. A true coefficient is never negative: where the estimate is, w* was no minimum of the loss.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LR, LOCALIZATION = 1e-5, 1000.0
BURN_IN = 0.4  # of the steps


def sampler() -> Any:
    """devinterp's SGMCMC, or None where it is not installed."""
    try:
        return importlib.import_module("devinterp.optim").SGMCMC
    except ImportError:
        return None


def estimate(
    model: nn.Module,
    loss: Callable[[nn.Module, Tensor], Tensor],
    samples: int,
    *,
    steps: int = 150,
    batch: int = 128,
    lr: float = LR,
    seed: int = 0,
) -> float | None:
    """The coefficient, from one chain; None without devinterp. `loss` is of a model and rows."""
    sgmcmc = sampler()
    if sgmcmc is None:
        return None
    temperature = samples / math.log(samples)
    walker = copy.deepcopy(model)
    chain = sgmcmc.sgld(walker.parameters(), lr=lr, nbeta=temperature, localization=LOCALIZATION)
    draw, gaps = torch.Generator().manual_seed(seed), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(steps):
            rows = torch.randint(samples, (batch,), generator=draw)
            chain.zero_grad()
            there = loss(walker, rows)
            if step >= BURN_IN * steps:
                with torch.no_grad():
                    gaps.append(float(there - loss(model, rows)))
            there.backward()  # type: ignore[no-untyped-call]
            chain.step()
    return temperature * sum(gaps) / len(gaps)
