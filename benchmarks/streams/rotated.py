"""Rotated: task t of T shows the images turned by 180 · t / T degrees.

Neighbouring tasks are alike and the far ones contradict each other (a 6 becomes a 9), which is
what makes this stream hard for anything that protects weights. `--order shuffled` makes the
angles jump.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.streams.base import Batch, Stream, generator

SPAN = 180.0


class Rotated(Stream):
    """Rotations of square images about their centre, bilinear, black outside."""

    name = "rotated"
    summary = "the images turned by a fixed angle, spread over 180 degrees"
    default_tasks = 5

    def angle(self, task: int) -> float:
        """Degrees by which `task` turns its images."""
        place = task
        if self.order == "shuffled":
            turns = torch.randperm(self.tasks, generator=generator("angles", self.seed))
            place = int(turns[task])
        return SPAN * place / self.tasks

    def show(self, x: Tensor, y: Tensor, task: int) -> Batch:
        return Batch(rotate(x, self.data.side, self.angle(task)), y)


def rotate(x: Tensor, side: int, degrees: float) -> Tensor:
    """Rows of side*side pixels, each turned counter-clockwise about the image's centre."""
    corners, weights = _sampling(side, degrees)
    turned = x.index_select(1, corners[0]) * weights[0]
    for corner, weight in zip(corners[1:], weights[1:], strict=True):
        turned = turned + x.index_select(1, corner) * weight
    return turned


@lru_cache(maxsize=256)
def _sampling(side: int, degrees: float) -> tuple[Tensor, Tensor]:
    """For each target pixel its four source pixels and their bilinear weights (0 outside)."""
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    cos, sin = torch.cos(radians), torch.sin(radians)
    grid = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    down, right = torch.meshgrid(grid, grid, indexing="ij")
    # Rows count downwards, so counter-clockwise on the screen is this sign. Rounding keeps a
    # quarter turn exact: without it 1e-16 blurs the border.
    row = (cos * down + sin * right + (side - 1) / 2).round(decimals=9)
    column = (cos * right - sin * down + (side - 1) / 2).round(decimals=9)
    corners, weights = [], []
    for step_row in (0, 1):
        for step_column in (0, 1):
            r, c = row.floor() + step_row, column.floor() + step_column
            weight = (1 - (row - r).abs()) * (1 - (column - c).abs())
            inside = (r >= 0) & (r < side) & (c >= 0) & (c < side)
            index = r.clamp(0, side - 1) * side + c.clamp(0, side - 1)
            corners.append(index.long().flatten())
            weights.append((weight * inside).float().flatten())
    return torch.stack(corners), torch.stack(weights)
