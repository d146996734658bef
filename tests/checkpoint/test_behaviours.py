"""State that survives: deepcopy, pickle, files read safely, older and foreign checkpoints."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim import SALOptimizer, config
from sal_optim.checkpoint.validation import IMPORTANCE_STATE, STATISTICS
from sal_optim.protection.block import NUMBERS
from sal_optim.protection.clock import INTERVAL, is_turn
from tests.testing.drive import (
    CLOCK,
    assert_equal,
    assert_near,
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
from tests.testing.rows import KINDS, Row

Mode = dict[str, Any]
Pair = tuple[list[Tensor], SALOptimizer]
# Two changes, found a step later; the clock asks 60 steps after each consolidation.
STEPS, CHANGES, FOUND = 270, (100, 260), [59, 101, 161, 221, 261]
# Where a run is cut (before the clock first asks, as a change begins and is not confirmed, right
# after its consolidation, in the second regime, and as the second change begins), and until when
# it goes on.
CUTS = {
    "regime": (40, 64),
    "detection": (101, 121),
    "consolidation": (102, 122),
    "second regime": (150, 165),
    "second change": (261, 270),
}


def by_deepcopy(row: Row, params: list[Tensor], optimizer: SALOptimizer, mode: Mode) -> Pair:
    memo: dict[int, Any] = {}
    new = [copy.deepcopy(param, memo) for param in params]
    return new, copy.deepcopy(optimizer, memo)


def by_pickle(row: Row, params: list[Tensor], optimizer: SALOptimizer, mode: Mode) -> Pair:
    new: Pair = pickle.loads(pickle.dumps((params, optimizer)))
    return new


def by_file(row: Row, params: list[Tensor], optimizer: SALOptimizer, mode: Mode) -> Pair:
    new = clone_params(params)
    fresh = row(new, **mode)
    fresh.load_state_dict(reload(optimizer.state_dict()))
    return new, fresh


def by_file_twice(row: Row, params: list[Tensor], optimizer: SALOptimizer, mode: Mode) -> Pair:
    return by_file(row, *by_file(row, params, optimizer, mode), mode)


WAYS: dict[str, Callable[..., Pair]] = {
    "deepcopy": by_deepcopy,
    "pickle": by_pickle,
    "file": by_file,
    "file-twice": by_file_twice,
}


def test_resume_is_exact(row: Row, mode: Mode) -> None:
    params = make_params()
    grads = stream(params, profile(STEPS, CHANGES))
    optimizer = row(params, **mode)
    cuts: dict[int, list[tuple[str, list[Tensor], SALOptimizer]]] = {}
    ends: dict[int, tuple[list[Tensor], dict[str, Any]]] = {}
    found = []
    for index, now in enumerate(grads):
        for cut, (start, _) in CUTS.items():
            if index == start:
                suspicious = optimizer.param_groups[0]["threshold"]["suspicion"] > 0
                assert suspicious == (cut in ("detection", "second change")), cut
                before = snapshot(optimizer)
                copies = [(way, *WAYS[way](row, params, optimizer, mode)) for way in WAYS]
                for _, _, resumed in copies:
                    assert_same_state(snapshot(resumed), before)
                cuts[start] = copies
        found += [index] if drive(optimizer, params, [now]) else []
        if index + 1 in (end for _, end in CUTS.values()):
            ends[index + 1] = clone_params(params), snapshot(optimizer)
    assert found == FOUND
    assert optimizer.diagnostics()["changes"] == 2
    for cut, (start, end) in CUTS.items():
        expected, state = ends[end]
        for way, new, resumed in cuts[start]:
            again = [start + index for index in drive(resumed, new, grads[start:end])]
            assert again == [index for index in found if start <= index < end], (cut, way)
            assert_equal(new, expected, f"{cut}, {way}:")
            assert_same_state(snapshot(resumed), state)


@pytest.mark.parametrize("importance", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.bfloat16], ids=str)
def test_resume_is_exact_in_other_forms(
    class_row: Row, mode: Mode, importance: str, dtype: torch.dtype
) -> None:
    params = make_params(dtype=dtype)
    grads = stream(params, profile(100, (60,)))
    optimizer = class_row(params, importance=importance, **mode)
    assert drive(optimizer, params, grads[:80]) == [CLOCK]
    new, resumed = by_file(class_row, params, optimizer, {**mode, "importance": importance})
    for now in grads[80:]:
        step_with(optimizer, params, now)
        step_with(resumed, new, now)
    assert_equal(params, new)
    assert_same_state(snapshot(optimizer), snapshot(resumed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_statistics_survive_beside_small_weights(
    row: Row, mode: Mode, dtype: torch.dtype
) -> None:
    params = make_params(dtype=dtype)
    optimizer = row(params, **mode)
    assert len(drive(optimizer, params, stream(params, profile(80, (60,))))) == 1
    new, resumed = by_file(row, params, optimizer, mode)
    for param, other in zip(params, new, strict=True):
        names = [name for name in optimizer.state[param] if name.startswith(IMPORTANCE_STATE)]
        tensors = [name for name in names if isinstance(optimizer.state[param][name], Tensor)]
        assert len(tensors) >= 2
        for name in tensors:
            kept, loaded = optimizer.state[param][name], resumed.state[other][name]
            assert kept.dtype is loaded.dtype is torch.float32
            assert torch.equal(kept, loaded)
    # Neither could hold these values: the comparison is not empty.
    some = optimizer.state[params[0]]["left_values"]
    assert not torch.equal(some, some.to(dtype).float())
    assert loaded.data_ptr() != kept.data_ptr()
    for name in row.moments_of(new[0]):
        assert resumed.state[new[0]][name].dtype is dtype


def test_loaded_statistics_are_copies(row: Row, mode: Mode) -> None:
    """state_dict() shares its tensors with the optimizer, as in torch; loading must not."""
    params, optimizer = seasoned(row, **mode)
    new = clone_params(params)
    resumed = row(new, **mode)
    resumed.load_state_dict(optimizer.state_dict())
    before = snapshot(optimizer)
    for now in stream(params, profile(3)):
        step_with(resumed, new, now)
    resumed.consolidate()
    assert consolidations(resumed) == 2
    after = snapshot(optimizer)
    names = (*STATISTICS, "threshold")
    kept = [path for path in before if any(name in path for name in names)]
    assert len(kept) > 3 * len(params)
    assert_same_state({p: after[p] for p in kept}, {p: before[p] for p in kept})


def test_an_older_checkpoint_lacks_newer_group_keys(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    saved = reload(optimizer.state_dict())
    theirs = set(row.base(make_params()).state_dict()["param_groups"][0])
    dropped = [name for name in saved["param_groups"][0] if name not in theirs]
    assert {"protection", "threshold", "importance", "consolidate_every"} <= set(dropped)
    for name in dropped:
        new = clone_params(params)
        resumed = row(new, consolidate_every=None, **mode)
        older = copy.deepcopy(saved)
        del older["param_groups"][0][name]
        resumed.load_state_dict(older)
        for now in stream(params, profile(3)):
            step_with(resumed, new, now)
        if name != "threshold":
            assert resumed.param_groups[0][name] == optimizer.param_groups[0][name]
        resumed.consolidate()
        assert resumed.diagnostics()["consolidations"] >= 1


def test_an_older_pickle_lacks_newer_group_keys(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    state = copy.deepcopy(optimizer.__getstate__())
    del state["param_groups"][0]["retention"]
    revived = row.cls.__new__(row.cls)
    revived.__setstate__(state)
    assert revived.param_groups[0]["retention"] == config.RETENTION
    drive(revived, params, stream(params, profile(3)))


def as_of_0_1(saved: dict[str, Any], kind: str) -> dict[str, Any]:
    """A state dict as 0.1 wrote it: sums of importance over a weight, and steps counted for all."""
    older, weight = copy.deepcopy(saved), 8.5
    group = older["param_groups"][0]
    group["granularity"] = {"diagonal": "element"}.get(kind, kind)
    pending = next(iter(older["state"].values()))["pending_steps"]
    for name in ("total", "since", "last", "changes"):
        del group["threshold"][name]
    group["threshold"] |= {"pending_steps": pending, "initial": 4.0, "suspected": 0.0, "room": 1.0}
    del group["importance"]
    for state in older["state"].values():
        for name in [*state]:
            if name in NUMBERS:
                del state[name]
            elif name.startswith("evidence") or name.endswith("_values"):
                state[name] = state[name] * weight
            if name.endswith(("_row", "_column")):
                state[name] = state[name].flatten()
        state["evidence_weight"] = weight
        if "pending_total" in state:
            rows, columns = len(state["left_basis"]), len(state["right_basis"])
            mean = state.pop("pending_total") / rows / columns
            for when in ("pending", "evidence"):
                state |= {f"{when}_row": mean.expand(rows), f"{when}_column": mean.expand(columns)}
    return older


@pytest.mark.parametrize("importance", KINDS)
def test_a_checkpoint_of_0_1(class_row: Row, importance: str) -> None:
    params, optimizer = seasoned(class_row, importance=importance)
    drive(optimizer, params, stream(params, profile(1)))
    new = clone_params(params)
    resumed = class_row(new, consolidate_every=None)
    resumed.load_state_dict(reload(as_of_0_1(optimizer.state_dict(), importance)))
    assert resumed.param_groups[0]["importance"] == importance
    assert "granularity" not in resumed.param_groups[0]
    for param, other in zip(params, new, strict=True):
        torch.testing.assert_close(resumed.stability(other), optimizer.stability(param))
        one, two = optimizer.state[param], resumed.state[other]
        assert two["pending_steps"] == one["pending_steps"] > 0
        assert two["evidence_weight"] == 8.5
        kept = {name for name in one if name.startswith(STATISTICS)}
        assert kept == {name for name in two if name.startswith(STATISTICS)}
    # It has no unit for the penalty, which is not due in these.
    total = int(optimizer.param_groups[0]["threshold"]["total"])
    assert not any(is_turn(total + step, INTERVAL) for step in (1, 2))
    grads = stream(params, profile(2))
    drive(resumed, new, grads)
    drive(optimizer, params, grads)
    assert_near(params, new, rtol=1e-4, atol=1e-5)
    resumed.consolidate()
    assert consolidations(resumed) == 2


@pytest.mark.parametrize("when", ["first regime", "after a change"])
def test_a_checkpoint_of_torch_goes_on(row: Row, mode: Mode, when: str) -> None:
    params = make_params()
    twin = clone_params(params)
    base = row.base(twin, **mode)
    grads = stream(params, profile(200, (120,)))
    for now in grads[:40]:
        step_with(base, twin, now)
    if when == "first regime":
        params = clone_params(twin)
        optimizer = row(params, consolidate_every=None, **mode)
    else:
        # Into an optimizer in use: what it knew is gone with its state.
        params, optimizer = seasoned(row, **mode)
        with torch.no_grad():
            for param, other in zip(params, twin, strict=True):
                param.copy_(other)
    protection = optimizer.param_groups[0]["protection"]
    optimizer.load_state_dict(reload(base.state_dict()))
    assert optimizer.param_groups[0]["protection"] == protection > 0
    for now in grads[40:120]:
        step_with(optimizer, params, now)
        step_with(base, twin, now)
    assert_equal(params, twin, "as torch.optim's until the first change:")
    found = drive(optimizer, params, grads[120:])
    assert len(found) == 1
    assert optimizer.stability(params[0]).max() > 0


def test_a_checkpoint_of_ours_loads_into_torch(row: Row, mode: Mode) -> None:
    params, twin = make_params(), make_params()
    optimizer, base = row(params, **mode), row.base(twin, **mode)
    grads = stream(params, profile(40))
    for now in grads[:20]:
        step_with(optimizer, params, now)
    base.load_state_dict(reload(optimizer.state_dict()))
    twin_after = clone_params(params)
    with torch.no_grad():
        for param, other in zip(twin, twin_after, strict=True):
            param.copy_(other)
    for now in grads[20:]:
        step_with(optimizer, params, now)
        step_with(base, twin, now)
    assert_equal(params, twin)


def _broken(saved: dict[str, Any]) -> dict[str, tuple[dict[str, Any], type[Exception]]]:
    def change(edit: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        other = copy.deepcopy(saved)
        edit(other)
        return other

    first = next(iter(saved["state"]))
    return {
        "no state": (change(lambda d: d.pop("state")), KeyError),
        "no groups": (change(lambda d: d.pop("param_groups")), KeyError),
        "no params": (change(lambda d: d["param_groups"][0].pop("params")), KeyError),
        "a group more": (
            change(lambda d: d["param_groups"].append({"params": []})),
            ValueError,
        ),
        "a parameter less": (change(lambda d: d["param_groups"][0]["params"].pop()), ValueError),
        "another shape": (
            change(lambda d: d["state"][first].update(left_basis=torch.zeros(7, 7))),
            ValueError,
        ),
        "another step": (change(lambda d: d["state"].update({first: 3})), TypeError),
        "a list": (change(lambda d: d.update(state=[])), TypeError),
    }


@pytest.mark.parametrize(
    "case",
    [
        "no state",
        "no groups",
        "no params",
        "a group more",
        "a parameter less",
        "another shape",
        "another step",
        "a list",
    ],
)
def test_a_broken_checkpoint_changes_nothing(row: Row, mode: Mode, case: str) -> None:
    _, optimizer = seasoned(row, **mode)
    before = snapshot(optimizer)
    broken, error = _broken(optimizer.state_dict())[case]
    with pytest.raises(error):
        optimizer.load_state_dict(broken)
    assert_same_state(snapshot(optimizer), before)


def test_load_keeps_its_parameter_name(row: Row) -> None:
    """Distributed checkpoints pass it by name."""
    _, optimizer = seasoned(row)
    optimizer.load_state_dict(state_dict=optimizer.state_dict())
