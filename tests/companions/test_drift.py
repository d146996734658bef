"""Drift and shift_map: known distances, and noise that is not taken for something new."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim.companions import Drift, linear_cka, shift_map


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


def probe() -> Tensor:
    return torch.randn(20, 4, generator=torch.Generator().manual_seed(1))


def test_no_drift_at_first() -> None:
    model = network()
    model[1].eval()
    drift = Drift(model, probe(), layer="1")
    assert drift.measure() == {"drift_weights": 0.0, "drift_kl": 0.0, "drift_cka": 1.0}
    assert [module.training for module in model] == [True, False, True, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_known_distances() -> None:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    drift = Drift(model, torch.eye(2))
    with torch.no_grad():
        model.weight[0, 1] = 1.0
    found = drift.measure()
    assert found["drift_weights"] == pytest.approx(1.0 / 5.0)
    p = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).softmax(1)
    q = torch.tensor([[3.0, 0.0], [1.0, 4.0]]).softmax(1)
    assert found["drift_kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5)
    assert found["drift_kl"] > 0.0


@pytest.mark.filterwarnings("error")
def test_complex_weights() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[3.0, 4.0j]]))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight).abs()

    model = Turned()
    drift = Drift(model, torch.ones(2, 1, dtype=torch.complex64))
    with torch.no_grad():
        model.weight.mul_(1.0j)
    assert drift.measure()["drift_weights"] == pytest.approx(2.0**0.5)
    assert drift.measure()["drift_kl"] == 0.0


def test_scaled_weights_drift_in_kl_and_not_in_cka() -> None:
    model = nn.Linear(4, 3)
    drift = Drift(model, probe())
    with torch.no_grad():
        model.weight.mul_(3.0)
    found = drift.measure()
    assert found["drift_weights"] > 1.0
    assert found["drift_kl"] > 0.01
    assert found["drift_cka"] == pytest.approx(1.0)


def test_more_training_is_more_drift() -> None:
    model = network()
    drift = Drift(model, probe(), layer="1")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    found = []
    for _ in range(2):
        for _ in range(15):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(probe()), torch.arange(20) % 3).backward()
            optimizer.step()
        found.append(drift.measure())
    assert 0.0 < found[0]["drift_weights"] < found[1]["drift_weights"]
    assert 0.0 < found[0]["drift_kl"] < found[1]["drift_kl"]
    assert 1.0 > found[0]["drift_cka"] > found[1]["drift_cka"] > 0.0
    assert model[0].weight.grad is not None  # what was there is not touched


def test_cka() -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
    assert linear_cka(x, 2.0 * x @ turn + 3.0) == pytest.approx(1.0)
    other = torch.randn(30, 5, generator=torch.Generator().manual_seed(2))
    assert linear_cka(x, other) < 0.5
    wide = torch.randn(30, 50, generator=torch.Generator().manual_seed(3))
    narrow = wide.double() - wide.double().mean(0)  # by features, where there are fewer samples
    y = x.double() - x.double().mean(0)
    expected = (narrow.T @ y).norm() ** 2 / ((narrow.T @ narrow).norm() * (y.T @ y).norm())
    assert linear_cka(x, wide) == pytest.approx(expected.item())
    assert linear_cka(x, torch.ones(30, 2)) == 0.0
    assert linear_cka(torch.ones(30, 2), torch.ones(30, 2)) == 1.0
    with pytest.raises(ValueError, match=r"x and y.*\(30, 5\).*\(29, 5\)"):
        linear_cka(x, x[:29])
    with pytest.raises(TypeError, match=r"y value: a list; y must be a tensor"):
        linear_cka(x, [1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"x value: torch\.complex64"):
        linear_cka(x.to(torch.complex64), x)


def test_probes_and_outputs_of_other_kinds() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x: Tensor, *, twice: bool = False) -> Any:
            return SimpleNamespace(logits=self.layer(x) * (2.0 if twice else 1.0))

    model = Named()
    drifts = [Drift(model, {"x": probe(), "twice": True}), Drift(model, (probe(),))]
    with torch.no_grad():
        model.layer.bias.add_(1.0)
    kls = [drift.measure()["drift_kl"] for drift in drifts]
    assert kls[0] > kls[1] > 0.0  # of one logit
    wrapped = torch.compile(network(), backend="eager")
    assert Drift(wrapped, probe(), layer="1").measure()["drift_weights"] == 0.0


def test_what_drift_refuses() -> None:
    model = network()
    for bad in (torch.zeros(0, 4), {}, ()):
        with pytest.raises(ValueError, match=r"probe.*at least 2 samples"):
            Drift(model, bad)
    with pytest.raises(ValueError, match=r"probe.*\(1, 3\).*at least 2 samples"):
        Drift(model, probe()[:1])
    with pytest.raises(TypeError, match=r"probe.*int.*a tensor"):
        Drift(model, 3)
    with pytest.raises(ValueError, match=r"layer.*'absent'.*one of '0'"):
        Drift(model, probe(), layer="absent")
    with pytest.raises(TypeError, match=r"model.*function.*Module"):
        Drift(torch.relu, probe())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model.*Identity.*require a gradient"):
        Drift(nn.Identity(), probe())
    with pytest.raises(TypeError, match=r"model.*puts out a tuple"):
        Drift(nn.Sequential(nn.Linear(4, 2), Nothing()), probe())
    with pytest.raises(ValueError, match=r"layer.*'idle'.*take part"):
        Drift(Idle(), probe(), layer="idle")
    drift = Drift(model, probe())
    model[3] = nn.Linear(6, 5)
    with pytest.raises(ValueError, match=r"model.*\(20, 5\).*\(20, 3\)"):
        drift.measure()
    model[3] = nn.Linear(6, 3, bias=False)
    with pytest.raises(ValueError, match=r"model.*'3\.bias' is gone"):
        drift.measure()


def test_weights_that_were_zero() -> None:
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    drift = Drift(model, probe())
    assert drift.measure()["drift_weights"] == 0.0
    nn.init.ones_(model.bias)
    assert drift.measure()["drift_weights"] == float("inf")


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)  # type: ignore[no-any-return]


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> tuple[()]:
        return ()


@pytest.fixture(scope="module")
def digits() -> dict[str, Tensor]:
    """A bank of nine classes, others of them, the tenth, and noise of three kinds."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    pixels, labels = torch.tensor(data.data / 16).float(), torch.tensor(data.target)
    torch.manual_seed(0)
    old = pixels[labels != 6]
    old = old[torch.randperm(len(old))]
    bank = old[:600]
    return {
        "bank": bank,
        "known": old[600:700],
        "new": pixels[labels == 6][:100],
        "like the bank": torch.randn(100, 64) * bank.std(0) + bank.mean(0),
        "uniform": torch.rand(100, 64),
        "large": 10.0 * torch.randn(100, 64),
    }


NOISE = ("like the bank", "uniform", "large")


def flagged(features: Tensor, bank: Tensor) -> float:
    with torch.device("meta"):  # another default device
        return shift_map(features, bank).flagged.float().mean().item()


def test_a_new_class_is_flagged_and_noise_is_not(digits: dict[str, Tensor]) -> None:
    bank = digits["bank"]
    shares = {name: flagged(part, bank) for name, part in digits.items() if name != "bank"}
    assert shares["new"] > 0.4
    assert max(share for name, share in shares.items() if name != "new") <= 0.05
    # What novelty alone would flag: nearly all of the noise.
    novelty = [shift_map(digits[name], bank).novelty > 1.0 for name in NOISE]
    assert torch.cat(novelty).float().mean() > 0.6


def test_in_one_batch(digits: dict[str, Tensor]) -> None:
    names = ["known", "new", *NOISE]
    found = shift_map(torch.cat([digits[name] for name in names]), digits["bank"])
    shares = dict(zip(names, found.flagged.float().view(5, 100).mean(1).tolist(), strict=True))
    assert shares["new"] > 0.4
    assert max(share for name, share in shares.items() if name != "new") <= 0.05
    assert found.score.shape == found.null.shape == (500,)
    torch.testing.assert_close(found.score, found.novelty * found.agreement.clamp_min(0.0))


def test_views() -> None:
    """Features that hold under augmentation are flagged, those drawn anew for each are not."""
    torch.manual_seed(0)
    bank = torch.randn(200, 32)
    far = 6.0 * torch.randn(60, 32)
    steady = far + 0.1 * torch.randn(3, 60, 32)
    noise = 6.0 * torch.randn(3, 60, 32)
    assert flagged(steady, bank) > 0.95
    assert flagged(noise, bank) <= 0.05
    assert flagged(bank[:60] + 0.01 * torch.randn(3, 60, 32), bank) <= 0.05
    both = shift_map(torch.cat([steady, noise], 1), bank).flagged.view(2, 60).float().mean(1)
    assert both[0] > 0.95
    assert both[1] <= 0.05


def test_it_repeats_itself(digits: dict[str, Tensor]) -> None:
    state = torch.get_rng_state()
    runs = [shift_map(digits["new"], digits["bank"], seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(runs[0].null, runs[1].null)
    assert not torch.equal(runs[0].null, runs[2].null)
    before = copy.deepcopy(digits["new"])
    assert torch.equal(before, digits["new"])


def test_large_batches_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found does not depend on the parts."""
    features, bank = torch.randn(50, 4) + 3.0, torch.randn(70, 4)
    whole = shift_map(features, bank)
    monkeypatch.setattr("sal_optim.companions.shift._SAMPLES", 13)
    parts = shift_map(features, bank)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert whole.novelty.mean() > 1.0


def test_what_the_map_refuses() -> None:
    features, bank = torch.randn(8, 4), torch.randn(9, 4)
    with pytest.raises(ValueError, match=r"features.*\(8, 3\).*4 features of the bank"):
        shift_map(features[:, :3], bank)
    with pytest.raises(ValueError, match=r"features.*\(1, 8, 4\).*2 views"):
        shift_map(features[None], bank)
    with pytest.raises(ValueError, match=r"bank.*\(5, 4\).*k \+ 1 = 6"):
        shift_map(features, bank[:5])
    with pytest.raises(ValueError, match=r"features.*not finite"):
        shift_map(features / 0.0, bank)
    with pytest.raises(TypeError, match=r"bank.*list.*floating"):
        shift_map(features, [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"k.*0.*>= 1"):
        shift_map(features, bank, k=0)
    with pytest.raises(ValueError, match=r"quantile.*1.*\(0, 1\)"):
        shift_map(features, bank, quantile=1.0)
