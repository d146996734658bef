"""The optimizers whose cost is compared: torch's, this package's, and other packages'.

A contestant makes an optimizer over given parameters. Those of other packages are left out where
the package is not installed, and said to be.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import sal_optim
from benchmarks.methods.published_sal import PublishedSAL
from benchmarks.streams import Batch

LR = 1e-4


class Steps(Protocol):
    """All that is timed of an optimizer."""

    def step(self) -> Any: ...


@dataclass(frozen=True)
class Contestant:
    """One way to take a step. ``passes``: 4-byte reads and writes an element, where known."""

    name: str
    family: str  # "adam" or "lion"
    make: Callable[[list[Tensor]], Steps]
    package: str | None = None
    passes: float | None = None

    def installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None


def _of(module: str, name: str, **options: Any) -> Callable[[list[Tensor]], Steps]:
    """The optimizer of a package, which is imported when it is made."""
    return lambda params: getattr(importlib.import_module(module), name)(params, lr=LR, **options)


def _sal(name: str, **options: Any) -> Callable[[list[Tensor]], Steps]:
    """In the state that costs most: after a consolidation, all weights protected."""

    def make(params: list[Tensor]) -> Steps:
        optimizer = getattr(sal_optim, name)(params, lr=LR, **options)
        for _ in range(8):
            optimizer.step()
        optimizer.consolidate()
        for _ in range(8):
            optimizer.step()
        return optimizer  # type: ignore[no-any-return]

    return make


class _Consuming:
    """HeavyBall takes the gradients away as it steps; they are put back, as backward would."""

    def __init__(self, params: list[Tensor]) -> None:
        self.grads = [param.grad for param in params]
        self.params = params
        self.optimizer = importlib.import_module("heavyball").AdamW(params, lr=LR)
        self.state = self.optimizer.state

    def step(self) -> None:
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad
        self.optimizer.step()


class _Published:
    """The published rule around AdamW, as a benchmark method takes its steps."""

    def __init__(self, params: list[Tensor]) -> None:
        model = nn.ParameterList(params)
        self.method = PublishedSAL(model, torch.optim.AdamW(model.parameters(), lr=LR))
        self.state = self.method.optimizer.state
        nothing = torch.zeros(0)
        self.batch = Batch(nothing, nothing, None)

    def step(self) -> None:
        self.method.before_step(self.batch)
        self.method.optimizer.step()
        self.method.after_step(self.batch)


# Passes. AdamW: reads p, g, m, v and writes p, m, v. Diagonal SAL reads the gradient once for its
# norm; it reads importance and the gradient, and writes the protected one; and a fourth of all
# steps read and write what is pending, and read weights and anchor. Of the matrices of the other
# kinds the passes are not counted. Lion: reads p, g, m and writes p, m.
REFERENCES = [
    Contestant("torch AdamW loop", "adam", _of("torch.optim", "AdamW", foreach=False), passes=7),
    Contestant("torch AdamW foreach", "adam", _of("torch.optim", "AdamW", foreach=True), passes=7),
    Contestant("torch AdamW fused", "adam", _of("torch.optim", "AdamW", fused=True), passes=7),
]
DIAGONAL: dict[str, Any] = {"importance": "diagonal"}
FACTORED: dict[str, Any] = {"importance": "factored"}
SMALL: dict[str, Any] = {"state_dtype": torch.bfloat16}
SMALLEST: dict[str, Any] = {"state_dtype": torch.int8}
CONTESTANTS = [
    *REFERENCES,
    Contestant("SALAdamW", "adam", _sal("SALAdamW", fused=True)),
    Contestant("SALAdamW bf16", "adam", _sal("SALAdamW", fused=True, **SMALL)),
    Contestant("SALAdamW int8", "adam", _sal("SALAdamW", fused=True, **SMALLEST)),
    Contestant("SALAdamW diagonal", "adam", _sal("SALAdamW", fused=True, **DIAGONAL), passes=12.5),
    Contestant("SALAdamW factored", "adam", _sal("SALAdamW", fused=True, **FACTORED)),
    Contestant(
        "SALAdamW factored, no pull", "adam", _sal("SALAdamW", fused=True, pull=0.0, **FACTORED)
    ),
    Contestant("published SAL on AdamW", "adam", _Published),
    Contestant("optimi AdamW", "adam", _of("optimi", "AdamW"), "optimi", 7),
    Contestant("HeavyBall AdamW", "adam", _Consuming, "heavyball", 7),
    Contestant("torch-optimizer Yogi", "adam", _of("torch_optimizer", "Yogi"), "torch_optimizer"),
    Contestant("SALLion", "lion", _sal("SALLion")),
    Contestant("SALLion diagonal", "lion", _sal("SALLion", **DIAGONAL), passes=10.5),
    Contestant("lion-pytorch Lion", "lion", _of("lion_pytorch", "Lion"), "lion_pytorch", 5),
    Contestant(
        "pytorch_optimizer Lion",
        "lion",
        _of("pytorch_optimizer", "Lion"),
        "pytorch_optimizer",
        5,
    ),
    Contestant("optimi Lion", "lion", _of("optimi", "Lion"), "optimi", 5),
]


def parameters(total: int, tensors: int, device: str = "cpu", *, seed: int = 0) -> list[Tensor]:
    """``tensors`` parameters of together about ``total`` elements, each with a gradient.

    Matrices where that can be, so that factored state applies. (Not by a default device of torch's:
    that would make each of torch's calls slower, where they are timed.)
    """
    where: dict[str, Any] = {
        "generator": torch.Generator(device).manual_seed(seed),
        "device": device,
    }
    size = max(1, total // tensors)
    rows = max(1, int(size**0.5))
    made: list[Tensor] = []
    for _ in range(tensors):
        param = nn.Parameter(torch.randn(rows, max(1, size // rows), **where))
        param.grad = torch.randn(param.shape, **where)
        made.append(param)
    return made
