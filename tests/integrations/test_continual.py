"""What the callbacks of all trainers do, without a trainer."""

from __future__ import annotations

import pickle
import random
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sal_optim import SALAdamW
from sal_optim.integrations import logged
from sal_optim.integrations.continual import Continual
from tests.integrations.tasks import BATCH, loader, loss_of, network, task


def begun(run: Continual, optimizer: Any, model: nn.Module) -> None:
    run.begin(optimizer, model, lambda data: data, lambda batch: loss_of(model, batch))


class Augmented(torch.utils.data.Dataset[Any]):
    """Rows with noise of Python's and of numpy's generators."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, label = task(1)[index]
        return inputs + random.random() * numpy.random.rand(), label


def test_a_probe_draws_no_random_number_of_python_or_numpy() -> None:
    found = []
    for probe in (None, DataLoader(Augmented(), BATCH)):
        random.seed(0)
        numpy.random.seed(0)
        model = network()
        run = Continual(probe=probe, probe_every=1)
        begun(run, SALAdamW(model.parameters()), model)
        run.stepped(1)
        found.append((random.random(), numpy.random.rand()))
    assert found[0] == found[1]


def test_data_that_can_be_gone_through_once() -> None:
    model = network()
    run = Continual(probe=iter(loader(1)), probe_batches=2, probe_every=1)
    optimizer = SALAdamW(model.parameters())
    begun(run, optimizer, model)
    first = logged(optimizer)["sal/old_loss"]
    assert run.stepped(1)
    assert logged(optimizer)["sal/old_loss"] == first


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"observe_batches": 0}, "observe_batches"),
        ({"probe_every": 0.5}, "probe_every"),
        ({"restore": -1.0}, "restore"),
        ({"restore": [0.1, 1.0]}, "need probe and validation"),
        ({"consolidate": False, "importance_to": "a"}, "consolidate value: False"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Continual(**settings)


@pytest.mark.filterwarnings("ignore:observe")
@pytest.mark.parametrize("name", ["observe", "probe"])
def test_data_without_a_batch(name: str) -> None:
    model = network()
    optimizer = SALAdamW(model.parameters())
    run = Continual(**{name: []})
    with pytest.raises(ValueError, match=f"Invalid {name} value"):
        begun(run, optimizer, model)


@pytest.mark.parametrize(
    ("settings", "protection", "told"),
    [
        ({"importance_to": "no/folder/a.safetensors"}, 10.0, "path value"),
        ({"importance_to": "a.safetensors"}, 0.0, "importance_to value"),
        ({"restore": [0.1, 1.0], "probe": loader(1), "validation": []}, 10.0, "validation value"),
    ],
)
def test_what_could_not_be_done_at_the_end_is_refused_at_the_start(
    settings: dict[str, Any], protection: float, told: str
) -> None:
    model = network()
    optimizer = SALAdamW(model.parameters(), protection=protection)
    with pytest.raises(ValueError, match=told):
        begun(Continual(**settings), optimizer, model)


@pytest.mark.parametrize("restore", [0.5, [0.5, 1.0]])
def test_restoring_without_anchors_is_refused_at_the_start(restore: Any) -> None:
    model = network()
    optimizer = SALAdamW(model.parameters(), pull=0)
    run = Continual(restore=restore, probe=loader(1), validation=loader(2))
    with pytest.raises(ValueError, match="Invalid pull value"):
        begun(run, optimizer, model)


def test_an_importance_file_that_could_not_be_written_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = network(), nn.Parameter(torch.zeros(3))
    run = Continual(importance_to=tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="without 1 of the optimizer's 5 parameters"):
        begun(run, SALAdamW([*model.parameters(), other]), model)
    begun(run, SALAdamW([*model.named_parameters(), ("loss.scale", other)]), model)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="an importance file needs the package safetensors"):
        begun(run, SALAdamW(model.parameters()), model)


def test_a_callback_is_pickled_where_processes_are_started() -> None:
    model, run = network(), Continual(probe_every=7)
    begun(run, SALAdamW(model.parameters()), model)
    assert vars(pickle.loads(pickle.dumps(run))) == vars(Continual(probe_every=7))


def test_one_strength_as_text_is_one() -> None:
    assert Continual(restore="0.5").restore == [0.5]  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError), match="restore"):
        Continual(restore=())
    assert Continual(restore=range(1, 2)).restore == [1.0], "any sequence"
