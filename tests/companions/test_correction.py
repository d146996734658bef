"""The correction: rates, weights by risk, and that nothing changes before the first alarm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sal_optim.companions import Correction, SpectralMonitor


def seen(correction: Correction) -> Correction:
    for _ in range(10):
        for source, risk in enumerate((0.1, 0.1, 0.1, 3.0)):
            correction.see(source, risk)
    return correction


def optimizer(lr: float = 0.4) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def test_weights_are_even_until_an_alarm() -> None:
    made = optimizer()
    correction = seen(Correction(made, 4))
    assert correction.weights().tolist() == [0.25] * 4
    assert made.param_groups[0]["lr"] == 0.4
    correction()
    weights = correction.weights()
    # Risks in units of their spread: three at -1/sqrt(3), one at sqrt(3).
    assert weights[0] / weights[3] == pytest.approx(torch.tensor(4.0 / 3.0**0.5).exp().item())
    assert weights.sum() == pytest.approx(1.0)
    assert made.param_groups[0]["lr"] == 0.2
    correction()
    assert correction.weights()[3] < weights[3] / 5
    assert made.param_groups[0]["lr"] == 0.1


def test_either_alone() -> None:
    made = optimizer()
    halving = Correction(made, lowest=0.3)
    halving()
    assert made.param_groups[0]["lr"] == 0.3
    assert halving.weights().shape == (0,)
    reweighting = seen(Correction(None, 4))
    reweighting()
    assert reweighting.weights()[3] < 0.1


def test_risks_follow_what_is_seen() -> None:
    correction = Correction(None, 3, memory=0.5)
    assert correction.risks().tolist() == [0.0, 0.0, 0.0]
    correction.see(0, 1.0)
    correction.see(0, torch.tensor(4.0))
    assert correction.risks().tolist() == pytest.approx([3.0, 3.0, 3.0])  # unseen: the mean
    correction.see(1, 9.0)
    assert correction.risks().tolist() == pytest.approx([3.0, 9.0, 6.0])
    correction()
    other = Correction(None, 3, memory=0.5)
    other.load_state_dict(correction.state_dict())
    assert torch.equal(other.weights(), correction.weights())
    with pytest.raises(ValueError, match=r"state_dict.*3 sources.*must be 2"):
        Correction(None, 2).load_state_dict(correction.state_dict())
    for change, error, message in (
        (None, TypeError, r"state_dict.*NoneType.*what state_dict\(\) returned"),
        ({}, ValueError, r"state_dict.*no 'alarms'"),
        ({"alarms": -1}, ValueError, r"alarms.*-1"),
        ({"counts": torch.ones(2)}, ValueError, r"counts of 2 sources"),
        ({"sums": torch.full((3,), torch.nan)}, ValueError, r"sums.*nan.*finite"),
    ):
        state = {**correction.state_dict(), **change} if change else change
        with pytest.raises(error, match=message):
            other.load_state_dict(state)  # type: ignore[arg-type]
        assert torch.equal(other.weights(), correction.weights())


def test_it_is_an_alarm_of_a_monitor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    made = torch.optim.SGD(model.parameters(), lr=0.4)
    correction = Correction(made, 2)
    monitor = SpectralMonitor(model, ["0"], every=1, alarm=correction)
    for scale in (1.0, 1.0, 0.0):
        noise = torch.randn(32, 8) * scale + torch.randn(32, 1) * (1.0 - scale)
        model(noise)
        monitor.step()
    assert correction.alarms == 1
    assert made.param_groups[0]["lr"] == 0.2
    monitor.remove()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sources": -1}, ValueError, r"sources.*-1"),
        ({"sharpness": 0.0}, ValueError, r"sharpness.*0"),
        ({"memory": 1.0}, ValueError, r"memory.*1"),
        ({"lowest": -1.0}, ValueError, r"lowest.*-1"),
        ({"optimizer": 3}, TypeError, r"optimizer.*int"),
    ],
)
def test_arguments(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Correction(**{"optimizer": optimizer(), **settings})


def test_what_is_refused() -> None:
    correction = Correction(None, 2)
    with pytest.raises(ValueError, match=r"source.*2.*below the 2 sources"):
        correction.see(2, 1.0)
    with pytest.raises(ValueError, match=r"risk.*nan"):
        correction.see(0, float("nan"))
