"""The further experiments with the companions: their parts on known cases, and tiny runs."""

from __future__ import annotations

import pytest
import torch

from benchmarks.companions import (
    basin_parts,
    basins,
    basins_smollm2,
    cascade,
    cells,
    correction,
    edges,
    routes,
)
from benchmarks.companions.correction_runs import train
from benchmarks.companions.page import Options
from benchmarks.companions.reservoir import Reservoir
from benchmarks.companions.side_by_side import alone, in_two_processes
from sal_optim.companions import Node, basin_map
from sal_optim.companions.basins import BASINS


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
    def average(name: str, arm: str) -> float:
        return float(cells.one(name, arm, "digits", None, 100, 0)["average"])

    alone = average("Adam", "none")
    assert alone < 0.4
    assert average("", "cells of pixels, nearest") > 0.9
    assert average("Adam", "cells of pixels, replay") > alone + 0.2


def test_cells_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {arm: cells.ARMS[arm] for arm in ("none", cells.OURS)}
    monkeypatch.setattr(cells, "ARMS", some)
    outcome = cells.run(Options(seeds=1, steps=3, only=("digits",)))
    assert set(outcome.values["digits"]) == {
        *(f"{o} {arm}" for o in cells.OPTIMIZERS for arm in some),
        *cells.PIXELS,
    }


def test_branches_have_the_steps_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [0]

    class Counted(torch.optim.Adam):
        def step(self, closure=None):  # type: ignore[no-untyped-def]
            taken[0] += 1
            return super().step(closure)

    monkeypatch.setitem(cascade.OPTIMIZERS, "Adam", Counted)
    counts = {}
    for arm in cascade.ARMS:
        taken[0] = 0
        found = cascade.digits("Adam", arm, 24, 0)
        assert 0.0 < found["average"] < 1.0
        counts[arm] = taken[0] // cascade.TASKS
    assert counts.pop("short run") == 6
    assert set(counts.values()) == {24}


def test_rounds_won_by_a_merger() -> None:
    made = torch.nn.Linear(1, 1)
    lone = cascade.Cascade(made, torch.optim.SGD(made.parameters(), lr=0.1), lambda: 0.0)
    lone.lineage = [
        Node(0, (), 0, 9.0, "lives"),
        Node(1, (0,), 1, 1.0, "lives"),
        Node(2, (0, 1), 1, 2.0, "lives"),
        Node(3, (2,), 2, 3.0, "lives"),
    ]
    assert cascade.merged_share(lone) == 0.5


def test_who_carries_a_channel() -> None:
    pytest.importorskip("cooper")
    gaps = {
        "task": {"task": 0.8, "memory": 0.1, "safety": 0.0},
        "memory": {"task": 0.0, "memory": 0.3, "safety": 0.0},
        "safety": {"task": 0.0, "memory": 0.4, "safety": 0.05},
    }
    typed = routes.assigned(gaps, typed=True)
    assert routes.carried(gaps, typed) == {"task": True, "memory": False, "safety": False}
    best = routes.assigned(gaps, typed=False)
    assert best == {"task": "task", "memory": "safety", "safety": "memory"}
    assert routes.carried(gaps, best)["memory"]
    assert routes.specificity(gaps, typed) == pytest.approx(1.15 / 3 - 0.5 / 6)
    assert float(routes.certainty(torch.zeros(4, 10))) == pytest.approx(0.0, abs=1e-6)
    outcome = routes.run(Options(seeds=1, steps=3))
    assert set(outcome.values) == set(routes.ARMS)


def test_what_a_correction_changes() -> None:
    runs = {
        "nothing": train(0, "both", steps=90),
        "again": train(0, "both", steps=90),
        "healthy": train(0, None, steps=90),
        "halved": train(0, "both", steps=90, decide=correction.AtSteps(2, 72, 0), halve=True),
        "drawn": train(0, "both", steps=90, always=True, reweight=True),
    }
    ends = {name: trace.held_out[-1] for name, trace in runs.items()}
    assert ends.pop("again") == ends["nothing"]
    assert len(set(ends.values())) == len(ends)
    assert len(runs["halved"].halvings) == 2
    when, what = correction.ARMS["both at random"]
    assert (when, what) == ("random", correction.ARMS["both at alarm"][1])


def test_two_processes_learn_what_one_does() -> None:
    pytest.importorskip("cooper")
    one, two = alone(16, 2, 0), in_two_processes(16, 2, 0)
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=0.02)
    assert two["violation"] == pytest.approx(one["violation"], rel=0.05)


def test_edges_and_backpropagation() -> None:
    pytest.importorskip("cooper")
    found = {arm: edges.one(arm, 2, 3, 0) for arm in edges.ARMS}
    assert len(found["edges, r = 0.1"]["violations"]) == 1
    assert len(found["backpropagation, equal passes"]["curve"]) == 6
    assert found["last block alone"]["violations"] == [pytest.approx(0.0, abs=1e-6)]
    assert "none of 1" in edges._table({arm: [run] for arm, run in found.items()}, 2, 3)
    scores = [run["accuracy"] for run in found.values()]
    assert len(set(scores)) > 3


def test_a_basin_that_can_be_told() -> None:
    draw = torch.Generator().manual_seed(0)
    fluent = torch.arange(60) % 3 == 0
    features = torch.randn(60, 4, generator=draw)
    assert basin_parts.area(features, torch.zeros(60, dtype=torch.bool), 0) is None
    chance = basin_parts.area(features, fluent, 0)
    features[:, 1] += 3.0 * fluent
    told = basin_parts.area(features, fluent, 0)
    assert chance is not None
    assert told is not None
    assert told > 0.95 > 0.7 > chance


def test_shorter_texts_have_the_same_logits() -> None:
    torch.manual_seed(0)
    model = basins.Shorter(16)
    text = torch.randint(0, 128, (2, basins.CONTEXT))
    whole = model(text)
    torch.testing.assert_close(whole, super(basins.Shorter, model).forward(text))
    torch.testing.assert_close(model(text[:, :20]), whole[:, :20], rtol=1e-4, atol=1e-5)


def test_basins_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ASKED", 24), ("PROMPTS", 12), ("MADE", 12), ("WIDTH", 16)):
        monkeypatch.setattr(basins, name, value)
    outcome = basins.run(Options(seeds=1, steps=3, only=("gpt",)))
    rows = outcome.values["gpt"][0]["rows"]
    assert rows["before"]["changed"] == 0.0
    assert rows["fine-tuned, AdamW"]["loss"] != rows["fine-tuned, SALAdamW"]["loss"]
    assert sum(rows["before"][name] for name in BASINS) == pytest.approx(1.0)


def test_the_tables_of_the_real_model() -> None:
    torch.manual_seed(0)
    prompts = [torch.randint(0, 128, (9,)) for _ in range(12)]
    made = basin_map(basins.Shorter(16), prompts, length=20, layer="norm", temperature=1.0)
    areas = {"length": 0.5, "perplexity": 0.4, "last hidden state": None}
    arm = {"fluent": 0.5, "loop": 0.5, "changed": 0.25, "old": 3.0, "new": 4.0}
    arms = {"before": arm, "AdamW": arm, "SALAdamW": {**arm, "old": 2.5}}
    found = {"map": made, "areas": areas, "real": 0.1, "arms": arms}
    text = basins_smollm2.told_of([found] * 2)
    assert "| fluent | 100.0 ± 0.0 |" in text
    assert "| length | 2 | 0.500 [0.500, 0.500] |" in text
    assert "last hidden state" not in text
    assert "| AdamW | 50.0 ± 0.0 | 50.0 ± 0.0 | 25.0 ± 0.0 | 3.000 ± 0.000 |" in text
    assert "**-0.500 [-0.500, -0.500]** |" in text
