"""A problem of two variables whose multipliers are known: 3 and 14.

Minimise (x - 4)² + (y - 5)² subject to x² + y² ≤ 1 + y*² and y² ≤ y*², y* = 5/18. The solution is
x = 1, y = y*.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.companions.page import table
from sal_optim import SALSGD, SALAdam
from sal_optim.companions import Channels

Y = 5.0 / 18.0
STEPS = 800
BUDGETS = {"safety": 1.0 + Y * Y, "memory": Y * Y}
PRIMALS: dict[str, Any] = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "SALSGD": SALSGD,
    "SALAdam": SALAdam,
}


def solve(primal: str, penalty: float) -> tuple[list[float], dict[str, float], Channels]:
    """Where x and y end, and the multipliers."""
    point = torch.tensor([0.5, 0.5], requires_grad=True)
    channels = Channels(PRIMALS[primal]([point], lr=0.01), BUDGETS, scaffold=(), penalty=penalty)
    _steps(channels, point)
    return point.tolist(), channels.multipliers(), _with_slack(channels, point)


def _with_slack(channels: Channels, point: torch.Tensor) -> Channels:
    """As many steps in which budgets are wide."""
    for name in BUDGETS:
        channels.set_budget(name, 100.0)
    _steps(channels, point)
    return channels


def _steps(channels: Channels, point: torch.Tensor) -> None:
    for _ in range(STEPS):
        x, y = point
        task = (x - 4.0).square() + (y - 5.0).square()
        channels.step({"task": task, "safety": x.square() + y.square(), "memory": y.square()})


def known_multipliers() -> str:
    """The table of what is found."""
    rows = []
    for primal in PRIMALS:
        cells = []
        for penalty in (10.0, 1.0):
            (x, y), found, after = solve(primal, penalty)
            cells += [f"{found['safety']:.2f}, {found['memory']:.2f}", f"{x:.3f}, {y:.3f}"]
            slack = after.multipliers()
        rows.append([primal, *cells, f"{slack['safety']:g}, {slack['memory']:g}"])
    heads = ["primal", "λ, r = 10", "x, y, r = 10", "λ, r = 1", "x, y, r = 1", "λ after slack"]
    text = f"Known: λ = 3, 14 at x, y = 1, {Y:.3f}. {STEPS} steps, then as many with slack."
    return f"{text}\n\n{table(heads, rows)}"
