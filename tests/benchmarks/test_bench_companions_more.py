"""The further experiments with the companions: their parts on known cases, and tiny runs."""

from __future__ import annotations

import pytest
import torch

from benchmarks.companions import cells
from benchmarks.companions.page import Options
from benchmarks.companions.reservoir import Reservoir


def test_a_reservoir_keeps_each_sample_as_likely() -> None:
    kept = torch.zeros(100)
    for seed in range(200):
        reservoir = Reservoir(20, seed)
        for part in torch.arange(100.0).split(7):
            reservoir.observe(part[:, None], part.long() % 2)
        assert len(reservoir) == 20
        assert torch.equal(reservoir.x[:, 0].long() % 2, reservoir.y)
        kept[reservoir.x[:, 0].long()] += 1
    assert kept[:50].mean() == pytest.approx(40.0, rel=0.1)
    assert kept[50:].mean() == pytest.approx(40.0, rel=0.1)


def test_memories_have_the_same_bytes() -> None:
    allowed = 20_600
    for kind, held in (("cells", 50), ("reservoir", 50), ("bytes", 203)):
        assert cells.made(kind, 100, allowed, 10, 1.0, 0).budget == held
    assert cells.made("cells", 100, allowed, 10, 1.0, 0).bytes() <= allowed


def test_cells_of_pixels_remember_and_the_head_alone_does_not() -> None:
    outcome = cells.run(Options(seeds=1, steps=10, only=("digits",)))
    found = {name: runs[0]["average"] for name, runs in outcome.values["digits"].items()}
    assert set(found) == {
        *(f"{o} {arm}" for o in cells.OPTIMIZERS for arm in cells.ARMS),
        *cells.PIXELS,
    }
    assert found["Adam none"] < 0.4 < 0.8 < found["cells of pixels, nearest"]
    assert found["Adam reservoir of pixels, a byte each, replay"] > found["Adam none"]
