"""`python -m benchmarks.cost.trip`: the way of a default step through the package.

Counts, over the steps of a cycle after a consolidation, the package's functions that a step goes
through, the files these are in, and how often it changes from one file to another.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import sal_optim
from sal_optim.protection.clock import MEASURED

ROOT = Path(sal_optim.__file__).parent


class Trip:
    """Calls into the package while it is installed by ``sys.setprofile``."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.entries: Counter[str] = Counter()
        self._stack: list[str] = []

    def __call__(self, frame: Any, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(ROOT):
            return
        name = str(path.relative_to(ROOT))
        if event == "call":
            self.functions.add((name, frame.f_code.co_qualname if sys.version_info >= (3, 11)
                                else frame.f_code.co_name))  # fmt: skip
            if not self._stack or self._stack[-1] != name:
                self.entries[name] += 1
            self._stack.append(name)
        elif event == "return" and self._stack:
            self._stack.pop()


def trips(name: str = "SALAdamW") -> list[Trip]:
    """One trip a step, over a whole cycle of a small perceptron that is protected."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = getattr(sal_optim, name)(model.parameters(), lr=1e-3)
    x, y = torch.randn(32, 64), torch.randint(10, (32,))

    def backward() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]

    for _ in range(30):
        backward()
        optimizer.step()
    optimizer.consolidate()
    found = []
    for step in range(MEASURED + 1):
        backward()
        trip = Trip()
        sys.setprofile(trip)
        try:
            optimizer.step()
        finally:
            sys.setprofile(None)
        if step:  # the first makes what lasts until the next consolidation
            found.append(trip)
    return found


def main() -> None:
    table = Table("", "least", "most")
    found = trips()
    rows = {
        "functions": [len(trip.functions) for trip in found],
        "files": [len(trip.entries) for trip in found],
        "entries into a file, all files": [sum(trip.entries.values()) for trip in found],
        "entries into one file": [max(trip.entries.values()) for trip in found],
    }
    for name, counts in rows.items():
        table.add_row(name, str(min(counts)), str(max(counts)))
    Console().print(table)
    worst = max(found, key=lambda trip: sum(trip.entries.values()))
    Console().print(", ".join(f"{name} {count}" for name, count in worst.entries.most_common()))


if __name__ == "__main__":
    main()
