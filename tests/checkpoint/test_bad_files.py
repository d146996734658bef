"""Bad days of checkpoints: broken, untrusted, older, newer and foreign ones.

Whatever happens, either all goes on rightly or an error names what is wrong and nothing changed.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.testing.drive import (
    assert_equal,
    assert_names,
    assert_same_state,
    clone_params,
    drive,
    make_params,
    profile,
    reload,
    seasoned,
    snapshot,
    step_with,
    stream,
)
from tests.testing.rows import ROWS, PlainLion, Row, row_of

Mode = dict[str, Any]


def saved_file(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_a_truncated_file(row: Row) -> None:
    _, optimizer = seasoned(row)
    before, data = snapshot(optimizer), saved_file(optimizer.state_dict())
    for length in (0, 1, 100, *range(500, len(data) - 1, max(1, len(data) // 20)), len(data) - 1):
        with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError, ValueError)):
            optimizer.load_state_dict(torch.load(io.BytesIO(data[:length]), weights_only=True))
        assert_same_state(snapshot(optimizer), before)
    optimizer.load_state_dict(torch.load(io.BytesIO(data), weights_only=True))
    assert_same_state(snapshot(optimizer), before)


class Evil:
    """Unpickling it would make a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("where", ["group", "state", "threshold", "top"])
def test_an_untrusted_file_executes_nothing(tmp_path: Path, class_row: Row, where: str) -> None:
    _, optimizer = seasoned(class_row)
    before, trap = snapshot(optimizer), tmp_path / "trap"
    state = copy.deepcopy(optimizer.state_dict())
    targets = {
        "group": state["param_groups"][0],
        "state": state["state"][0],
        "threshold": state["param_groups"][0]["threshold"],
        "top": state,
    }
    targets[where]["evil"] = Evil(str(trap))
    data = saved_file(state)
    with pytest.raises(pickle.UnpicklingError):
        optimizer.load_state_dict(torch.load(io.BytesIO(data), weights_only=True))
    assert not trap.exists()
    assert_same_state(snapshot(optimizer), before)


# ------------------------------------------------------------- older, newer, foreign checkpoints


def test_a_newer_checkpoint(row: Row, mode: Mode) -> None:
    """What this version doesn't know is kept for the one that does."""
    params, optimizer = seasoned(row, **mode)
    newer = copy.deepcopy(optimizer.state_dict())
    newer["param_groups"][0].update(novelty=1.5, novel_names=["a", "b"])
    newer["param_groups"][0]["threshold"]["novel"] = 2.0
    for state in newer["state"].values():
        state.update(novel_scalar=3, novel_tensor=torch.ones(17), novel_table={"a": [1, 2.0]})
    new = clone_params(params)
    resumed = row(new, **mode)
    resumed.load_state_dict(reload(newer))
    for now in stream(params, profile(5)):
        step_with(optimizer, params, now)
        step_with(resumed, new, now)
    assert_equal(params, new)
    group = resumed.state_dict()["param_groups"][0]
    assert (group["novelty"], group["novel_names"]) == (1.5, ["a", "b"])
    assert group["threshold"]["novel"] == 2.0
    assert resumed.state[new[0]]["novel_tensor"].shape == (17,)


def test_an_older_checkpoint(row: Row, mode: Mode) -> None:
    """Fewer settings and threshold entries: this optimizer's own settings, a fresh start."""
    params, optimizer = seasoned(row, **mode)
    older = copy.deepcopy(optimizer.state_dict())
    group = older["param_groups"][0]
    for name in ("pull", "retention", "rank", "state_dtype", "consolidate_every"):
        del group[name]
    del group["threshold"]["suspicion"], group["threshold"]["changes"]
    new = clone_params(params)
    resumed = row(new, **mode, pull=3.0)
    resumed.load_state_dict(reload(older))
    assert resumed.param_groups[0]["pull"] == 3.0
    assert resumed.param_groups[0]["threshold"]["suspicion"] == 0.0
    for now in stream(params, profile(5)):
        step_with(resumed, new, now)
    assert all(bool(torch.isfinite(param).all()) for param in new)


def _trained(optimizer: Any, params: list[Tensor], steps: int = 40) -> dict[str, Any]:
    for now in stream(params, profile(steps)):
        step_with(optimizer, params, now)
    return reload(optimizer.state_dict())


FOREIGN: dict[str, Callable[[list[Tensor]], Any]] = {
    "Adam": torch.optim.Adam,
    "AdamW": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "SGD": torch.optim.SGD,
    "SGD-momentum": lambda p: torch.optim.SGD(p, momentum=0.9),
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
    "Lion": PlainLion,
    **{row.name: row for row in ROWS},
}


@pytest.mark.parametrize("source", FOREIGN)
def test_a_foreign_checkpoint(row: Row, source: str) -> None:
    """It loads and each update is of a size that the base optimizer makes, or nothing changes."""
    theirs = make_params()
    foreign = _trained(FOREIGN[source](theirs), theirs)
    params, optimizer = seasoned(row)
    before = snapshot(optimizer)
    try:
        optimizer.load_state_dict(foreign)
    except (KeyError, ValueError, TypeError) as error:
        assert_names(error, ["state", "group"])
        assert_same_state(snapshot(optimizer), before)
        return
    lr = optimizer.param_groups[0]["lr"]
    for now in stream(params, profile(5), seed=9):
        still = clone_params(params)
        step_with(optimizer, params, now)
        for old, new in zip(still, params, strict=True):
            moved = float((new.detach() - old.detach()).abs().max())
            # Adam's largest first steps; those of a moment without its fellow are 30 times lr.
            assert moved <= 6 * lr + 2 * lr * float(old.detach().abs().max())


def test_lion_does_not_load_into_adam() -> None:
    """Its one moment would be divided by the root of a second one that begins at 0."""
    adam = row_of("SALAdam")
    theirs = make_params()
    foreign = _trained(PlainLion(theirs), theirs)
    with pytest.raises(ValueError, match="no 'exp_avg_sq'"):
        adam(make_params()).load_state_dict(foreign)
    older = _trained(torch.optim.Adam(theirs), theirs)
    del older["state"][2]["step"]
    with pytest.raises(KeyError, match="no 'step'"):
        adam(make_params()).load_state_dict(older)


def test_steps_of_another_optimizer_are_not_counted() -> None:
    """They would correct the bias of moments that begin now as if these were old."""
    adam = row_of("SALAdam")
    params = make_params()
    optimizer = adam(params)
    optimizer.load_state_dict(_trained(torch.optim.Adagrad(params), params, steps=400))
    twins = clone_params(params)
    group = optimizer.param_groups[0]  # with the settings of theirs
    fresh = adam(twins, lr=group["lr"], eps=group["eps"])
    for now in stream(params, profile(5)):
        step_with(optimizer, params, now)
        step_with(fresh, twins, now)
    assert_equal(params, twins)


def test_a_buffer_saved_as_none() -> None:
    """As older versions of torch's SGD save it where there is no momentum."""
    sgd = row_of("SALSGD-momentum")
    params = make_params()
    saved = _trained(torch.optim.SGD(params), params)
    saved["state"] = {index: {"momentum_buffer": None} for index in range(len(params))}
    twins = clone_params(params)
    optimizer, fresh = sgd(params), sgd(twins)
    saved["param_groups"][0].update({"lr": 0.01, "momentum": 0.9})
    optimizer.load_state_dict(saved)
    fresh.load_state_dict({**saved, "state": {}})
    for now in stream(params, profile(5)):
        step_with(optimizer, params, now)
        step_with(fresh, twins, now)
    assert_equal(params, twins)


def test_another_model(row: Row, mode: Mode) -> None:
    _, optimizer = seasoned(row, **mode)
    before = snapshot(optimizer)
    shapes = {
        "another order": ((5,), (6, 5), (3, 2, 4), (1,), ()),
        "another width": ((6, 7), (7,), (3, 2, 4), (1,), ()),
        "one fewer": ((6, 5), (5,), (3, 2, 4), (1,)),
        "one more": ((6, 5), (5,), (3, 2, 4), (1,), (), (2,)),
    }
    for case, other in shapes.items():
        theirs = make_params(other)
        with pytest.raises((ValueError, KeyError), match=r"shape|param"):
            optimizer.load_state_dict(_trained(row(theirs, **mode), theirs, 3))
        assert_same_state(snapshot(optimizer), before)
        assert case


def test_a_user_hook_that_fails_after_the_load(class_row: Row) -> None:
    """The load is then complete: float32 statistics beside small weights included."""
    params = make_params(dtype=torch.bfloat16)
    optimizer = class_row(params)
    assert len(drive(optimizer, params, stream(params, profile(80, (60,))))) == 1
    resumed = class_row(clone_params(params))

    def fail(_: Any) -> None:
        raise OSError("the disk is full")

    resumed.register_load_state_dict_post_hook(fail)
    with pytest.raises(OSError, match="disk"):
        resumed.load_state_dict(optimizer.state_dict())
    assert_same_state(snapshot(resumed), snapshot(optimizer))


def test_a_user_hook_that_breaks_the_checkpoint(class_row: Row) -> None:
    _, optimizer = seasoned(class_row)
    before = snapshot(optimizer)
    saved = copy.deepcopy(optimizer.state_dict())

    def spoil(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, "state": {0: 3}}

    handle = optimizer.register_load_state_dict_pre_hook(spoil)
    with pytest.raises(TypeError, match="state of parameter 0"):
        optimizer.load_state_dict(saved)
    assert_same_state(snapshot(optimizer), before)
    handle.remove()
    optimizer.load_state_dict(saved)


def test_a_group_keeps_its_own_settings(class_row: Row) -> None:
    """A checkpoint of torch.optim knows nothing of protection; each group keeps its own."""
    theirs = make_params()
    saved = _trained(class_row.base([{"params": theirs[:2]}, {"params": theirs[2:]}]), theirs, 3)
    params = make_params()
    optimizer = class_row([{"params": params[:2]}, {"params": params[2:], "protection": 0.7}])
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[1]["protection"] == 0.7
    assert optimizer.param_groups[0]["protection"] == optimizer.defaults["protection"]


def test_no_checkpoint_turns_on_what_is_not_supported() -> None:
    adamw = row_of("SALAdamW")
    theirs = make_params()
    saved = _trained(torch.optim.Adam(theirs), theirs, 3)
    saved["param_groups"][0].update(capturable=True, differentiable=True, fused=True)
    optimizer = adamw(make_params())
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert not group["capturable"]
    assert not group["differentiable"]
    assert group["decoupled_weight_decay"], "SALAdamW stays AdamW, as torch's does"
