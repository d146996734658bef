"""torchtitan's container of optimizers: it trains, resumes, and is protected. Not its trainer."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import nn

from sal_optim import SALAdamW
from tests.integrations.runs import EXAMPLES, leaves
from tests.testing.layered import problem


def test_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("torchtitan.components.optimizer", exc_type=ImportError)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    kind = importlib.import_module("torchtitan_optimizers").Optimizers
    settings = {"lr": 1e-2, "protection": 0.25, "consolidate_every": 8}
    config = kind.Config(
        implementation="for-loop",
        param_groups=[
            package.ParamGroupConfig(
                pattern=".*", optimizer_name="saladamw", optimizer_kwargs=settings
            )
        ],
    )
    model, inputs, targets = problem()
    whole = kind(config, model_parts=[model])
    (optimizer,) = whole.optimizers
    assert isinstance(optimizer, SALAdamW)

    def train(container: torch.optim.Optimizer, module: nn.Module, steps: int) -> float:
        for _ in range(steps):
            container.zero_grad()
            loss = nn.functional.cross_entropy(module(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            container.step()
        return float(loss.detach())

    first = train(whole, model, 10)
    assert optimizer.diagnostics()["consolidations"] == 1
    other = copy.deepcopy(model)
    resumed = kind(config, model_parts=[other])
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    last = train(whole, model, 10)
    assert train(resumed, other, 10) == last < first
    assert leaves(resumed.optimizers[0].state_dict()) == leaves(optimizer.state_dict())
