"""The cellular memory: each of its changes on a case that can be worked out, replay, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim.companions import CellularMemory


def rows(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def test_birth_merging_and_growth() -> None:
    memory = CellularMemory(1, 3)
    memory.observe(rows(0.0, 1.0, 10.0), torch.tensor([0, 0, 0]))
    assert memory.diagnostics()["births"] == len(memory) == 3
    memory.observe(rows(20.0), torch.tensor([0]))  # one too many: 0 and 1 are pooled
    assert memory.centres.flatten().tolist() == [0.5, 10.0, 20.0]
    assert memory.masses.tolist() == [2.0, 1.0, 1.0]
    assert memory.scatters.tolist() == [0.5, 0.0, 0.0]
    memory.observe(rows(10.9), torch.tensor([0]))  # 0.9² / 2 is less: it grows the second
    assert memory.centres[1].item() == pytest.approx(10.45)
    assert memory.scatters[1].item() == pytest.approx(2 * 0.45**2, rel=1e-5)
    found = memory.diagnostics()
    assert (found["births"], found["growths"], found["merges"]) == (4, 1, 1)


def test_the_cells_together_have_the_moments_of_all_samples() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 6, generator=draw), torch.arange(400) % 4
    memory = CellularMemory(6, 12)
    for part in range(0, 400, 40):
        memory.observe(x[part : part + 40], y[part : part + 40])
    assert len(memory) == 12
    assert memory.diagnostics()["growths"] > 0
    for label in range(4):
        own, samples = memory.labels == label, x[y == label]
        mass, centres = memory.masses[own], memory.centres[own]
        mean = (mass[:, None] * centres).sum(0) / mass.sum()
        torch.testing.assert_close(mean, samples.mean(0), rtol=1e-4, atol=1e-5)
        between = (mass * (centres - mean).square().sum(1)).sum()
        total = (samples - samples.mean(0)).square().sum()
        torch.testing.assert_close(memory.scatters[own].sum() + between, total, rtol=1e-4, atol=0.0)


def test_labels_are_not_pooled() -> None:
    memory = CellularMemory(1, 2)
    memory.observe(rows(0.0, 0.1, 5.0, 9.0), torch.tensor([0, 1, 1, 0]))
    assert sorted(memory.labels.tolist()) == [0, 1]
    with pytest.raises(ValueError, match=r"labels.*3 labels.*budget of 2"):
        memory.observe(rows(1.0), torch.tensor([2]))
    assert memory.masses.sum() == 4.0


def test_labels_share_the_budget() -> None:
    draw = torch.Generator().manual_seed(0)
    memory = CellularMemory(2, 12)
    for label, count in enumerate((200, 20, 50)):
        memory.observe(torch.randn(count, 2, generator=draw), torch.full((count,), label))
    assert torch.bincount(memory.labels).tolist() == [4, 4, 4]
    assert memory.masses[memory.labels == 0].sum() == 200.0


def test_decay_and_death() -> None:
    memory = CellularMemory(1, 10, decay=0.5, floor=0.4)
    memory.observe(rows(0.0, 50.0), torch.tensor([0, 1]))
    for _ in range(3):
        memory.observe(rows(9.0), torch.tensor([0]))  # each is born: room has cost nothing yet
    # Label 1 was not seen: it rests. Of label 0, those of mass 0.25 and less are gone.
    assert memory.masses[memory.labels == 1].tolist() == [1.0]
    assert 0.0 not in memory.centres[memory.labels == 0]
    assert memory.diagnostics()["deaths"] > 0
    alone = CellularMemory(1, 10, decay=0.1, floor=0.9)
    alone.observe(rows(3.0), torch.tensor([7]))
    alone._age(torch.tensor([7]))
    assert alone.labels.tolist() == [7]  # the last of its label


def test_predict_and_sample() -> None:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    x = torch.randn(300, 5, generator=draw) + 8.0 * y[:, None]
    memory = CellularMemory(5, 9)
    memory.observe(x, y)
    assert (memory.predict(x) == y).float().mean() > 0.99
    again, labels = memory.sample(3000, generator=torch.Generator().manual_seed(1))
    assert torch.bincount(labels).tolist() == pytest.approx([1000] * 3, rel=0.1)
    for label in range(3):
        made, real = again[labels == label], x[y == label]
        torch.testing.assert_close(made.mean(0), real.mean(0), rtol=0.0, atol=0.25)
        assert made.std(0).mean() == pytest.approx(real.std(0).mean().item(), rel=0.15)
    seeded = torch.Generator().manual_seed(1)
    assert torch.equal(memory.sample(3000, generator=seeded)[0], again)


def test_the_default_dtype_and_device_do_not_matter() -> None:
    x, y = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    drawn = []
    for dtype, device in ((torch.float32, "cpu"), (torch.float64, "meta")):
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                memory = CellularMemory(5, 9)
                for _ in range(2):
                    memory.observe(x, y)
                drawn.append(memory.sample(20, generator=torch.Generator().manual_seed(1)))
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert drawn[1][0].dtype is torch.float32


def test_going_on_from_a_state() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 3, generator=draw), torch.arange(200) % 2
    memory, other = (CellularMemory(3, 6, decay=0.9) for _ in range(2))
    memory.observe(x[:100], y[:100])
    other.load_state_dict(memory.state_dict())
    for each in (memory, other):
        each.observe(x[100:], y[100:])
    assert torch.equal(memory.centres, other.centres)
    assert memory.diagnostics() == other.diagnostics()
    assert memory.bytes() == 4 * 6 * 6
    with pytest.raises(ValueError, match=r"state_dict.*\(6, 3\).*at most 5 cells of 3"):
        CellularMemory(3, 5).load_state_dict(memory.state_dict())
    for change, error, message in (
        (None, TypeError, r"state_dict.*NoneType.*what state_dict\(\) returned"),
        ({}, ValueError, r"state_dict.*no 'centres'"),
        ({"masses": torch.ones(2)}, ValueError, r"masses of shape \(2,\).*\(6,\)"),
        ({"masses": -torch.ones(6)}, ValueError, r"masses.*finite"),
        ({"scatters": None}, ValueError, r"'scatters' is None"),
        ({"labels": torch.zeros(6)}, ValueError, r"labels.*torch.float32.*torch.int64"),
        ({"centres": torch.full((6, 3), torch.nan)}, ValueError, r"centres.*finite"),
        ({"counts": {"births": -1}}, ValueError, r"births.*-1"),
    ):
        state = {**memory.state_dict(), **change} if change else change
        with pytest.raises(error, match=message):
            other.load_state_dict(state)  # type: ignore[arg-type]
        assert torch.equal(memory.centres, other.centres)
        assert memory.diagnostics() == other.diagnostics()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": 0}, ValueError, r"features.*0"),
        ({"budget": 0}, ValueError, r"budget.*0"),
        ({"decay": 0.0}, ValueError, r"decay.*0.*\(0, 1\]"),
        ({"decay": 1.5}, ValueError, r"decay.*1\.5.*\(0, 1\]"),
        ({"floor": -1.0}, ValueError, r"floor.*-1"),
        ({"floor": None}, TypeError, r"floor.*None"),
    ],
)
def test_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CellularMemory(**{"features": 2, "budget": 4, **arguments})


def test_what_is_refused() -> None:
    memory = CellularMemory(2, 4)
    good, labels = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    for what in (memory.predict, lambda x: memory.sample(3)):
        with pytest.raises(ValueError, match="the memory is empty"):
            what(good)
    with pytest.raises(TypeError, match=r"features.*list"):
        memory.observe([[0.0, 1.0]], labels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"features.*\(3, 3\).*samples by 2"):
        memory.observe(torch.zeros(3, 3), labels)
    for wrong in (good / 0.0, good.double() + 1e300):
        with pytest.raises(ValueError, match=r"features.*not finite in float32"):
            memory.observe(wrong, labels)
    with pytest.raises(TypeError, match=r"labels.*Tensor.*whole"):
        memory.observe(good, labels.float())
    with pytest.raises(ValueError, match=r"labels.*\(2,\).*3"):
        memory.observe(good, labels[:2])
    assert len(memory) == 0
    memory.observe(good, labels)
    with pytest.raises(ValueError, match=r"count.*0"):
        memory.sample(0)
