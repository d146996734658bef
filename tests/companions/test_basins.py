"""The basin map: generations whose basin is known, what is read of a prompt, and bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim.companions import basin_map, plot_basins

VOCABULARY = 100


class Scripted(nn.Module):
    """The first token of a text decides: 0 repeats one token, 1 a phrase, 2 counts upward."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 4)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, text: Tensor) -> Tensor:
        self.seen.append(tuple(text.shape))
        assert not self.training
        self.embedding(text)
        now = text
        phrase = torch.where(now % 10 == 9, now - 9, now + 1)
        up = (now + 1) % VOCABULARY
        kind = text[:, :1]
        following = torch.where(kind == 0, now, torch.where(kind == 1, phrase, up))
        return 50.0 * nn.functional.one_hot(following, VOCABULARY).float()


PROMPTS = [
    torch.tensor([0, 7]),
    torch.tensor([1, 20]),
    torch.tensor([2, 30]),
    torch.tensor([2, 3, 4, 5]),
]


def test_known_basins() -> None:
    model = Scripted().train()
    found = basin_map(model, PROMPTS, length=40, layer="embedding")
    assert model.training
    assert model.embedding.training
    assert found.basins == ("collapse", "loop", "fluent", "fluent")
    assert found.repetition.tolist() == pytest.approx([37 / 38, 28 / 38, 0.0, 0.0])
    expected = [0.0, math.log(10) / math.log(40), 1.0, 1.0]
    assert found.entropy.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.generated[2].tolist() == [*range(31, 71)]
    assert found.generated[0].tolist() == [7] * 40
    assert found.lengths.tolist() == [2, 2, 2, 4]
    assert found.surprise[3] == pytest.approx(0.0, abs=1e-4)  # each token follows
    assert found.surprise[0] > 10.0
    last = torch.tensor([7, 20, 30, 5])
    assert torch.equal(found.hidden, model.embedding(last))
    table = found.table()
    assert table["fluent"] == pytest.approx(
        {"prompts": 2, "share": 0.5, "repetition": 0.0, "entropy": 1.0}, abs=1e-6
    )
    assert not model.embedding._forward_hooks


def test_thresholds_and_context() -> None:
    model = Scripted()
    found = basin_map(model, PROMPTS[:2], length=40, loop=0.8, collapse=0.0)
    assert found.basins == ("loop", "fluent")
    assert found.hidden.shape == (2, VOCABULARY)
    model.seen.clear()
    basin_map(model, PROMPTS, length=10, context=3)
    assert max(shape[1] for shape in model.seen) == 3


def test_sampling() -> None:
    class Even(nn.Module):
        def forward(self, text: Tensor) -> tuple[Tensor, None]:
            return torch.zeros(*text.shape, VOCABULARY), None

    maps = [basin_map(Even(), PROMPTS[:3], temperature=1.0, seed=s) for s in (0, 0, 1)]
    assert torch.equal(maps[0].generated[0], maps[1].generated[0])
    assert not torch.equal(maps[0].generated[0], maps[2].generated[0])
    assert maps[0].basins == ("fluent",) * 3
    assert maps[0].surprise.tolist() == pytest.approx([math.log(VOCABULARY)] * 3)


def test_another_generation() -> None:
    def same(prompts: Tensor, length: int) -> Tensor:
        return prompts[:, -1:].expand(-1, length)

    found = basin_map(Scripted(), PROMPTS, length=12, generate=same)
    assert found.basins == ("collapse",) * 4
    with pytest.raises(ValueError, match=r"generate.*\(3, 2\).*3 by 3 or more"):
        basin_map(Scripted(), PROMPTS, generate=lambda prompts, length: prompts[:, :2])
    with pytest.raises(ValueError, match=r"generate.*float.*whole numbers"):
        basin_map(Scripted(), PROMPTS, generate=lambda prompts, length: torch.zeros(3, length))
    with pytest.raises(TypeError, match=r"generate.*int"):
        basin_map(Scripted(), PROMPTS, generate=3)  # type: ignore[arg-type]


def test_the_picture() -> None:
    pytest.importorskip("matplotlib")
    axes = plot_basins(basin_map(Scripted(), PROMPTS, length=40)).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["fluent, 2", "loop, 1", "collapse, 1"]
    with pytest.raises(TypeError, match=r"found.*int"):
        plot_basins(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"prompts": "text"}, TypeError, r"prompts.*str"),
        ({"prompts": []}, ValueError, r"prompts.*none"),
        ({"prompts": [torch.tensor([1])]}, ValueError, r"prompts.*0 is of shape \(1,\)"),
        ({"prompts": [torch.ones(3)]}, TypeError, r"prompts.*0 is no tensor of tokens"),
        ({"length": 2}, ValueError, r"length.*2"),
        ({"n": 0}, ValueError, r"n value: 0"),
        ({"temperature": -1.0}, ValueError, r"temperature.*-1"),
        ({"loop": 1.5}, ValueError, r"loop.*1\.5"),
        ({"context": 1}, ValueError, r"context.*1"),
        ({"layer": "other"}, ValueError, r"layer.*'other'.*'embedding'"),
        ({"model": 3}, TypeError, r"model.*int"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        basin_map(**{"model": Scripted(), "prompts": PROMPTS, **settings})


def test_a_model_that_puts_out_something_else() -> None:
    with pytest.raises(TypeError, match=r"model.*shape \(3, 2\).*logits"):
        basin_map(Flat(), PROMPTS[:3])


class Flat(nn.Module):
    def forward(self, text: Tensor) -> Tensor:
        return text.float()


def test_a_layer_of_a_model_that_was_traced_before() -> None:
    model = nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Linear(4, VOCABULARY)).eval()
    traced = torch.compile(model, backend="eager")
    with torch.no_grad():
        traced(torch.stack(PROMPTS[:3]))
    found = basin_map(traced, PROMPTS[:3], length=5, layer="0")
    assert torch.equal(found.hidden, basin_map(model, PROMPTS[:3], length=5, layer="0").hidden)
