"""Runs of a small GPT that is made to collapse, or not, with what could have warned of it.

`train` returns what was seen on every fourth step. What is concluded is in collapse.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data.characters import corpus, next_loss, windows
from benchmarks.runs.gpt import GPT
from sal_optim.companions import SpectralMonitor, rank_floor_loss
from sal_optim.companions.activations import Tap

WIDTH, STEPS, EVERY, BATCH, SETTLED = 32, 144, 4, 8, 60
MODES = ("learning rate", "data", "noise")
LAYERS = ("blocks.0", "blocks.1")
RATE, RAMP = 2e-3, 50  # steps from the onset to the full fault
RECENT, BEFORE = 2, 10  # measurements: what is held against what
SIGNALS = ("rank", "top share", "loss", "gradient norm")
FLOOR, FLOOR_WEIGHT = 0.8, 1.0


@dataclass
class Trace:
    """What was seen at each measurement."""

    steps: list[int] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)  # rank over that of the start
    signals: dict[str, list[float]] = field(default_factory=lambda: {n: [] for n in SIGNALS})
    halvings: list[int] = field(default_factory=list)

    def score(self, name: str) -> float:
        """How far the latest values of a signal are from those before, in logarithms or nats."""
        seen = self.signals[name]
        if len(seen) < RECENT + BEFORE:
            return 0.0
        now, past = seen[-RECENT:], seen[-RECENT - BEFORE : -RECENT]
        change = sum(now) / RECENT - sum(past) / BEFORE
        return abs(change) if name in SIGNALS[:2] else change


@lru_cache(maxsize=1)
def text() -> tuple[Tensor, Tensor]:
    """Training text and, from its end, held-out windows."""
    codes = corpus(600_000)
    split = int(0.9 * len(codes))
    return codes[:split], windows(codes[split:], 8, torch.Generator().manual_seed(7))


class Noisy:
    """Adds one vector to all embeddings: noise that is tied over samples and places."""

    def __init__(self, model: GPT, draw: torch.Generator) -> None:
        self.scale, self.draw = 0.0, draw
        model.token.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if not (self.scale and module.training):
            return output
        return output + self.scale * torch.randn(output.shape[-1], generator=self.draw)


def train(
    seed: int,
    mode: str | None,
    *,
    steps: int = STEPS,
    halve: Callable[[Trace, int], bool] | None = None,
    floor: bool = False,
) -> Trace:
    """One run; `mode` None is healthy. `halve` decides by what was seen whether the rate falls."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    source, held = text()
    model, draw = GPT(WIDTH), torch.Generator().manual_seed(seed)
    noisy = Noisy(model, torch.Generator().manual_seed(seed))
    onset = SETTLED + int(torch.randint(4, 20, (1,), generator=draw))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    monitor = SpectralMonitor(model, LAYERS, every=EVERY)
    tap, trace, factor, ranks = Tap(monitor, model, LAYERS[-1]), Trace(), 1.0, list[float]()
    for step in range(steps):
        fault = 0.0 if mode is None else min(1.0, max(0.0, (step - onset) / RAMP))
        rate = RATE * (100.0**fault if mode == MODES[0] else 1.0)
        noisy.scale = 30.0 * fault if mode == MODES[2] else 0.0
        batch = windows(source, BATCH, draw)
        if mode == MODES[1]:
            batch[: round(BATCH * fault)] = 32  # nothing but blanks
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        optimizer.zero_grad()
        loss = next_loss(model, batch)
        total = loss
        if floor and ranks and tap.caught is not None:
            total = loss + FLOOR_WEIGHT * rank_floor_loss(tap.caught[:, ::4], FLOOR * ranks[-1])
        total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        optimizer.step()
        if monitor.step():
            see(trace, step, monitor, float(loss.detach()), float(norm), model, held)
            if halve is not None and halve(trace, step):
                factor *= 0.5
                trace.halvings.append(step)
            if floor and step <= SETTLED:
                rows = tap.caught[:, ::4] if tap.caught is not None else None
                ranks = [_rank(rows)] if rows is not None else ranks
    monitor.remove()
    return trace


@torch.no_grad()
def _rank(rows: Tensor) -> float:
    """Effective rank of what the floor will see."""
    flat = rows.reshape(-1, rows.shape[-1])
    values = torch.linalg.svdvals(flat - flat.mean(0))
    p = values / values.sum()
    return float(torch.exp(-(p * p.clamp_min(1e-12).log()).sum()))


def see(
    trace: Trace,
    step: int,
    monitor: SpectralMonitor,
    loss: float,
    norm: float,
    model: nn.Module,
    held: Tensor,
) -> None:
    found = monitor.diagnostics()
    trace.steps.append(step)
    ranks = [found[f"{layer}/rankme"] for layer in LAYERS]
    shares = [found[f"{layer}/top_share"] for layer in LAYERS]
    # The layer that is worst off speaks for all.
    for name, value in (("rank", min(ranks)), ("top share", max(shares)), ("gradient norm", norm)):
        trace.signals[name].append(math.log(max(value, 1e-9)) if math.isfinite(value) else -20.0)
    trace.signals["loss"].append(loss if math.isfinite(loss) else 50.0)
    trace.start.append(min(found[f"{layer}/rankme_relative"] for layer in LAYERS))
    model.eval()
    with torch.no_grad():
        value = float(next_loss(model, held))
    model.train()
    trace.held_out.append(min(value, 50.0) if math.isfinite(value) else 50.0)
