"""Every path (loop, lists, fused) equals the plain reference to 1e-9 in float64, by hypothesis."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sal_optim import SALSGD, SALAdam, SALAdamW, SALLion, SALOptimizer
from sal_optim.protection import clock, consolidation
from tests.reference.sal import Parameter, Reference
from tests.testing.drive import consolidations, make_params, profile, step_with, stream
from tests.testing.rows import KINDS

TOLERANCE = 1e-9
PATHS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}

betas = st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.5, 0.9, 0.999]))
_ADAM = {"betas": betas, "eps": st.sampled_from([1e-8, 1e-3]), "amsgrad": st.booleans()}
_SGD = {
    "momentum": st.sampled_from([0.0, 0.5, 0.9]),
    "dampening": st.sampled_from([0.0, 0.3]),
    "nesterov": st.booleans(),
}
# The class, its base in the reference, and the base's own settings.
BASES: dict[str, tuple[type[SALOptimizer], str, dict[str, st.SearchStrategy[Any]]]] = {
    "SALAdam": (SALAdam, "adam", _ADAM),
    "SALAdamW": (SALAdamW, "adamw", _ADAM),
    "SALSGD": (SALSGD, "sgd", _SGD),
    "SALLion": (SALLion, "lion", {"betas": betas}),
}
SHARED: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.sampled_from([1e-3, 1e-2]),
    "weight_decay": st.sampled_from([0.0, 0.01, 0.3]),
    "protection": st.sampled_from([0.0, 0.3, 10.0, 1e3]),
    "pull": st.sampled_from([0.0, 1.0, 100.0]),
    "retention": st.sampled_from([1.0, 0.5, 0.0]),
    "maximize": st.booleans(),
    "importance": st.sampled_from(KINDS),
}
OVER_ALL: dict[str, st.SearchStrategy[Any]] = {
    "tau0": st.sampled_from([1.0, 1.5]),
    "alpha": st.sampled_from([2.0, 4.0]),
    "stats_beta": st.sampled_from([0.9, 0.98]),
    "consolidate_every": st.sampled_from([None, "auto", 7, 20]),
}
shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=4)


def paths(name: str) -> list[str]:
    """Those that the class has; there is no fused Lion."""
    return [path for path in PATHS if path != "fused" or name != "SALLion"]


@st.composite
def runs(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Settings by group, shapes, and what happens when."""
    over_all = {key: draw(value) for key, value in OVER_ALL.items()}
    sizes = draw(shapes)
    groups = []
    for _ in range(draw(st.integers(1, min(2, len(sizes))))):
        group = {key: draw(value) for key, value in {**SHARED, **BASES[name][2]}.items()} | over_all
        if group.get("nesterov"):
            group["nesterov"], group["dampening"] = bool(group["momentum"]), 0.0
        groups.append(group)
    path = draw(st.sampled_from(paths(name)))
    # torch's fused SGD takes no parameter that comes later than the others.
    late = draw(st.booleans()) and (name, path) != ("SALSGD", "fused")
    return {
        "groups": groups,
        "shapes": sizes,
        "seed": draw(st.integers(0, 1000)),
        "manual": draw(st.sets(st.integers(1, 64), max_size=3)),
        "change": draw(st.sampled_from([35, 40, 46])),
        "late": late,
        "zero": draw(st.booleans()),
        "path": path,
    }


def build(
    name: str, params: list[Tensor], groups: list[dict[str, Any]], path: str
) -> tuple[SALOptimizer, Reference]:
    """The optimizer under test and the reference, of the same settings."""
    cls, base, _ = BASES[name]
    share = -(-len(params) // len(groups))
    parts = [params[index * share : (index + 1) * share] for index in range(len(groups))]
    pairs = [(part, group) for part, group in zip(parts, groups, strict=True) if part]
    optimizer = cls([{"params": part, **PATHS[path], **group} for part, group in pairs])
    found = [
        Parameter(param, group) for group in optimizer.param_groups for param in group["params"]
    ]
    return optimizer, Reference(base, found)


def assert_agree(optimizer: SALOptimizer, reference: Reference, params: list[Tensor]) -> None:
    detector = optimizer.controller.detector
    counted = reference.consolidations, reference.changes, reference.total, reference.since
    assert counted == tuple(
        detector[name] for name in ("consolidations", "changes", "total", "since")
    )
    assert detector["mean"] == pytest.approx(reference.norms.mean, rel=TOLERANCE)
    assert detector["novelty_mean"] == pytest.approx(reference.novelty.mean, rel=1e-7)
    assert detector["unit"] == pytest.approx(reference.unit, rel=TOLERANCE)
    for param, expected in zip(params, reference.params, strict=True):
        state = optimizer.state.get(param, {})
        pairs = [("values", param, expected.values)]
        pairs += [(name, state[name], value) for name, value in expected.moments.items()]
        if expected.weight > 0:
            omega = expected.elements(expected.evidence) * reference.damping(expected)
            pairs.append(("stability", optimizer.stability(param), omega / (1 + omega)))
        if expected.anchor is not None:
            # Where nothing is important the anchor is anywhere.
            seen = expected.dense()
            ours, theirs = (seen @ a.flatten() for a in (state["anchor"], expected.anchor))
            pairs.append(("anchor", ours, theirs))
        for what, ours, theirs in pairs:
            torch.testing.assert_close(
                ours.detach(),
                theirs,
                rtol=TOLERANCE,
                atol=TOLERANCE,
                msg=lambda text, what=what: f"{what}: {text}",  # type: ignore[misc]
            )
        numbers = ("pending_steps", "evidence_weight", "grad_norm_mean", "grad_norm_var",
                   "delta_w", "delta_w_mean")  # fmt: skip
        assert [state.get(name, 0.0) for name in numbers] == pytest.approx(
            [expected.gathered, expected.weight, expected.norm_mean, expected.norm_variance,
             expected.length, expected.length_mean],
            rel=1e-7, abs=TOLERANCE,
        )  # fmt: skip


@pytest.mark.parametrize("name", BASES)
@given(data=st.data())
@settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_any_settings(name: str, data: st.DataObject) -> None:
    run = data.draw(runs(name))
    params = make_params(run["shapes"], torch.float64, seed=run["seed"])
    optimizer, reference = build(name, params, run["groups"], run["path"])
    grads: Any = stream(params, profile(66, (run["change"],)), seed=run["seed"] + 1)
    for step, now in enumerate(grads):
        if run["zero"] and step == 20:
            now = [torch.zeros_like(grad) for grad in now]
        if run["late"] and step < 30:
            now = [*now[:-1], None]
        if step in run["manual"]:
            optimizer.consolidate()
            reference.consolidate()
        step_with(optimizer, params, now)
        reference.step(now)
        if step in (10, 33, run["change"] + 3, 65):
            assert_agree(optimizer, reference, params)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "path"), [(name, path) for name in BASES for path in paths(name)])
def test_consolidations_by_clock_by_change_and_by_call(
    name: str, path: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings that users get, several of each; some segments long enough to rest."""
    monkeypatch.setattr(consolidation, "REST", 50.0)
    params = make_params([(5, 3), (7,), (), (2, 3, 2)], torch.float64)
    group: dict[str, Any] = {"lr": 0.01, "importance": kind}
    group |= {"weight_decay": 0.01, "momentum": 0.9} if name == "SALSGD" else {}
    optimizer, reference = build(name, params, [group], path)
    changes, calls = (150, 250), (200, 330)
    clocked = []
    for step, now in enumerate(stream(params, profile(360, changes))):
        if step in calls:
            optimizer.consolidate()
            reference.consolidate()
        before, known = consolidations(optimizer), reference.changes
        step_with(optimizer, params, now)
        reference.step(now)
        if consolidations(optimizer) > before and reference.changes == known:
            clocked.append(step)
        if step % 40 == 39:
            assert_agree(optimizer, reference, params)
    assert_agree(optimizer, reference, params)
    assert reference.changes == 2
    assert clocked[:2] == [clock.LEAST - 1, 2 * clock.LEAST - 1]
    assert consolidations(optimizer) == 2 + len(calls) + len(clocked)
    assert optimizer.stability(params[0]).max() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BASES)
def test_observing(name: str, kind: str) -> None:
    params = make_params([(4, 3), (2,)], torch.float64)
    optimizer, reference = build(name, params, [{"importance": kind}], "default")
    grads = stream(params, profile(30))
    with optimizer.observe():
        for now in grads[:10]:
            step_with(optimizer, params, now)
            reference.step(now, observing=True)
    optimizer.consolidate()
    reference.consolidate()
    assert reference.consolidations == 1
    for now in grads[10:]:
        step_with(optimizer, params, now)
        reference.step(now)
    assert_agree(optimizer, reference, params)


@pytest.mark.parametrize("name", BASES)
def test_float32_is_near(name: str) -> None:
    """As near as rounding allows; a sign turns rounding into steps, so that Lion is left out."""
    if name == "SALLion":
        pytest.skip("a sign turns rounding into steps")
    params = make_params([(5, 3), (7,)])
    optimizer, reference = build(name, params, [{"lr": 0.01}], "default")
    for now in stream(params, profile(150, (100,))):
        step_with(optimizer, params, now)
        reference.step(now)
    for param, expected in zip(params, reference.params, strict=True):
        torch.testing.assert_close(param.detach().double(), expected.values, rtol=1e-4, atol=1e-5)
