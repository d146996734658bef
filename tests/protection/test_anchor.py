"""Anchors in eight bits: what rounding does, and that everything else goes on as with floats."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sal_optim
from sal_optim import CommunicationLayer
from sal_optim.protection import anchor
from sal_optim.utils.rounding import dither
from tests.testing.drive import assert_equal, drive, make_params, profile, stream
from tests.testing.rows import KINDS, Row

GROUP = {"state_dtype": "int8"}


def kept(values: Tensor) -> dict[str, Any]:
    return anchor.begun(values, GROUP)


@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 2, 2), (4, 1), (0, 3), (3, 0)])
def test_rounding(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1
    state = kept(values)
    assert state["anchor"].dtype == torch.int8
    assert state["anchor_scale"].shape == (shape[0],) + (1,) * (len(shape) - 1)
    found = anchor.read(state, torch.float32)
    assert bool(((found - values).abs() <= state["anchor_scale"]).all())


def test_what_does_not_move_is_not_rounded_anew() -> None:
    values = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    state = kept(values)
    first = state["anchor"].clone()
    for count in range(200):
        anchor.write(state, anchor.read(state, torch.float32), dither(float(count)), values)
    assert torch.equal(state["anchor"], first)


def test_small_moves_add_up() -> None:
    """A hundredth of a place in each of 1,000 consolidations; nearest rounding moves nothing."""
    state = kept(torch.linspace(-1.0, 1.0, 64).repeat(8, 1))
    start, step = anchor.read(state, torch.float32), float(state["anchor_scale"][0]) / 100
    inner = slice(16, 48)
    for count in range(1000):
        values = anchor.read(state, torch.float32)
        values[:, inner] += step
        anchor.write(state, values, dither(float(count)), values)
    moved = (anchor.read(state, torch.float32) - start)[:, inner].mean()
    assert float(moved) == pytest.approx(1000 * step, rel=0.1)


def test_a_scale_follows_its_row() -> None:
    state = kept(torch.ones(2, 4))
    for size in (1e-6, 1e6, 0.0, 3.0):
        values = torch.full((2, 4), size)
        anchor.write(state, values, 0.5, values)
        torch.testing.assert_close(anchor.read(state, torch.float32), values, rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_optimizer(class_row: Row, kind: str) -> None:
    """All of it is saved and resumed exactly."""
    params = make_params()
    settings = {"importance": kind, "consolidate_every": 20, "state_dtype": "int8"}
    optimizer = class_row(params, **settings)
    drive(optimizer, params, stream(params, profile(100, (50,))))
    for param in params:
        state, matrix = optimizer.state[param], param.dim() > 1
        assert state["anchor"].dtype == (torch.int8 if matrix else torch.bfloat16)
        assert ("anchor_scale" in state) == matrix
    assert 0.0 < optimizer.diagnostics()["drift"] < 10.0
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    other = class_row(twins, **settings)
    other.load_state_dict(torch.load(file, weights_only=True))
    for both, stepped in ((params, optimizer), (twins, other)):
        drive(stepped, both, stream(both, profile(50), seed=3))
    assert_equal(params, twins)


def test_weights_end_near_those_of_float_anchors() -> None:
    """No further apart than one place of the largest weight's row."""
    ends = []
    for dtype in ("int8", None):
        params = make_params()
        optimizer = sal_optim.SALSGD(params, lr=0.01, state_dtype=dtype, consolidate_every=20)
        drive(optimizer, params, stream(params, profile(100, (50,))))
        ends.append(torch.cat([p.detach().flatten() for p in params]))
    assert 0.0 < float((ends[0] - ends[1]).abs().max()) < float(ends[1].abs().max()) / 100


def test_restore_reaches_the_anchor() -> None:
    model = nn.Linear(6, 4)
    settings = {"state_dtype": torch.int8, "importance": "diagonal", "lr": 0.01}
    optimizer = sal_optim.SALAdam(model.parameters(), **settings)
    x, y = torch.randn(32, 6), torch.arange(32) % 4
    for _ in range(20):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.consolidate()
    kept_there = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
        model.weight[0, 0] = torch.nan
    optimizer.restore(1e30)
    scale = optimizer.state[model.weight]["anchor_scale"]
    assert bool(((model.weight - kept_there).abs() <= 1.01 * scale).all())


def test_an_importance_file(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    models = [nn.Linear(6, 4) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first, second = (
        sal_optim.SALAdam(m.named_parameters(), state_dtype=dtype, lr=0.01)
        for m, dtype in zip(models, ("int8", None), strict=True)
    )
    models[0](torch.randn(8, 6)).square().mean().backward()
    for _ in range(8):
        first.step()
    first.consolidate()
    sal_optim.save_importance(first, tmp_path / "a")
    sal_optim.load_importance(second, tmp_path / "a")
    there = anchor.read(first.state[models[0].weight], torch.float32)
    assert torch.equal(second.controller.state_of(models[1].weight)["anchor"], there)
    again = sal_optim.SALAdam(models[1].named_parameters(), state_dtype="int8")
    sal_optim.load_importance(again, tmp_path / "a")
    state = again.controller.state_of(models[1].weight)
    torch.testing.assert_close(
        anchor.read(state, torch.float32), there, rtol=0, atol=float(state["anchor_scale"].max())
    )


def test_a_head_that_grows() -> None:
    old, new = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5, 5))
    optimizer = sal_optim.SALSGD([old], lr=0.1, state_dtype="int8")
    old.grad = torch.randn(3, 5)
    for _ in range(4):
        optimizer.step()
    optimizer.consolidate()
    before = anchor.read(optimizer.state[old], torch.float32)
    with torch.no_grad():
        new[:3] = old
    optimizer.grow(old, new)
    assert torch.equal(anchor.read(optimizer.state[new], torch.float32)[:3], before)


def test_a_layer() -> None:
    params = make_params()
    base = torch.optim.RMSprop(params, lr=1e-3)
    layer = CommunicationLayer(base, state_dtype="int8")
    drive(base, params, stream(params, profile(30)))
    layer.consolidate()
    saved = copy.deepcopy(base.state_dict())
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    other = torch.optim.RMSprop(twins, lr=1e-3)
    CommunicationLayer(other, state_dtype="int8")
    other.load_state_dict(saved)
    matrix = next(index for index, p in enumerate(params) if p.dim() > 1)
    assert other.state[twins[matrix]]["anchor"].dtype == torch.int8
    for both, stepped in ((params, base), (twins, other)):
        drive(stepped, both, stream(both, profile(20), seed=3))
    assert_equal(params, twins)


def test_a_step_leaves_anchors_alone() -> None:
    """Also in bfloat16, where those of vectors are in the dtype of their weights."""
    params = [nn.Parameter(torch.randn(3, 5).bfloat16()), nn.Parameter(torch.randn(5).bfloat16())]
    settings = {"state_dtype": "int8", "importance": "diagonal", "consolidate_every": None}
    optimizer = sal_optim.SALAdam(params, **settings)
    optimizer.consolidate()
    for step in range(12):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
        if step == 3:
            optimizer.consolidate()
            before = [optimizer.state[param]["anchor"].clone() for param in params]
    assert_equal([optimizer.state[param]["anchor"] for param in params], before)


def test_a_checkpoint_without_its_scale_is_refused() -> None:
    param = nn.Parameter(torch.randn(3, 5))
    optimizer = sal_optim.SALSGD([param], lr=0.1, state_dtype="int8")
    param.grad = torch.randn(3, 5)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][0]["anchor_scale"]
    with pytest.raises(KeyError, match="anchor_scale"):
        optimizer.load_state_dict(saved)
