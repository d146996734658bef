"""``shift_map``: which samples are of something new, and not of noise.

It looks at features of one batch and of a bank of known ones. How far a network itself has moved is
told by ``drift.py``.
"""

from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from sal_optim.utils import checks

# Samples, and neighbourhoods, that are looked at together, which bounds the memory.
_SAMPLES, _NEIGHBOURHOODS = 1024, 128


class ShiftMap(NamedTuple):
    """By sample; ``flagged`` where ``novelty`` is above 1 and ``agreement`` above ``null``."""

    score: Tensor  # novelty x agreement, 0 where that is negative
    novelty: Tensor
    agreement: Tensor  # a cosine
    null: Tensor  # agreement that noise reaches
    flagged: Tensor


def shift_map(
    features: Tensor,
    bank: Tensor,
    *,
    k: int = 5,
    quantile: float = 0.99,
    repeats: int = 5,
    seed: int = 0,
) -> ShiftMap:
    """Novelty x agreement of each sample, held against a noise null.

    - *Novelty*: the mean distance to the ``k`` nearest samples of the bank, over the ``quantile``
      of that distance within the bank. Above 1 a sample is farther than known ones are.
    - *Agreement*, within a neighbourhood, the ``8k`` nearest samples of the batch, and from its
      mean: the mean cosine of a sample with the ``k`` that agree with it most or, where
      ``features`` has views, of the sample's views with each other.
    - *Noise null*: the ``quantile``, as of a normal distribution, of the agreement that is left
      when each feature is shuffled over the neighbourhood, which keeps how each is distributed and
      ends what they share (after Horn's parallel analysis, 1965). Noise is novel, and it does not
      agree beyond its null, unless a network has mapped it to features that share something.

    Args:
        features: samples by features, or views by samples by features: the samples as they are,
            then augmentations of them in the same order. More than k samples.
        bank: known samples by features, more than ``k`` of them.
        k: neighbours, at least 1.
        quantile: in (0, 1).
        repeats: shuffles, at least 1.
        seed: of the shuffles.
    """
    k = checks.whole("k", k, low=1)
    quantile = checks.number("quantile", quantile, high=1.0, low_open=True)
    repeats = checks.whole("repeats", repeats, low=1)
    generator = torch.Generator().manual_seed(checks.whole("seed", seed, low=0))
    _check("bank", bank, (2,), k)
    _check("features", features, (2, 3), k)
    if features.shape[-1] != bank.shape[-1] or (features.dim() == 3 and len(features) < 2):
        raise ValueError(
            f"Invalid features value: shape {tuple(features.shape)}; features must have the "
            f"{bank.shape[-1]} features of the bank, and 2 views or more where it has views"
        )
    with torch.no_grad():
        known = bank.double()
        views = features.double().to(known.device)
        views = views[None] if views.dim() == 2 else views
        within = _nearest(known, known, k, own=torch.inf)[0].mean(1)
        bar = torch.quantile(within, quantile).clamp_min(torch.finfo(torch.double).tiny)
        novelty = _nearest(views[0], known, k)[0].mean(1) / bar
        # A sample that has a twin must be its own first neighbour all the same.
        around = _nearest(views[0], views[0], min(8 * k, views.shape[1]), own=-1.0)[1]
        both = [
            _agreement(views[:, rows], k, repeats, generator)
            for rows in torch.split(around, _NEIGHBOURHOODS)
        ]
        agreement = torch.cat([found for found, _ in both])
        noise = torch.cat([noise for _, noise in both])
        null = noise.mean(1) + NormalDist().inv_cdf(quantile) * noise.std(1)
    flagged = (novelty > 1.0) & (agreement > null)
    return ShiftMap(novelty * agreement.clamp_min(0.0), novelty, agreement, null, flagged)


def _nearest(
    samples: Tensor, others: Tensor, k: int, own: float | None = None
) -> tuple[Tensor, Tensor]:
    """Distances to the k nearest others, and which they are; ``own`` stands for that to itself."""
    distances, indices = [], []
    for start in range(0, len(samples), _SAMPLES):
        block = torch.cdist(samples[start : start + _SAMPLES], others)
        if own is not None:
            block.diagonal(start).fill_(own)
        found = block.topk(k, dim=1, largest=False)
        distances.append(found.values)
        indices.append(found.indices)
    return torch.cat(distances), torch.cat(indices)


def _agreement(
    around: Tensor, k: int, repeats: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The agreement of each first member, and those of all members after shuffles.

    ``around`` is views by neighbourhoods by members by features.
    """
    found = _cosines(around, k)[:, 0]
    noise = []
    for _ in range(repeats):
        order = torch.rand(around.shape, generator=generator, device="cpu").argsort(2)
        order = order.to(around.device)
        noise.append(_cosines(around.gather(2, order), k))
    return found, torch.cat(noise, 1)


def _cosines(around: Tensor, k: int) -> Tensor:
    """The agreement of each member: neighbourhoods by members."""
    units = torch.nn.functional.normalize(around - around.mean(2, keepdim=True), dim=3)
    count = len(units)
    if count == 1:
        cosines = units[0] @ units[0].transpose(1, 2)
        cosines.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        return cosines.topk(k, dim=2).values.mean(2)
    # The sum over all pairs of different views, from the square of their sum.
    own = units.square().sum((0, 3))
    return (units.sum(0).square().sum(2) - own) / (count * (count - 1))


def _check(name: str, value: Tensor, dims: tuple[int, ...], k: int) -> None:
    allowed = (
        f"{name} must be finite, of floating dtype, of {' or '.join(map(str, dims))} dimensions "
        f"and at least k + 1 = {k + 1} samples"
    )
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"Invalid {name} value: a {type(value).__name__}; {allowed}")
    if value.dim() not in dims or value.shape[-2] <= k or value.shape[-1] == 0:
        raise ValueError(f"Invalid {name} value: shape {tuple(value.shape)}; {allowed}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"Invalid {name} value: it is not finite; {allowed}")
