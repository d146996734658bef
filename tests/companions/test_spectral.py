"""SpectralMonitor: known spectra, when it measures, states, alarm; and why phi is left out."""

from __future__ import annotations

import copy
import gc
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim.companions import SpectralMonitor, halve_lr, repetition_rate
from sal_optim.companions.spectral import spectrum_of

NUMBERS = {"entropy", "rankme", "participation", "top_share", "decay"}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batch(samples: int = 32) -> Tensor:
    return torch.randn(samples, 6, generator=torch.Generator().manual_seed(1))


def spread(values: Tensor, samples: int = 40) -> Tensor:
    """Activations of known singular values, around a mean of 5."""
    raw = torch.randn(samples, len(values), generator=torch.Generator().manual_seed(0)).double()
    left = torch.linalg.qr(raw - raw.mean(0))[0]
    return left @ torch.diag(values.double()) + 5.0


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def collapse(layer: nn.Module) -> None:
    """One direction is left."""
    with torch.no_grad():
        layer.weight[:] = layer.weight[0]  # type: ignore[index]


def test_known_spectra() -> None:
    found = spectrum_of(spread(torch.ones(8)))
    assert found == pytest.approx(
        {"entropy": 1.0, "rankme": 8.0, "participation": 8.0, "top_share": 0.125, "decay": 0.0},
        abs=1e-6,
    )
    index = torch.arange(1, 9).double()
    found = spectrum_of(spread(index**-0.75))
    p = index**-0.75 / (index**-0.75).sum()
    entropy = -(p * p.log()).sum().item()
    assert found["decay"] == pytest.approx(1.5)
    assert found["top_share"] == pytest.approx(p[0].item())
    assert found["entropy"] == pytest.approx(entropy / math.log(8))
    assert found["rankme"] == pytest.approx(math.exp(entropy))
    variances = index**-1.5
    expected = (variances.sum() ** 2 / (variances**2).sum()).item()
    assert found["participation"] == pytest.approx(expected)
    assert spectrum_of(7.0 * spread(index**-0.75)) == pytest.approx(found)


def test_collapsed_and_broken_activations() -> None:
    one = spectrum_of(torch.randn(20, 1) @ torch.randn(1, 5))
    assert one["rankme"] == pytest.approx(1.0, abs=1e-3)
    assert one["top_share"] == pytest.approx(1.0, abs=1e-4)
    assert one["entropy"] == pytest.approx(0.0, abs=1e-3)
    nothing = spectrum_of(torch.full((20, 5), 0.1))
    assert (nothing["rankme"], nothing["top_share"], nothing["decay"]) == (0.0, 1.0, 0.0)
    broken = spectrum_of(torch.tensor([[1.0, math.nan]] * 4))
    assert set(broken) == NUMBERS
    assert all(math.isnan(value) for value in broken.values())


def test_shapes() -> None:
    rows = torch.randn(24, 5)
    expected = spectrum_of(rows)
    assert spectrum_of(rows.reshape(4, 6, 5)) == pytest.approx(expected)
    images = rows.reshape(2, 3, 4, 5).movedim(-1, 1)  # channels second
    assert spectrum_of(images) == pytest.approx(expected)
    assert set(spectrum_of(torch.randn(3000, 4))) == NUMBERS  # of a sample of them


def test_it_measures_when_it_is_due() -> None:
    model = network()
    monitor = SpectralMonitor(model, ["1", "2"], every=3)
    assert monitor.diagnostics() == {}
    measured = []
    for _ in range(8):
        model(batch())
        measured.append(monitor.step())
    assert measured == [True, False, False, True, False, False, True, False]
    found = monitor.diagnostics()
    names = NUMBERS | {f"{name}_relative" for name in NUMBERS} | {"state"}
    assert set(found) == {f"{layer}/{name}" for layer in ("1", "2") for name in names}
    assert all(type(value) is float for value in found.values())
    assert found["1/rankme"] == pytest.approx(spectrum_of(model[:2](batch()))["rankme"])
    assert found["1/rankme_relative"] == 1.0
    assert monitor.state == "stable"


def test_nothing_is_kept_between_measurements() -> None:
    model = network()
    monitor = SpectralMonitor(model, ["1"], every=2)
    model(batch())
    monitor.step()
    model(batch())
    assert monitor._taps["1"].caught is None
    monitor.step()
    model(batch())
    caught = monitor._taps["1"].caught
    assert caught is not None
    assert not caught.requires_grad


def test_evaluation_and_small_batches_are_passed_over() -> None:
    model = network()
    monitor = SpectralMonitor(model, ["1"], every=2)
    model(batch())
    assert monitor.step()
    before = monitor.diagnostics()
    monitor.step()
    model(batch(8))  # the last of an epoch
    assert not monitor.step()
    model.eval()
    model(batch())
    with pytest.warns(UserWarning, match=r"nothing in 2 steps.*train\(\) mode"):
        assert not monitor.step()
    assert monitor.diagnostics() == before
    model.train()
    model(batch())
    assert monitor.step()


def test_states_and_alarm() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    monitor = SpectralMonitor(model, ["0"], every=1, alarm=halve_lr(optimizer, lowest=0.15))

    def step() -> str:
        model(batch())
        assert monitor.step()
        return monitor.state

    original = copy.deepcopy(model[0].state_dict())
    assert step() == "stable"
    with torch.no_grad():
        model[0].weight[:4] *= 0.01
    assert step() == "drifting"
    assert optimizer.param_groups[0]["lr"] == 0.4
    rates = []
    for _ in range(3):
        collapse(model[0])
        assert step() == "warning"
        assert monitor.states == {"0": "warning"}
        assert monitor.diagnostics()["0/state"] == 2.0
        step()  # still in warning: no second alarm
        rates.append(optimizer.param_groups[0]["lr"])
        model[0].load_state_dict(original)
        assert step() == "stable"
    assert rates == [0.2, 0.15, 0.15]
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    assert step() == "warning"


def test_activations_that_are_broken_from_the_start() -> None:
    model = network()
    original = copy.deepcopy(model.state_dict())
    monitor = SpectralMonitor(model, ["0"], every=1)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    model(batch())
    monitor.step()
    assert monitor.state == "warning"
    assert monitor.relative("0") == {}
    model.load_state_dict(original)
    model(batch())
    monitor.step()
    assert monitor.state == "stable"
    assert monitor.relative("0")["rankme"] == 1.0


def test_a_rate_that_is_a_tensor() -> None:
    lr = torch.tensor(0.5)
    optimizer = torch.optim.Adam(network().parameters(), lr=lr)
    halve_lr(optimizer)(None)  # type: ignore[arg-type]
    assert lr.item() == 0.25
    assert optimizer.param_groups[0]["lr"] is lr


def test_going_on_from_a_state() -> None:
    model = network()
    monitor = SpectralMonitor(model, ["0"], every=2)
    model(batch())
    monitor.step()
    resumed = SpectralMonitor(model, ["0"], every=2)
    resumed.load_state_dict(monitor.state_dict())
    assert resumed.diagnostics() == monitor.diagnostics()
    collapse(model[0])
    for expected in (False, True):
        model(batch())
        assert resumed.step() is expected
    assert resumed.state == "warning"
    other, empty = SpectralMonitor(model, ["1"]), SpectralMonitor(model, ["1"]).state_dict()
    with pytest.raises(ValueError, match=r"state_dict.*\['0'\].*\['1'\]"):
        other.load_state_dict(monitor.state_dict())
    for change, error, message in (
        (None, TypeError, r"state_dict.*NoneType.*what state_dict\(\) returned"),
        ({"step": None}, ValueError, r"'step' is None"),
        ({"states": {"1": "fine"}}, ValueError, r"states.*'fine'.*'drifting'"),
        ({"start": {"0": {}}}, ValueError, r"state_dict.*\['1'\]"),
    ):
        state = {**empty, **change} if change else change
        with pytest.raises(error, match=message):
            other.load_state_dict(state)  # type: ignore[arg-type]
        assert other.state_dict() == empty


def test_removal() -> None:
    model = network()
    monitor = SpectralMonitor(model, ["0", "1", "0"], every=1)
    assert hooks(model) == 2
    model(batch())
    monitor.step()
    found = monitor.diagnostics()
    monitor.remove()
    monitor.remove()
    assert hooks(model) == 0
    model(batch())
    assert not monitor.step()
    assert monitor.diagnostics() == found
    monitor = SpectralMonitor(model, ["0"])
    del monitor
    gc.collect()
    assert hooks(model) == 0


def test_compiled() -> None:
    torch._dynamo.reset()
    model = network()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    monitor = SpectralMonitor(compiled, ["1"], every=2)
    for expected in (True, False, True, False):
        compiled(batch())
        assert monitor.step() is expected
    found = monitor.diagnostics()["1/rankme"]
    assert found == pytest.approx(spectrum_of(model[:2](batch()))["rankme"])


def test_a_layer_in_half_precision() -> None:
    model = network()
    monitor = SpectralMonitor(model, ["0"], every=1)
    with torch.autocast("cpu", torch.bfloat16):
        model(batch())
        assert monitor.step()
    assert 1.0 < monitor.diagnostics()["0/rankme"] <= 8.0


@pytest.mark.parametrize("pulled", ["entropy", "phi"])
def test_the_golden_ratio_pushes_toward_a_collapse(pulled: str) -> None:
    """|top share - phi| falls until one direction is left, since no share is above 1 < 1.618.

    As a control, entropy that is pulled up spreads the spectrum by the same steps.
    """
    torch.manual_seed(0)
    h = torch.randn(16, 6, requires_grad=True)
    before = spectrum_of(h)
    optimizer = torch.optim.Adam([h], lr=0.05)
    for _ in range(120):
        optimizer.zero_grad()
        values = torch.linalg.svdvals(h - h.mean(0))
        p = values / values.sum()
        phi = (p[0] - (1.0 + math.sqrt(5.0)) / 2.0).abs()
        (phi if pulled == "phi" else (p * p.log()).sum()).backward()
        optimizer.step()
    after = spectrum_of(h)
    if pulled == "phi":
        assert after["top_share"] > 0.9 > 0.5 > before["top_share"]
        assert after["rankme"] < 1.6 < 4.0 < before["rankme"]
    else:
        assert after["rankme"] > before["rankme"]


def test_repetition() -> None:
    assert repetition_rate([1, 2, 3, 4, 5]) == 0.0
    assert repetition_rate([7] * 12) == pytest.approx(0.9)
    # Tokens as 0-dim tensors, and sequences as tensors.
    assert repetition_rate(list(torch.tensor([7] * 12))) == pytest.approx(0.9)
    assert repetition_rate([torch.tensor([7] * 12)] * 3) == pytest.approx(0.9)
    assert repetition_rate([1, 2, 1, 2, 1, 2]) == pytest.approx(0.5)
    assert repetition_rate("abcabc") == pytest.approx(0.25)
    assert repetition_rate(["a", "b", "a", "b"], n=2) == pytest.approx(1 / 3)
    # What two sequences share is no repetition of either.
    assert repetition_rate(torch.tensor([[1, 2, 3], [1, 2, 3]])) == 0.0
    assert repetition_rate([[7] * 5, [1, 2, 3]]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"tokens.*no sequence of 3"):
        repetition_rate([1, 2])
    with pytest.raises(ValueError, match=r"n.*0.*>= 1"):
        repetition_rate([1, 2], n=0)
    with pytest.raises(TypeError, match=r"tokens.*int.*sequence"):
        repetition_rate(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"tokens.*a token is a list"):
        repetition_rate(torch.zeros(2, 2, 3))


def test_what_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"layers.*'absent'.*one of '0'"):
        SpectralMonitor(model, ["0", "absent"])
    assert hooks(model) == 0
    with pytest.raises(TypeError, match=r"layers.*'0'.*list of names"):
        SpectralMonitor(model, "0")
    with pytest.raises(ValueError, match=r"layers.*at least one"):
        SpectralMonitor(model, [])
    with pytest.raises(ValueError, match=r"every.*0.*>= 1"):
        SpectralMonitor(model, ["0"], every=0)
    with pytest.raises(ValueError, match=r"warning.*0\.9.*\(0, 0\.8\)"):
        SpectralMonitor(model, ["0"], warning=0.9)
    with pytest.raises(TypeError, match=r"alarm.*int.*function"):
        SpectralMonitor(model, ["0"], alarm=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"optimizer.*Sequential.*Optimizer"):
        halve_lr(model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"layer.*'1'.*one of '0'"):
        SpectralMonitor(model, ["0"]).relative("1")
