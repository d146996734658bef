"""The plan of costs against what is measured of small runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.commands import memory
from benchmarks.cost import plan
from benchmarks.cost.plan import Model, Tensors
from benchmarks.data.errors import UserError
from sal_optim import SALAdamW
from sal_optim.importance import IMPORTANCE, Penalty, kind_of
from sal_optim.sharding.stacked import layout_for

SHAPES = [(200, 90), (40, 100), (20, 300), (12, 8)]
RANK = 16


def _addmm(_: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return int(2 * left[0] * left[1] * right[1])


def flops(call: Any) -> int:
    inside = {torch.ops.aten.addmm_: _addmm}  # which the counter does not know
    with FlopCounterMode(display=False, custom_mapping=inside) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_operations(shape: tuple[int, int]) -> None:
    kind = IMPORTANCE["kronecker"]
    state: dict[str, Any] = {n: torch.zeros(s) for n, s in kind.shapes(shape, RANK).items()}
    state["anchor"] = torch.zeros(shape)
    grad = torch.randn(shape)
    gathered = flops(lambda: kind.accumulate([state], [grad], 1.0, 0.0))
    assert gathered == plan.gathering(*shape, RANK)
    merge = {"new": 1.0, "old": 0.0, "memory": 0.2, "at": 0.0}
    assert flops(lambda: kind.merge(state, grad, **merge)) == plan.merging(*shape, RANK)
    one = flops(lambda: kind.protect([state], [grad], None, 1.0))
    both = flops(lambda: kind.protect([state], [grad], Penalty([grad.clone()], 0.5), 1.0))
    assert one == plan.damping(*shape, RANK)
    assert both == one + plan.penalty(*shape, RANK)


def test_bytes() -> None:
    """Of one process, and of the largest of four."""
    params = [nn.Parameter(torch.randn(shape)) for shape in (*SHAPES, (50,))]
    optimizer = SALAdamW(params)
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    own = ("pending", "evidence", "left_", "right_", "anchor")
    kept = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, Tensor) and name.startswith(own)
    )
    model = Model("small", tuple(Tensors(1, tuple(param.shape)) for param in params))
    found = plan.plan(model, 1)
    assert found.factors + found.anchor == kept
    assert found.parameters == model.size
    parts = plan.plan(model, 4)
    assert parts.anchor == 4 * sum(-(-p.shape[0] // 4) * math.prod(p.shape[1:]) for p in params)


@pytest.mark.parametrize("rows", [2048, 2000])
def test_bytes_of_blocks(rows: int) -> None:
    """As state is stacked for four processes."""
    layout = layout_for((rows, 64), (4,), (0,))
    kind = kind_of("kronecker", torch.empty(rows, 64), layout=layout, rank=RANK)
    shapes = kind.shapes((rows, 64), RANK).values()
    whole = 4 * sum(math.prod(shape) for shape in shapes)
    found = plan.plan(Model("one", (Tensors(1, (rows, 64)),)), 4)
    assert found.factors == whole // 4
    assert found.blocks == (2 if rows == 2048 else 1)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert memory.main(["--plan", "1b"]) == 0
    assert "1,235,814,400 parameters" in capsys.readouterr().out
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"name": "own", "tensors": [{"count": 2, "shape": [64, 64]}]}))
    assert memory.main(["--plan", str(file), "--two-byte"]) == 0
    assert "8,192 parameters" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--plan.*known by name: 1b, 400b, 70b, 8b"):
        memory.main(["--plan", str(tmp_path / "none.json")])
