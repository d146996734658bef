"""``rank_floor_loss``: a penalty that keeps the effective rank of activations above a floor.

It is a term of a loss. The same quantity is watched, without a gradient, by ``SpectralMonitor``.
"""

import math

import torch
from torch import Tensor

from sal_optim.companions.activations import as_rows, centred
from sal_optim.utils import checks


def rank_floor_loss(h: Tensor, floor: float) -> Tensor:
    """``max(0, ln(floor) - H)``, a scalar with its graph; 0 while the effective rank is above.

    H is the entropy -Σ p ln p of the singular values σ of the centred activations, p = σ/Σσ, and
    exp(H) their effective rank (Roy & Vetterli 2007; RankMe, arXiv 2210.02885). The shares are of σ
    and not of σ², whose gradient vanishes sooner. It keeps activations from collapsing; it does not
    bring them back from a full collapse, where all gradients are 0. Of activations that are not
    finite it is NaN, so that a ``GradScaler`` passes over the step.

    Args:
        h: activations: samples by features, sequences of them, or images with channels second.
        floor: the effective rank to keep, above 1 and at most min(samples - 1, features).

    Raises:
        ValueError: ``h`` has fewer than 3 samples or 2 features.
    """
    if not isinstance(h, Tensor) or not h.is_floating_point():
        raise TypeError(
            f"Invalid h value: a {type(h).__name__}; h must be a tensor of floating dtype"
        )
    samples, features = as_rows(h).shape
    if samples < 3 or features < 2:
        raise ValueError(
            f"Invalid h value: shape {tuple(h.shape)}; h must have at least 3 samples and 2 "
            "features"
        )
    highest = float(min(samples - 1, features))
    floor = checks.number("floor", floor, low=1.0, high=highest, low_open=True, high_open=False)
    with torch.autocast(h.device.type, enabled=False):
        rows = centred(h)
        if not bool(rows.isfinite().all()):
            return rows.sum() * math.nan
        values = torch.linalg.svdvals(rows)
        tiny = torch.finfo(values.dtype).tiny
        # 1e-12: the logarithm has no gradient at 0.
        p = (values / values.sum().clamp_min(tiny)).clamp_min(1e-12)
        return torch.relu(math.log(floor) + (p * p.log()).sum())
