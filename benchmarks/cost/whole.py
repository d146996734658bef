"""Whole training steps of three networks, and the parts of a step that are not the update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

import sal_optim
from benchmarks.cost.contestants import DIAGONAL, FACTORED, LR, parameters
from benchmarks.cost.timing import Paired, clock, turns
from benchmarks.data.characters import CONTEXT, VOCABULARY
from benchmarks.runs.gpt import GPT
from benchmarks.runs.networks import mlp
from sal_optim.detection.change_detector import new_detector, observe
from sal_optim.lion import Lion


def _mlp() -> tuple[nn.Module, Tensor, Tensor]:
    return mlp(784, (256, 256), 10, seed=0), torch.randn(128, 784), torch.randint(10, (128,))


def _conv() -> tuple[nn.Module, Tensor, Tensor]:
    layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1600, 10))
    return model, torch.randn(64, 1, 28, 28), torch.randint(10, (64,))


def _gpt() -> tuple[nn.Module, Tensor, Tensor]:
    text = torch.randint(VOCABULARY, (8, CONTEXT))
    return GPT(width=384, layers=6, heads=6), text, text.roll(-1, 1)


# Each with the processes that it is timed in: where a process has its tensors in memory, drawn anew
# in each, makes up to a tenth of a small network's step.
NETWORKS = {
    "MLP 784-256-256-10": (_mlp, 5),
    "conv net": (_conv, 5),
    "GPT, 10 million": (_gpt, 1),
}

Entry = tuple[str, Callable[..., Optimizer], dict[str, Any]]
ADAM: Entry = ("torch Adam", torch.optim.Adam, {})
FUSED: Entry = ("torch AdamW fused", torch.optim.AdamW, {"fused": True})
SGD: Entry = ("torch SGD", torch.optim.SGD, {"momentum": 0.9})
LION: Entry = ("Lion", Lion, {})
SAL, SALW = sal_optim.SALAdam, sal_optim.SALAdamW
PAIRS: list[tuple[Entry, Entry]] = [
    (("SALAdam", SAL, {}), ADAM),
    (("SALAdam diagonal", SAL, DIAGONAL), ADAM),
    (("SALAdam factored", SAL, FACTORED), ADAM),
    (("SALAdamW fused", SALW, {"fused": True}), FUSED),
    (("SALAdamW fused, diagonal", SALW, {"fused": True, **DIAGONAL}), FUSED),
    (("SALAdamW fused, factored", SALW, {"fused": True, **FACTORED}), FUSED),
    (("SALSGD", sal_optim.SALSGD, {"momentum": 0.9}), SGD),
    (("SALLion", sal_optim.SALLion, {}), LION),
]


def _training(
    make: Callable[[], tuple[nn.Module, Tensor, Tensor]], entry: Entry, device: str
) -> Any:
    """A function that takes one training step; SAL's after a consolidation."""
    torch.manual_seed(0)
    model, inputs, targets = make()
    model, inputs, targets = model.to(device), inputs.to(device), targets.to(device)
    _, optimize, options = entry
    optimizer = optimize(model.parameters(), lr=LR, **options)

    def step() -> None:
        optimizer.zero_grad()
        logits = model(inputs)
        loss = functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(8):
        step()
    if isinstance(optimizer, sal_optim.SALOptimizer):
        optimizer.consolidate()
        for _ in range(8):
            step()
    return step


def whole_steps(repeats: int, device: str, threads: int, console: Console) -> list[dict[str, Any]]:
    """Each SAL optimizer beside its peer on each network."""
    rows = []
    for network, (_, processes) in NETWORKS.items():
        task = (network, -(-repeats // processes), device, threads)
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            found = pool.starmap(_pairs, [task] * processes, 1)
        for (mine, theirs), parts in zip(PAIRS, zip(*found, strict=True), strict=True):
            result = Paired.of([turn for part in parts for turn in part])
            names = {"network": network, "optimizer": mine[0], "beside": theirs[0]}
            console.print(f"{network:20s} {mine[0]:36s} {result.ratio:6.3f}", highlight=False)
            rows.append({**names, **asdict(result)})
    return rows


def _pairs(
    network: str, repeats: int, device: str, threads: int
) -> list[list[tuple[float, float]]]:
    """The turns of all pairs of a network, in this process."""
    torch.set_num_threads(threads)
    make, _ = NETWORKS[network]
    found = []
    for mine, theirs in PAIRS:
        steps = (_training(make, entry, device) for entry in (mine, theirs))
        found.append(turns(*steps, repeats=repeats, least=0.1))
    return found


def overhead(size: int, repeats: int, device: str) -> dict[str, float]:
    """What the change detector and ``diagnostics()`` take, as parts of SALAdamW's step."""
    optimizer = sal_optim.SALAdamW(parameters(size, 4, device), lr=LR)
    for _ in range(8):
        optimizer.step()
    optimizer.consolidate()
    step = min(clock(optimizer.step, 4) for _ in range(repeats))
    shown = min(clock(optimizer.diagnostics, 4) for _ in range(repeats))
    state, settings = new_detector(), optimizer.param_groups[0]
    judged = min(clock(lambda: observe(state, 1.0, settings), 100) for _ in range(repeats))
    return {"elements": size, "detector": judged / step, "diagnostics": shown / step}
