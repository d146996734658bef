"""Reservoir sampling: a fixed number of samples, each of those seen as likely as any other.

Vitter's algorithm R (1985). It has the methods of `CellularMemory` that cells.py calls.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Reservoir:
    """Keeps `budget` samples and their labels."""

    def __init__(self, budget: int, seed: int) -> None:
        self.budget, self.seen = budget, 0
        self.x, self.y = torch.empty(0, 0), torch.empty(0, dtype=torch.long)
        self._draw = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.y)

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Each sample takes a place that is free or, with falling probability, another's."""
        room = max(0, self.budget - len(self))
        if room:
            self.x = torch.cat([self.x.reshape(-1, x.shape[1]), x[:room]])
            self.y = torch.cat([self.y, y[:room]])
        self.seen += len(y[:room])
        for row in range(room, len(y)):
            self.seen += 1
            place = int(torch.randint(self.seen, (1,), generator=self._draw))
            if place < self.budget:
                self.x[place], self.y[place] = x[row], y[row]

    def sample(self, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Samples with replacement, each label as likely as any other."""
        weights = 1.0 / torch.bincount(self.y).clamp_min(1)[self.y]
        rows = torch.multinomial(weights, count, replacement=True, generator=generator)
        return self.x[rows], self.y[rows]

    def predict(self, x: Tensor) -> Tensor:
        """The label of the nearest."""
        return self.y[torch.cdist(x, self.x).argmin(1)]
