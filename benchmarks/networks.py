"""The networks that are trained: ReLU networks of fully connected layers, by list of widths.

The same seed gives the same initial weights to every method. What is learned, and how, is not
decided here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def default_hidden(features: int) -> tuple[int, ...]:
    """Widths of the hidden layers: small for 8 x 8 images, 256-256 from 28 x 28 on."""
    return (100, 100) if features < 400 else (256, 256)


def mlp(features: int, hidden: Sequence[int], outputs: int, *, seed: int) -> nn.Sequential:
    """features -> hidden… -> outputs with ReLU between; weights drawn from `seed` alone."""
    widths = [features, *hidden, outputs]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits with the classes outside `mask` (classes, or batch x classes) shut out."""
    return logits if mask is None else logits.masked_fill(~mask, float("-inf"))
