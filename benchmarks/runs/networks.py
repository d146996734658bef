"""The networks that are trained: fully connected ones by list of widths, and small conv nets.

The same seed gives the same initial weights to every method. What is learned, and how, is not
decided here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

CHANNELS = (16, 32)


def default_hidden(features: int, net: str = "mlp") -> tuple[int, ...]:
    """Widths of the hidden layers: small for 8 x 8 images, 256-256 from 28 x 28 on."""
    if net.startswith("conv"):
        return (100,)
    return (100, 100) if features < 400 else (256, 256)


def build(
    net: str,
    features: int,
    hidden: Sequence[int],
    outputs: int,
    *,
    seed: int,
    dropout: float = 0.0,
) -> nn.Sequential:
    """The network called `net`, a key of NETWORKS, with dropout after each ReLU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = NETWORKS[net](features, hidden, outputs)
    if not dropout:
        return made
    layers: list[nn.Module] = []
    for layer in made:
        layers += [layer, nn.Dropout(dropout)] if isinstance(layer, nn.ReLU) else [layer]
    return nn.Sequential(*layers)


def mlp(features: int, hidden: Sequence[int], outputs: int, *, seed: int) -> nn.Sequential:
    """features -> hidden… -> outputs with ReLU between; weights drawn from `seed` alone."""
    return build("mlp", features, hidden, outputs, seed=seed)


def _mlp(features: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    widths = [features, *hidden, outputs]
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _conv(
    features: int, hidden: Sequence[int], outputs: int, *, norm: bool = False
) -> nn.Sequential:
    """Two blocks of 3 x 3 convolution, ReLU and 2 x 2 pooling, then hidden… -> outputs.

    With `norm` a BatchNorm follows each convolution, which keeps running statistics of its own.
    """
    side = round(features**0.5)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, side, side))]
    channels = 1
    for width in CHANNELS:
        between = [nn.BatchNorm2d(width)] if norm else []
        convolution = nn.Conv2d(channels, width, 3, padding=1)
        layers += [convolution, *between, nn.ReLU(), nn.MaxPool2d(2)]
        channels, side = width, side // 2
    return nn.Sequential(*layers, nn.Flatten(), *_mlp(channels * side * side, hidden, outputs))


def _conv_bn(features: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    return _conv(features, hidden, outputs, norm=True)


NETWORKS = {"mlp": _mlp, "conv": _conv, "conv-bn": _conv_bn}
