"""Names in other packages' registries: what they build there trains digits."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import sal_optim
from sal_optim import CommunicationLayer, SALAdamW
from sal_optim.integrations import OPTIMIZERS, protection_of, register
from tests.integrations.runs import EXAMPLES, needs, run
from tests.testing.layered import problem, train


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pytorch_optimizer(name: str) -> None:
    package = pytest.importorskip("pytorch_optimizer")
    register()
    assert package.load_optimizer(name) is OPTIMIZERS[name]
    model, inputs, targets = problem()
    optimizer = package.create_optimizer(model, name, lr=1e-2)
    losses = train(model, optimizer, inputs, targets, 20)
    assert isinstance(optimizer, OPTIMIZERS[name])
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torch_optimizer(name: str) -> None:
    package = pytest.importorskip("torch_optimizer")
    register()
    assert package.get(name) is OPTIMIZERS[name]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_timm(name: str) -> None:
    importlib.import_module("tests.integrations.shim.sitecustomize")
    timm = pytest.importorskip("timm.optim", exc_type=ImportError)
    register()
    model, inputs, targets = problem()
    optimizer = timm.create_optimizer_v2(model, name, lr=1e-2, weight_decay=1e-3)
    losses = train(model, optimizer, inputs, targets, 20)
    assert isinstance(optimizer, OPTIMIZERS[name])
    assert losses[-1] < losses[0]


def test_protection_is_found_through_wrappers() -> None:
    model = nn.Linear(2, 2)
    optimizer = SALAdamW(model.parameters())
    bare = torch.optim.SGD(model.parameters(), lr=0.1)
    assert protection_of(optimizer) is optimizer
    assert protection_of(bare) is None
    assert protection_of(None) is None
    layer = CommunicationLayer(bare)
    assert protection_of(bare) is layer
    accelerate = pytest.importorskip("accelerate")
    wrapped = accelerate.Accelerator(cpu=True).prepare(optimizer)
    assert wrapped is not optimizer
    assert protection_of(wrapped) is optimizer
    assert isinstance(protection_of(wrapped), sal_optim.SALOptimizer)


def test_protection_is_found_inside_of_timms_lookahead() -> None:
    """Its diagnostics were in no trainer's log, though it protected."""
    importlib.import_module("tests.integrations.shim.sitecustomize")
    timm = pytest.importorskip("timm.optim", exc_type=ImportError)
    register()
    model, inputs, targets = problem()
    optimizer = timm.create_optimizer_v2(model, "lookahead_saladamw", lr=1e-2)
    train(model, optimizer, inputs, targets, 20)
    found = protection_of(optimizer)
    assert isinstance(found, SALAdamW)
    found.consolidate()
    assert found.diagnostics()["consolidations"] == 1.0


def test_protection_is_found_inside_of_sam() -> None:
    package = pytest.importorskip("pytorch_optimizer")
    model, inputs, targets = problem()
    optimizer = package.SAM(model.parameters(), base_optimizer=SALAdamW, lr=1e-2)
    for _ in range(4):
        for step in (optimizer.first_step, optimizer.second_step):
            nn.functional.cross_entropy(model(inputs), targets).backward()
            step(zero_grad=True)
    assert protection_of(optimizer) is optimizer.base_optimizer


@pytest.mark.parametrize("registry", ["timm", "pytorch_optimizer", "torch_optimizer"])
def test_the_example(registry: str, tmp_path: Path) -> None:
    needs(registry)
    shown = run([str(EXAMPLES / "registries.py"), "--registry", registry], tmp_path)
    found = re.findall(r"task (\d): loss (\d\.\d+), consolidations (\d)", shown)
    assert [(task, times) for task, _, times in found] == [("0", "3"), ("1", "7")]
    assert all(float(loss) < 1.5 for _, loss, _ in found)
