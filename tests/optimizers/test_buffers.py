"""What is no parameter of its own: running statistics, tied and parametrized weights, copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sal_optim import CommunicationLayer, SALAdam
from sal_optim.monitoring.report import statistics_in_words
from sal_optim.protection.buffers import running_statistics
from tests.testing.drive import assert_equal, clone_params, reload


def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.tensor(found.data / 16).float(), torch.tensor(found.target)


def network(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def train(model: nn.Module, optimizer: Any, steps: int, *, brighter: bool = False) -> None:
    x, y = digits()
    draw = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=draw)
        optimizer.zero_grad()
        batch = x[rows] + 1 if brighter else x[rows]
        functional.cross_entropy(model(batch), y[rows]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    x, y = digits()
    return float((model.eval()(x).argmax(1) == y).float().mean())


def protected(model: nn.Module, layered: bool) -> tuple[Any, Any]:
    """The protection, and the optimizer that steps."""
    if not layered:
        optimizer = SALAdam(model.parameters(), lr=3e-3)
        return optimizer, optimizer
    inner = torch.optim.Adam(model.parameters(), lr=3e-3)
    return CommunicationLayer(inner), inner


@pytest.mark.parametrize("layered", [False, True])
def test_running_statistics_go_back_with_the_weights(layered: bool) -> None:
    model = network()
    protection, optimizer = protected(model, layered)
    train(model, optimizer, 150)
    protection.consolidate(model=model)
    before, kept = accuracy(model), copy.deepcopy(running_statistics(model))
    assert sorted(kept) == ["2.num_batches_tracked", "2.running_mean", "2.running_var"]
    train(model, optimizer, 100, brighter=True)
    # Through a file, into new objects.
    weights = copy.deepcopy(model)
    other, inner = protected(weights, layered)
    inner.load_state_dict(reload(optimizer.state_dict()))
    other.restore(1e30)
    left = accuracy(weights)
    other.restore(1e30, model=weights)
    assert_equal([*running_statistics(weights).values()], [*kept.values()])
    assert before > 0.9
    assert accuracy(weights) > before - 0.02
    assert left < before - 0.1


def test_a_restore_of_nothing_leaves_statistics_alone() -> None:
    model = network()
    optimizer, _ = protected(model, False)
    train(model, optimizer, 8)
    optimizer.consolidate(model=model)
    train(model, optimizer, 8)
    now = copy.deepcopy(running_statistics(model))
    optimizer.restore(0.0, model=model)
    assert_equal([*running_statistics(model).values()], [*now.values()])


def test_a_model_without_running_statistics_is_left_as_it_is() -> None:
    model = network(norm=False)
    optimizer, _ = protected(model, False)
    train(model, optimizer, 8)
    optimizer.consolidate(model=model)
    assert "buffers" not in optimizer.param_groups[0]
    optimizer.restore(1.0, model=model)


def test_running_statistics_outlive_the_first_group() -> None:
    """Groups are removed where a part of the model is no longer trained."""
    model = network()
    optimizer = SALAdam([{"params": model[:5].parameters()}, {"params": model[6].parameters()}])
    train(model, optimizer, 8)
    optimizer.consolidate(model=model)
    kept = copy.deepcopy(running_statistics(model))
    del optimizer.param_groups[0]
    train(model, optimizer, 8)
    optimizer.restore(1.0, model=model)
    assert_equal([*running_statistics(model).values()], [*kept.values()])


def test_what_is_refused_changes_nothing() -> None:
    model = network()
    optimizer, _ = protected(model, False)
    train(model, optimizer, 8)
    optimizer.consolidate()
    train(model, optimizer, 8)
    still = clone_params([*model.parameters()])
    with pytest.raises(ValueError, match=r"model.*nothing.*'2\.running_mean'.*consolidate\(model"):
        optimizer.restore(1.0, model=model)
    with pytest.raises(TypeError, match="model"):
        optimizer.consolidate(model="resnet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model"):
        optimizer.consolidate(model=network())
    assert_equal([*model.parameters()], still)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["buffers"] = [1]
    with pytest.raises(TypeError, match=r"'buffers'\] is \[1\]; it must be a dict of tensors"):
        optimizer.load_state_dict(saved)


def test_the_report_tells_of_running_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    optimizer, _ = protected(model, False)
    assert "3 buffers" in statistics_in_words(optimizer, model)
    assert "consolidate(model=model) keeps them" in statistics_in_words(optimizer, model)
    optimizer.consolidate(model=model)
    assert "are kept; restore(" in statistics_in_words(optimizer, model)
    assert statistics_in_words(SALAdam(network(False).parameters()), network(False)) == ""
    pytest.importorskip("rich")
    import sal_optim

    sal_optim.report(optimizer, model)
    assert "3 buffers of running statistics" in " ".join(capsys.readouterr().out.split())


# ------------------------------------------------------------------ parameters in several places


class Tied(nn.Module):
    """An encoder and a decoder that share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(64, 10, bias=False), nn.Linear(10, 64, bias=False)
        self.decoder.weight = nn.Parameter(self.encoder.weight.detach().t().contiguous())
        self.out = nn.Linear(64, 10, bias=False)
        self.out.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.decoder(self.encoder(x)))
        return found


def test_tied_weights_are_one_parameter() -> None:
    """``parameters()`` names it once: one importance and one anchor, of the sum of gradients."""
    model = Tied()
    optimizer = SALAdam(model.parameters(), lr=3e-3)
    train(model, optimizer, 70)
    optimizer.consolidate()
    assert len(optimizer.state) == 2
    train(model, optimizer, 10)
    assert model.out.weight is model.encoder.weight
    assert float(optimizer.stability(model.out.weight).max()) > 0.0


def test_parametrized_weights_are_protected_as_they_are_trained() -> None:
    """Of ``weight_norm`` the magnitude and the direction have importance, not their product."""
    model = network(norm=False)
    parametrizations.weight_norm(model[6])
    optimizer = SALAdam(model.parameters(), lr=3e-3)
    train(model, optimizer, 70)
    optimizer.consolidate()
    train(model, optimizer, 50, brighter=True)
    optimizer.restore(1e30)
    parts = model[6].parametrizations.weight
    for part in (parts.original0, parts.original1):
        assert float(optimizer.stability(part).max()) > 0.0
        torch.testing.assert_close(
            part.detach(), optimizer.state[part]["anchor"], atol=1e-4, rtol=0
        )


def test_a_copy_of_the_averaged_weights_follows() -> None:
    """An EMA copy is no parameter: it averages what was protected, and restore() passes it by."""
    model = network()
    optimizer, _ = protected(model, False)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(7):
        train(model, optimizer, 10)
        average.update_parameters(model)
    optimizer.consolidate(model=model)
    before = clone_params([*average.parameters()])
    optimizer.restore(1e30, model=model)
    assert_equal([*average.parameters()], before)
    average.update_parameters(model)
    assert float(optimizer.stability(model[1].weight).max()) > 0.0
