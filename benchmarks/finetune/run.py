"""One run: a pretrained network, fine-tuned in one way, with both losses at a few looks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.data.characters import CONTEXT, next_loss, windows
from benchmarks.finetune.methods import METHODS, Method
from benchmarks.finetune.methods.base import copies
from benchmarks.finetune.network import (
    LAYERS,
    WIDTH,
    held_out,
    pretrained,
    sample,
    spread_windows,
)
from benchmarks.finetune.texts import Text, load

Split = Literal["validation", "test"]
# Shares of the change that are kept, for methods that give some of it back.
BETWEEN = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SAMPLE, PROMPT = 160, 32  # characters of an example


@dataclass(frozen=True)
class Setting:
    """Everything that decides a run's result."""

    old: str
    new: str
    fingerprint: str
    method: str
    lr: float
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 60
    batch: int = 8
    pretrain: int = 400
    sequences: int = 128  # that are observed
    together: int = 1  # of these, in one gradient
    width: int = WIDTH
    layers: int = LAYERS
    held_out: int = 256  # sequences of each text that a look measures
    split: Split = "test"

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def looks(steps: int) -> list[int]:
    """Steps after which both losses are measured: dense at first, where most is lost."""
    found, at = [0], 2.0
    while at < steps:
        found.append(round(at))
        at *= 2.2
    return [*found, steps]


def schedule(step: int, steps: int) -> float:
    """Of the learning rate: up over the first tenth, then down on a straight line to 0."""
    return min(1.0, (step + 1) / max(1, steps // 10)) * (1 - step / steps)


def run(setting: Setting, folder: Path, data_dir: str | None = None) -> dict[str, Any]:
    """Fine-tune once; pretrained networks are kept in `folder`."""
    torch.set_num_threads(1)
    old, new = load(setting.old, data_dir), load(setting.new, data_dir)
    model = pretrained(
        old, setting.pretrain, setting.seed, folder, width=setting.width, layers=setting.layers
    )
    start = copies(list(model.parameters()))
    measured = [spread_windows(getattr(t, setting.split), setting.held_out) for t in (new, old)]
    torch.manual_seed(setting.seed)
    method = METHODS[setting.method].kind(model, lr=setting.lr, **setting.options)
    draw = torch.Generator().manual_seed(setting.seed)
    begun = time.process_time()
    if method.observes is not None:
        method.observe(_observed(method, setting, old, new), next_loss)
    observing = time.process_time() - begun
    draw.manual_seed(setting.seed)
    rates = [group["lr"] for group in method.optimizer.param_groups]
    points: list[list[float]] = []
    seconds = []
    ahead = looks(setting.steps)
    for step in range(setting.steps + 1):
        if step in ahead:
            points.append([held_out(method.model, part) for part in measured])
        if step < setting.steps:
            batch = windows(new.train, setting.batch, draw)
            for group, rate in zip(method.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step, setting.steps)
            begun = time.process_time()
            train_step(method, batch)
            seconds.append(time.process_time() - begun)
    moved = method.weights()
    gone = sum(float((a - b).square().sum()) for a, b in zip(moved, start, strict=True))
    if method.averages:
        points = _between(method, start, measured)
    return {
        "points": points,
        "looks": list(BETWEEN) if method.averages else ahead,
        "distance": gone**0.5,
        "ms_step": 1e3 * fmean(seconds),
        "seconds_observing": observing,
        "bytes_per_parameter": method.bytes_kept() / sum(p.numel() for p in start),
        "figures": method.figures(),
        "examples": [_example(method.model, part) for part in measured if setting.seed == 0],
    }


def train_step(method: Method, batch: Tensor) -> None:
    """One step on one batch."""
    method.optimizer.zero_grad()
    next_loss(method.model, batch).backward()  # type: ignore[no-untyped-call]
    method.before_step()
    method.optimizer.step()
    method.after_step()


def _observed(method: Method, setting: Setting, old: Text, new: Text) -> Sequence[Tensor]:
    """The sequences that the method asked for, in batches."""
    draw = torch.Generator().manual_seed(setting.seed + 1)
    count = setting.sequences
    if method.observes == "own":
        prompts = torch.randint(32, 127, (count, 1), generator=draw)
        # What it writes first only leads from a random character to text of its own.
        found = sample(method.model, prompts, 2 * CONTEXT + 1, draw)[:, -CONTEXT - 1 :]
    else:
        found = windows((old if method.observes == "old" else new).train, count, draw)
    return torch.split(found, setting.together)


@torch.no_grad()
def _between(
    method: Method, start: Sequence[Tensor], measured: Sequence[Tensor]
) -> list[list[float]]:
    """Both losses where only a share of the change is kept, from none of it to all."""
    params = list(method.model.parameters())
    last, points = copies(params), []
    for share in BETWEEN:
        for param, value in zip(params, last, strict=True):
            param.copy_(value)
        method.give_back(start, share)
        points.append([held_out(method.model, part) for part in measured])
    return points


def _example(model: nn.Module, sequences: Tensor) -> str:
    """A stretch of held-out text, and how the model goes on from it."""
    draw = torch.Generator().manual_seed(0)
    text = sample(model, sequences[len(sequences) // 2][None, :PROMPT], SAMPLE, draw)
    return "".join(map(chr, text[0].tolist()))
