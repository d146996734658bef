"""Whatever is asked for and does not happen is told once."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from typing import Any

import pytest
import torch

from sal_optim import CommunicationLayer, SALAdam
from tests.testing.drive import make_params, profile, reload, step_with, stream
from tests.testing.rows import Row


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, None])
@pytest.mark.parametrize("layered", [False, True])
def test_nothing_to_consolidate_is_told_once(value: float | None, layered: bool) -> None:
    """``None`` stands for a learning rate of 0. Four windows of the clock are 240 steps."""
    params = make_params([(4, 3)])
    lr = 0.0 if value is None else 0.01
    if layered:
        optimizer: Any = torch.optim.SGD(params, lr=lr)
        layer = CommunicationLayer(optimizer)
        assert layer.diagnostics()["consolidations"] == 0
    else:
        optimizer = SALAdam(params, lr=lr)
    grad = torch.full((4, 3), 1.0 if value is None else value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(239):
            step_with(optimizer, params, [grad])
        assert not caught
        for _ in range(300):
            step_with(optimizer, params, [grad])
    assert len(caught) == 1
    assert "in 240 steps there was nothing to consolidate" in str(caught[0].message)


@pytest.mark.parametrize("settings", [{"consolidate_every": None}, {"protection": 0.0}])
def test_where_no_consolidation_is_asked_for_none_is_missed(settings: dict[str, Any]) -> None:
    params = make_params([(4, 3)])
    optimizer = SALAdam(params, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(500):
            step_with(optimizer, params, [torch.zeros(4, 3)])


def test_ordinary_training_tells_nothing(class_row: Row) -> None:
    params = make_params()
    optimizer = class_row(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for now in stream(params, profile(300, (150,))):
            step_with(optimizer, params, now)


@pytest.mark.parametrize("layered", [False, True])
def test_a_framework_that_empties_what_was_loaded(layered: bool) -> None:
    """The importance is gone: one warning, and clock, counts and strength begin anew too."""

    def build(params: list[torch.Tensor]) -> tuple[Any, Any]:
        if not layered:
            optimizer = SALAdam(params, lr=0.01)
            return optimizer, optimizer
        inner = torch.optim.Adam(params, lr=0.01)
        return CommunicationLayer(inner), inner

    params, twin = make_params(), make_params()
    _, first = build(params)
    grads = stream(params, profile(70))
    for now in grads:
        step_with(first, params, now)
    protection, optimizer = build(twin)
    optimizer.load_state_dict(reload(first.state_dict()))
    assert protection.diagnostics()["consolidations"] == 1
    optimizer.state = defaultdict(dict)
    with pytest.warns(UserWarning, match="importance of 1 consolidations is gone"):
        step_with(optimizer, twin, grads[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for now in grads[1:59]:
            step_with(optimizer, twin, now)
    assert protection.diagnostics()["consolidations"] == 0
    step_with(optimizer, twin, grads[0])
    assert protection.diagnostics()["consolidations"] == 1


@pytest.mark.parametrize("every", ["auto", None])
@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.filterwarnings("error")
def test_parameters_that_were_replaced_are_told_once(layered: bool, every: Any) -> None:
    """An optimizer that was made before the weights were loaded trains nothing, as torch's does."""
    model = torch.nn.Linear(4, 2)
    inner: Any
    if layered:
        inner = torch.optim.Adam(model.parameters())
        protection: Any = CommunicationLayer(inner, consolidate_every=every)
    else:
        protection = inner = SALAdam(model.parameters(), consolidate_every=every)
    model.load_state_dict(model.state_dict(), assign=True)

    def train(steps: int) -> None:
        for _ in range(steps):
            inner.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            inner.step()

    train(239)
    with pytest.warns(UserWarning, match="in 240 steps no parameter had a gradient"):
        train(1)
    train(300)
    for group in inner.param_groups:
        group["params"] = list(model.parameters())
    train(61)
    assert protection.diagnostics()["consolidations"] == (0.0 if every is None else 1.0)
