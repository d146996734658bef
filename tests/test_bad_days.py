"""Bad days: killed processes, broken and foreign files, gradients and parameters gone wrong.

Whatever happens, either all goes on rightly or an error names what is wrong and nothing changed.
"""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim import SALOptimizer
from tests.drive import (
    assert_equal,
    assert_names,
    assert_same_state,
    clone_params,
    consolidations,
    drive,
    make_params,
    profile,
    reload,
    seasoned,
    snapshot,
    step_with,
    stream,
)
from tests.rows import ROWS, PlainLion, Row

Mode = dict[str, Any]
STEPS, CHANGE = 90, 60


# -------------------------------------------------------------------------------- killed processes


class Mortal(io.FileIO):
    """A file whose process dies at its n-th write, as by kill -9."""

    writes_left = -1

    def write(self, data: Any) -> int:
        type(self).writes_left -= 1
        if self.writes_left == 0:
            super().write(bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(data)


def train(folder: Path, row: Row, deaths: int = -1) -> tuple[list[Tensor], SALOptimizer]:
    """Train from the newest checkpoint to the end; save every 10 steps, by a rename."""
    params = make_params()
    optimizer = row(params)
    grads = stream(params, profile(STEPS, (CHANGE,)))
    start, file = 0, folder / "checkpoint.pt"
    if file.exists():
        saved = torch.load(file, weights_only=True)
        start = saved["step"]
        optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for param, value in zip(params, saved["params"], strict=True):
                param.copy_(value)
    for step in range(start, STEPS):
        step_with(optimizer, params, grads[step])
        if step % 10 == 1:
            # A checkpoint is several writes; with deaths, one of them is the last.
            Mortal.writes_left = deaths if step in (11, 61) else -1
            new = folder / "checkpoint.new"
            with Mortal(str(new), "w") as opened:
                state = {"step": step + 1, "optimizer": optimizer.state_dict(), "params": params}
                torch.save({**state, "params": [p.detach() for p in params]}, opened)
            new.replace(file)
    return params, optimizer


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
@pytest.mark.parametrize("name", ["SALAdamW", "SALLion"])
def test_kill_9_during_a_checkpoint(tmp_path: Path, name: str) -> None:
    """Twice: once in the first regime, once as a change has begun and is not confirmed."""
    row = next(row for row in ROWS if row.name == name)
    code = (
        "import sys; from pathlib import Path; from tests.test_bad_days import train, ROWS; "
        f"row = next(r for r in ROWS if r.name == {name!r}); "
        "train(Path(sys.argv[1]), row, deaths=int(sys.argv[2]))"
    )
    for writes in (2, 5):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(writes)],
            cwd=Path(__file__).parent.parent,
            timeout=120,
            capture_output=True,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (tmp_path / "checkpoint.new").exists(), "it died amid the file"
        if writes == 2:
            # The file of step 2 is the newest whole one; go past the place it died at.
            assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
            _advance(tmp_path, row, 52)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 52
    params, optimizer = train(tmp_path, row)
    (tmp_path / "whole").mkdir()
    expected, whole = train(tmp_path / "whole", row)
    assert consolidations(whole) == 1
    assert_equal(params, expected)
    assert_same_state(snapshot(optimizer), snapshot(whole))


def _advance(folder: Path, row: Row, until: int) -> None:
    """Leave the checkpoint that an unbroken run leaves at this step."""
    global STEPS
    steps, STEPS = STEPS, until
    try:
        train(folder, row)
    finally:
        STEPS = steps


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
    for name in ("pull", "retention", "plasticity", "state_dtype", "consolidate_every"):
        del group[name]
    del group["threshold"]["suspicion"], group["threshold"]["room"]
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
    adam = next(row for row in ROWS if row.name == "SALAdam")
    theirs = make_params()
    foreign = _trained(PlainLion(theirs), theirs)
    with pytest.raises(ValueError, match="no 'exp_avg_sq'"):
        adam(make_params()).load_state_dict(foreign)
    older = _trained(torch.optim.Adam(theirs), theirs)
    del older["state"][2]["step"]
    with pytest.raises(KeyError, match="no 'step'"):
        adam(make_params()).load_state_dict(older)


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
        with pytest.raises(ValueError, match=r"shape|param"):
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
    adamw = next(row for row in ROWS if row.name == "SALAdamW")
    theirs = make_params()
    saved = _trained(torch.optim.Adam(theirs), theirs, 3)
    saved["param_groups"][0].update(capturable=True, differentiable=True, fused=True)
    optimizer = adamw(make_params())
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert not group["capturable"]
    assert not group["differentiable"]
    assert group["decoupled_weight_decay"], "SALAdamW stays AdamW, as torch's does"


# ------------------------------------------------------------------------------------ bad gradients


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", [0, 1, 29, 31, 60, 61, 62, 75])
def test_a_non_finite_gradient_at_any_step(class_row: Row, value: float, when: int) -> None:
    """It tells nothing: evidence and threshold are those of a run without that step."""
    params, twin = make_params(), make_params()
    one, other = class_row(params), class_row(twin)
    grads = stream(params, profile(80, (60,)))
    for index, now in enumerate(grads):
        if index == when:
            before = dict(one.param_groups[0].get("threshold", {}))
            bad = [grad.clone() for grad in now]
            bad[0][0, 0] = value
            step_with(one, params, bad)
            assert dict(one.param_groups[0]["threshold"]) == before
        step_with(one, params, now)
        step_with(other, twin, now)
    assert consolidations(one) == consolidations(other) == 1
    assert one.param_groups[0]["threshold"] == other.param_groups[0]["threshold"]
    for left, right in zip(params, twin, strict=True):
        for name in ("pending", "evidence"):
            assert torch.equal(one.state[left][name], other.state[right][name])
        assert bool(torch.isfinite(one.stability(left)).all())
    assert all(math.isfinite(number) for number in one.diagnostics().values())
    # The other parameters are not touched by it.
    assert all(bool(torch.isfinite(param).all()) for param in params[1:])


def test_only_non_finite_gradients(row: Row, mode: Mode) -> None:
    params = make_params()
    optimizer = row(params, **mode)
    for _ in range(50):
        step_with(optimizer, params, [torch.full_like(param, torch.nan) for param in params])
    optimizer.consolidate()
    assert consolidations(optimizer) == 0
    assert all(math.isfinite(number) for number in optimizer.diagnostics().values())


@pytest.mark.parametrize("lr", [0.0, 5e-324, 1e-40, 1e30])
def test_extreme_learning_rates(row: Row, mode: Mode, lr: float) -> None:
    params = make_params()
    optimizer = row(params, **{**mode, "lr": lr, **_without_decay(row)})
    grads = stream(params, profile(80, (60,)))
    drive(optimizer, params, grads)
    assert consolidations(optimizer) == (0 if lr == 0 else 1)
    for param in params:
        assert bool(torch.isfinite(param).all())
        for name in ("pending", "evidence", "anchor"):
            assert bool(torch.isfinite(optimizer.state[param][name]).all()), name
    if lr < 1e-30:
        assert_equal(params, make_params())


def _without_decay(row: Row) -> dict[str, Any]:
    """The base optimizer itself overflows float32 by lr * weight_decay."""
    return {"weight_decay": 0.0} if "weight_decay" in row.kwargs else {}


# ------------------------------------------------------------------------- parameters that change


def test_parameters_appear_and_vanish(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    new = make_params([(3, 3)], seed=8)
    twin = clone_params(new)
    optimizer.add_param_group({"params": new})
    base = row.base(twin, **mode)
    del optimizer.state[params[0]]
    optimizer.param_groups[0]["params"] = params[1:]
    for now in stream([*params[1:], *new], profile(20)):
        step_with(optimizer, [*params[1:], *new], now)
        step_with(base, twin, now[-1:])
    assert consolidations(optimizer) == 1
    assert_equal(new, twin, "a parameter without evidence moves as the base optimizer moves it:")
    optimizer.consolidate()
    assert float(optimizer.stability(new[0]).max()) > 0


def test_requires_grad_switched(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    params[0].requires_grad_(False)
    frozen = params[0].clone()
    for now in stream(params, profile(10)):
        step_with(optimizer, params, [None, *now[1:]])
    assert torch.equal(params[0], frozen)
    params[0].requires_grad_(True)
    for now in stream(params, profile(10)):
        step_with(optimizer, params, now)
    assert not torch.equal(params[0], frozen)
    assert consolidations(optimizer) == 1


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "bigger": lambda p: torch.randn(2 * p.shape[0], *p.shape[1:]),
    "smaller": lambda p: p[:1].clone(),
    "transposed": lambda p: p.t().contiguous(),
    "float64": lambda p: p.double(),
    "bfloat16": lambda p: p.bfloat16(),
}


@pytest.mark.parametrize("granularity", ["element", "factored", "tensor"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_resized_or_cast_parameter(class_row: Row, granularity: str, change: str) -> None:
    """An error, by which nothing changes; its entry of the state deleted, it is a new one."""
    params, optimizer = (
        seasoned(class_row, granularity=granularity, momentum=0.9)
        if (class_row.name == "SALSGD")
        else seasoned(class_row, granularity=granularity)
    )
    with torch.no_grad():
        params[0].data = CHANGES[change](params[0].detach())
    before, still = snapshot(optimizer), clone_params(params)
    grads = stream(params, profile(5))
    with pytest.raises(ValueError, match=r"Invalid params value.*optimizer\.state"):
        step_with(optimizer, params, grads[0])
    assert_equal(params, still)
    assert_same_state(snapshot(optimizer), before)
    del optimizer.state[params[0]]
    drive(optimizer, params, grads)
    assert not torch.equal(params[0], still[0])
    assert float(optimizer.stability(params[0]).max()) == 0
    optimizer.consolidate()
    assert float(optimizer.stability(params[0]).max()) > 0


def test_a_sparse_gradient_changes_nothing(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    before, still = snapshot(optimizer), clone_params(params)
    for param in params[:-1]:
        param.grad = torch.ones_like(param)
    params[1].grad = torch.ones(5).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert_equal(params, still)
    assert_same_state(snapshot(optimizer), before)


def test_a_reinitialised_parameter(row: Row, mode: Mode) -> None:
    """New values in the same tensor: goes on; with its state deleted, as a new parameter."""
    params, optimizer = seasoned(row, **mode)
    with torch.no_grad():
        params[0].normal_(generator=torch.Generator().manual_seed(4))
    del optimizer.state[params[0]]
    twin = clone_params(params[:1])
    base = row.base(twin, **mode)
    for now in stream(params, profile(10)):
        step_with(optimizer, params, now)
        step_with(base, twin, now[:1])
    assert_equal(params[:1], twin)
