"""`python -m benchmarks.runs.statistics`: what BatchNorm's running statistics undo, and restore.

The table of "What is not a parameter" in docs/guarantees.md: a small conv net learns digits, then
changed ones; accuracy on the digits as they were, in %.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, stdev

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.data.sets import load
from sal_optim import SALAdam

SEEDS, STEPS, BATCH = 5, 300, 64


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "a fourth of the brightness": lambda x: x / 4,
    "brighter by 1": lambda x: x + 1,
    "inverted": lambda x: 1 - x,
}


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def run(change: Callable[[Tensor], Tensor], seed: int) -> list[float]:
    """After the old, after the new, with weights restored, and with statistics too."""
    torch.manual_seed(seed)
    data, model = load("digits", None), network()
    optimizer = SALAdam(model.parameters(), lr=1e-3)

    def train(change: Callable[[Tensor], Tensor]) -> None:
        model.train()
        for _ in range(STEPS):
            rows = torch.randint(len(data.train_x), (BATCH,))
            optimizer.zero_grad()
            out = model(change(data.train_x[rows]))
            functional.cross_entropy(out, data.train_y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.no_grad()
    def accuracy() -> float:
        right = model.eval()(data.test_x).argmax(1) == data.test_y
        return 100.0 * float(right.float().mean())

    train(lambda x: x)
    optimizer.consolidate(model=model)
    found = [accuracy()]
    train(change)
    found.append(accuracy())
    optimizer.restore(1e30)
    found.append(accuracy())
    optimizer.restore(1e30, model=model)
    return [*found, accuracy()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, change in CHANGES.items():
        columns = zip(*(run(change, seed) for seed in range(SEEDS)), strict=True)
        print(f"| {name} |", *(f"{fmean(c):.1f} ± {stdev(c):.1f} |" for c in columns), flush=True)
