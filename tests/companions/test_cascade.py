"""The cascade: which branch lives, what a merger is, where noise goes, and the picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sal_optim import SALAdam
from sal_optim.companions import Cascade, Node, plot_lineage


def made(**settings: Any) -> tuple[nn.Linear, torch.optim.Adam, dict[str, float], Cascade]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    goal = {"value": 0.0}

    def score() -> torch.Tensor:
        return -(model.bias - goal["value"]).square().sum()

    return model, optimizer, goal, Cascade(model, optimizer, score, **settings)


def test_the_best_branch_lives() -> None:
    model, optimizer, goal, cascade = made(merge=False, survivors=1)
    goal["value"] = 2.0
    start = model.bias.detach().clone()

    def train(branch: int) -> None:
        assert torch.allclose(model.bias, start, atol=0.1)  # each begins at the checkpoint
        for _ in range(branch + 1):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            model.bias.fill_(float(branch))

    assert cascade.round(train) == 0.0
    assert model.bias.tolist() == [2.0, 2.0]
    assert optimizer.state[model.bias]["step"] == 3  # its own state too
    found = cascade.lineage
    assert [node.fate for node in found] == ["lives", "dies", "dies", "lives", "dies"]
    assert [node.parents for node in found] == [(), (0,), (0,), (0,), (0,)]
    assert [node.score for node in found[1:]] == [-8.0, -2.0, 0.0, -2.0]
    assert [node.round for node in found] == [0, 1, 1, 1, 1]


def test_a_merger_is_weighted_by_importance() -> None:
    model, optimizer, goal, cascade = made(branches=2, pulse=0.0)
    goal["value"] = 0.75

    def train(branch: int) -> None:
        optimizer.zero_grad()
        model(torch.ones(3, 4)).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            model.bias.fill_(float(branch))
            optimizer.state[model.bias]["exp_avg_sq"].fill_(3.0 if branch else 1.0)

    cascade.round(train)
    assert model.bias.tolist() == pytest.approx([0.75, 0.75], abs=1e-3)
    merged = cascade.lineage[-1]
    assert set(merged.parents) == {1, 2}
    assert merged.fate == "lives"
    parents = [node for node in cascade.lineage if node.id in merged.parents]
    assert sorted(node.fate for node in parents) == ["dies", "lives"]
    cascade.round(lambda branch: None)  # goes on from both that live
    assert {node.parents for node in cascade.lineage if node.round == 2 and len(node.parents) == 1
            } == {(merged.id,), (cascade.lineage[2].id,)}  # fmt: skip


def test_noise_goes_where_weights_are_free() -> None:
    model, optimizer, _, cascade = made(pulse=0.1, branches=2)
    optimizer.zero_grad()
    model(torch.ones(3, 4)).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    importance = optimizer.state[model.weight]["exp_avg_sq"]
    importance.fill_(1e-12)
    importance[0] = 1.0
    before, moved = model.weight.detach().clone(), []
    cascade.round(lambda branch: moved.append((model.weight.detach() - before).abs().mean(1)))
    assert moved[0].tolist() == [0.0, 0.0]  # the first is the checkpoint itself
    assert 0.0 < moved[1][0] < 0.6 * moved[1][1]
    assert moved[1][1] < 0.3 * before.abs().max()


class Complex(nn.Module):
    """Complex weights, weights of float64, and a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.tensor([1.0 + 2.0j, 3.0 + 4.0j]))
        self.other = nn.Parameter(torch.full((2,), 1.0 / 3.0, dtype=torch.float64))
        self.extra = {"calls": 1}

    def get_extra_state(self) -> dict[str, int]:
        return self.extra

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.extra = state


@pytest.mark.filterwarnings("error")
def test_weights_that_are_complex_or_double() -> None:
    model, first = Complex(), Complex()
    scores = iter([0.0, 0.0, 0.0, 1.0])  # the merger is the best
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    cascade = Cascade(model, optimizer, lambda: next(scores), 2, pulse=0.0)
    cascade.round(lambda branch: None)
    assert cascade.lineage[-1].fate == "lives"
    torch.testing.assert_close(model.one, first.one)
    torch.testing.assert_close(model.other, first.other, rtol=1e-14, atol=0.0)
    cascade = Cascade(model, optimizer, lambda: 0.0, 2, pulse=0.1)
    seen: list[torch.Tensor] = []
    with torch.device("meta"):  # another default device
        cascade.round(lambda branch: seen.append(model.one.detach().clone()))
    moved = torch.view_as_real(seen[1] - seen[0])
    assert (moved != 0.0).all()


def test_with_sal() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = SALAdam(model.parameters(), lr=0.01)
    x = torch.randn(64, 4)
    y = x[:, :2].sum(1).gt(0).long()

    def score() -> torch.Tensor:
        return -nn.functional.cross_entropy(model(x), y)

    def train(branch: int) -> None:
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    cascade = Cascade(model, optimizer, score)
    scores = [cascade.round(train) for _ in range(3)]
    assert scores[2] > scores[0] > cascade.lineage[0].score
    assert float(score().detach()) == pytest.approx(scores[2], rel=1e-4)
    cascade.restart()
    before = len(cascade.lineage)
    cascade.round(train)
    assert cascade.lineage[before].parents == ()


def test_the_picture() -> None:
    pytest.importorskip("matplotlib")
    _, _, _, cascade = made()
    cascade.round(lambda branch: None)
    axes = plot_lineage(cascade.lineage).axes[0]
    assert len(axes.lines) == sum(len(node.parents) for node in cascade.lineage)
    later = cascade.lineage[1:]
    shown = [parent for node in later for parent in node.parents if parent > 0]
    assert len(plot_lineage(later).axes[0].lines) == len(shown) > 0
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sum(int(text.split(", ")[-1]) for text in labels) == len(cascade.lineage)
    with pytest.raises(ValueError, match=r"lineage.*empty"):
        plot_lineage([])
    with pytest.raises(TypeError, match=r"lineage.*int"):
        plot_lineage([1])  # type: ignore[list-item]
    assert Node(0, (), 0, 1.0, "lives").score == 1.0


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"branches": 1}, ValueError, r"branches.*1"),
        ({"survivors": 0}, ValueError, r"survivors.*0"),
        ({"survivors": 5}, ValueError, r"survivors.*5.*at most the 4 branches"),
        ({"pulse": -0.1}, ValueError, r"pulse.*-0\.1"),
        ({"merge": "yes"}, ValueError, r"merge.*'yes'"),
    ],
)
def test_arguments(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made(**settings)


def test_what_is_refused() -> None:
    model, optimizer, _, cascade = made()
    with pytest.raises(TypeError, match=r"optimizer.*Linear.*Optimizer"):
        Cascade(model, model, lambda: 0.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model.*Linear.*parameters of the optimizer"):
        Cascade(nn.Linear(1, 1), optimizer, lambda: 0.0)
    with pytest.raises(TypeError, match=r"score.*float"):
        Cascade(model, optimizer, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"train.*int"):
        cascade.round(3)  # type: ignore[arg-type]
    worse = Cascade(model, optimizer, lambda: float("nan"))
    with pytest.raises(ValueError, match=r"score\(\).*nan"):
        worse.round(lambda branch: None)
