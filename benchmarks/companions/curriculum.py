"""A curriculum by a monitored score: safe data first, against a random order in the same stages.

A third of the training windows of a small GPT are spoilt: one character, or characters at random.
In three stages ever more of the windows are admitted, by how much they repeat themselves, by the
loss of a network trained a little on all of them, at random, or all from the beginning.
"""

from __future__ import annotations

from typing import Any

import torch
from joblib import Parallel, delayed
from torch import Tensor

from benchmarks.companions.collapse_runs import WIDTH, text
from benchmarks.companions.page import Options, Outcome, against, spread, table
from benchmarks.data.characters import VOCABULARY, next_loss, windows
from benchmarks.reports.drawing import panels_of
from benchmarks.runs.gpt import GPT
from sal_optim.companions import repetition_rate

PREDICTION = (
    "sorted by its loss, spoilt data come last, and the network ends below the loss of a random "
    "order for as long as it has not seen them; repetition alone misses random characters, and "
    "gains half as much. If neither beats a random order, there is no curriculum in the package."
)
PARTS: tuple[str, ...] = ()
ARMS = ("random", "repetition", "loss", "no stages")
STEPS, BATCH, WINDOWS, STAGES = 120, 8, 600, 3


def spoilt(seed: int) -> Tensor:
    """Training windows of which every third is spoilt."""
    source, _ = text()
    draw = torch.Generator().manual_seed(seed)
    found = windows(source, WINDOWS, draw)
    found[::6] = torch.randint(32, 127, (len(found[::6]), 1), generator=draw)
    noise = torch.randint(VOCABULARY, found[3::6].shape, generator=draw)
    found[3::6] = noise
    return found


def order_of(arm: str, data: Tensor, seed: int, steps: int) -> Tensor:
    """Windows from the first to be admitted to the last."""
    draw = torch.Generator().manual_seed(seed)
    if arm == "repetition":
        return torch.tensor([repetition_rate(row.tolist()) for row in data]).argsort()
    if arm == "loss":
        scorer = trained(data, torch.arange(len(data)), steps // 4, seed + 1, stages=1)
        with torch.no_grad():
            losses = [float(next_loss(scorer, row[None])) for row in data]
        return torch.tensor(losses).argsort()
    return torch.randperm(len(data), generator=draw)


def trained(data: Tensor, order: Tensor, steps: int, seed: int, *, stages: int) -> GPT:
    """Train in as many stages, each of which admits another part of the windows."""
    torch.manual_seed(seed)
    model, draw = GPT(WIDTH), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        admitted = len(order) * (1 + step * stages // steps) // stages
        rows = order[torch.randint(admitted, (BATCH,), generator=draw)]
        optimizer.zero_grad()
        next_loss(model, data[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def one(arm: str, seed: int, steps: int) -> float:
    """Held-out loss at the end."""
    torch.set_num_threads(1)
    data, (_, held) = spoilt(seed), text()
    order = order_of(arm, data, seed, steps)
    model = trained(data, order, steps, seed, stages=1 if arm == "no stages" else STAGES)
    with torch.no_grad():
        return float(next_loss(model.eval(), held))


def run(options: Options) -> Outcome:
    steps = options.length(STEPS)
    runs = Parallel(n_jobs=options.jobs)(
        delayed(one)(arm, seed, steps) for arm in ARMS for seed in range(options.seeds)
    )
    found = {a: runs[i * options.seeds : (i + 1) * options.seeds] for i, a in enumerate(ARMS)}
    rows = [
        [
            arm,
            spread(mine, digits=3),
            "" if arm == ARMS[0] else against(mine, found[ARMS[0]], digits=3),
        ]
        for arm, mine in found.items()
    ]
    heads = ["order", "held-out loss", "less random's"]
    body = (
        f"{WINDOWS} windows, a third of them spoilt, {steps} steps of {BATCH} in {STAGES} stages, "
        f"{options.seeds} seeds. The score of the loss costs another {steps // 4} steps.\n\n"
        f"{table(heads, rows)}"
    )
    figure, axes = panels_of(1, width=4.6, height=3.0, title="Held-out loss by order")
    axes[0].boxplot(list(found.values()), tick_labels=list(found))
    values: dict[str, Any] = dict(found)
    return Outcome("Safe data first", [body], values, {"orders": figure})
