"""Every fast path (loop, lists, slices, groups) equals the per-element reference, by hypothesis."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sal_optim import SALSGD, SALAdam, SALAdamW, SALLion, SALOptimizer
from sal_optim import evidence as evidence_module
from sal_optim import optimizer as optimizer_module
from sal_optim import pieces as pieces_module
from tests.reference.sal import Parameter, Reference
from tests.testing.drive import (
    assert_equal,
    consolidations,
    make_params,
    profile,
    step_with,
    stream,
)

# rtol, and atol as a part of the largest value.
TOLERANCE = {torch.float32: (1e-5, 3e-6), torch.float64: (1e-10, 1e-11)}
PATHS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "default": {"foreach": None},
    # Slices of 3 elements, and lists of about 8: nearly every tensor is cut, at odd places.
    "sliced": {"foreach": False, "slice": 3},
    "lists": {"foreach": True, "list": 8},
    "apart": {"foreach": None, "slice": 3, "together": 0},  # a large model, by default
}

betas = st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.5, 0.9, 0.999]))
decay = st.sampled_from([0.0, 0.01, 0.3])
BASES: dict[str, tuple[type[SALOptimizer], str, dict[str, st.SearchStrategy[Any]]]] = {
    "SALAdam": (
        SALAdam,
        "adam",
        {"betas": betas, "eps": st.sampled_from([1e-8, 1e-3]), "amsgrad": st.booleans()},
    ),
    "SALAdamW": (
        SALAdamW,
        "adam",
        {"betas": betas, "eps": st.sampled_from([1e-8, 1e-3]), "amsgrad": st.booleans()},
    ),
    "SALSGD": (
        SALSGD,
        "sgd",
        {
            "momentum": st.sampled_from([0.0, 0.5, 0.9]),
            "dampening": st.sampled_from([0.0, 0.3]),
            "nesterov": st.booleans(),
        },
    ),
    "SALLion": (SALLion, "lion", {"betas": betas}),
}
SHARED: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.sampled_from([1e-3, 1e-2]),
    "weight_decay": decay,
    "protection": st.sampled_from([0.0, 0.01, 0.3, 10.0, 1e4]),
    "pull": st.sampled_from([0.0, 1.0, 100.0]),
    "retention": st.sampled_from([1.0, 0.5, 0.0]),
    "plasticity": st.sampled_from([0.0, 0.4, 0.9]),
    "maximize": st.booleans(),
    "granularity": st.sampled_from(["element", "factored", "tensor"]),
}
OVER_ALL: dict[str, st.SearchStrategy[Any]] = {
    "tau0": st.sampled_from([1.0, 1.5]),
    "alpha": st.sampled_from([2.0, 4.0]),
    "stats_beta": st.sampled_from([0.9, 0.98]),
    "consolidate_every": st.sampled_from([None, None, 7, 20]),
}
shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=4)


@st.composite
def runs(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Settings by group, shapes, and what happens when."""
    own = BASES[name][2]
    over_all = {key: draw(value) for key, value in OVER_ALL.items()}
    sizes = draw(shapes)
    groups = []
    for _ in range(draw(st.integers(1, min(2, len(sizes))))):
        group = {key: draw(value) for key, value in {**SHARED, **own}.items()} | over_all
        if group.get("nesterov") and not group["momentum"]:
            group["nesterov"] = False
        if group.get("nesterov"):
            group["dampening"] = 0.0
        groups.append(group)
    return {
        "groups": groups,
        "shapes": sizes,
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
        "seed": draw(st.integers(0, 1000)),
        "manual": draw(st.sets(st.integers(1, 54), min_size=1, max_size=3)),
        "change": draw(st.sampled_from([35, 40, 46])),
        "late": draw(st.booleans()),
        "zero": draw(st.booleans()),
        "path": draw(st.sampled_from(list(PATHS))),
    }


def set_sizes(patch: pytest.MonkeyPatch, path: str) -> None:
    """Of slices and lists, as the path has them."""
    for size in ("SLICE", "LIST", "TOGETHER"):
        if size.lower() in PATHS[path]:
            patch.setattr(pieces_module, size, PATHS[path][size.lower()])
    if "slice" in PATHS[path]:
        for module in (pieces_module, evidence_module):
            patch.setattr(module, "SHARED", PATHS[path]["slice"])


def build(
    name: str, params: list[Tensor], groups: list[dict[str, Any]], path: str
) -> tuple[SALOptimizer, Reference]:
    """The optimizer under test and the reference, of the same settings."""
    cls, base, _ = BASES[name]
    share = -(-len(params) // len(groups))
    foreach = PATHS[path]["foreach"]
    parts = [params[index * share : (index + 1) * share] for index in range(len(groups))]
    optimizer = cls(
        [
            {"params": part, "foreach": foreach, **group}
            for part, group in zip(parts, groups, strict=True)
            if part
        ]
    )
    decoupled = name in ("SALAdamW", "SALLion")
    reference = Reference(
        base,
        [
            Parameter(tuple(param.shape), listed(param), {**group, "decoupled": decoupled})
            for part, group in zip(parts, groups, strict=True)
            for param in part
        ],
    )
    return optimizer, reference


def listed(tensor: Tensor) -> list[float]:
    return tensor.detach().double().flatten().tolist()  # type: ignore[no-any-return]


def assert_agree(
    optimizer: SALOptimizer, reference: Reference, params: list[Tensor], dtype: torch.dtype
) -> None:
    rtol, part = TOLERANCE[dtype]
    assert consolidations(optimizer) == reference.consolidations
    for param, expected in zip(params, reference.params, strict=True):
        state = optimizer.state.get(param, {})
        pairs = [("values", param, expected.values)]
        if "evidence" in state and state["evidence"].shape == param.shape:
            pairs.append(("pending", state["pending"], expected.read(expected.pending)))
        if "evidence" in state or "evidence_row" in state:
            c = expected.settings["protection"]
            omega = expected.read(expected.evidence)
            s = [c * value / (1 + c * value) for value in omega]
            pairs.append(("stability", optimizer.stability(param), s))
        if "anchor" in state and reference.consolidations:
            pairs.append(("anchor", state["anchor"], expected.anchor or []))
        for moment, values in expected.moments.items():
            pairs.append((moment, state[moment], values))
        for what, ours, theirs in pairs:
            truth = torch.tensor(theirs, dtype=torch.float64).reshape(ours.shape)
            largest = float(truth.abs().max()) if truth.numel() else 0.0
            torch.testing.assert_close(
                ours.detach().double(),
                truth,
                rtol=rtol,
                atol=part * max(largest, 1e-3),
                msg=lambda text, what=what: f"{what}: {text}",  # type: ignore[misc]
            )


@pytest.mark.parametrize("name", BASES)
@given(data=st.data())
@settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_the_fast_paths_equal_the_reference(name: str, data: st.DataObject) -> None:
    run = data.draw(runs(name))
    params = make_params(run["shapes"], run["dtype"], seed=run["seed"])
    optimizer, reference = build(name, params, run["groups"], run["path"])
    grads: Any = stream(params, profile(56, (run["change"],)), seed=run["seed"] + 1)
    with pytest.MonkeyPatch.context() as patch:
        set_sizes(patch, run["path"])
        for step, now in enumerate(grads):
            if run["zero"] and step == 20:
                now = [torch.zeros_like(grad) for grad in now]
            if run["late"] and step < 30:
                now = [*now[:-1], None]
            if step in run["manual"]:
                optimizer.consolidate()
                reference.consolidate()
            step_with(optimizer, params, now)
            reference.step([None if grad is None else listed(grad) for grad in now])
            if step in (10, 33, run["change"] + 3, 55):
                assert_agree(optimizer, reference, params, run["dtype"])
    if any(param.numel() for param in params[: len(params) - run["late"]]):
        assert reference.consolidations >= 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("granularity", ["element", "factored", "tensor"])
@pytest.mark.parametrize("name", BASES)
def test_two_regimes_found_by_both(
    name: str, granularity: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings that users get, changes found by surprise, and a bit of each path."""
    set_sizes(monkeypatch, path)
    for dtype in (torch.float32, torch.float64):
        params = make_params([(5, 3), (7,), ()], dtype)
        group: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.01, "granularity": granularity}
        if name == "SALSGD":
            group |= {"momentum": 0.9}
        known = BASES[name][0](make_params(), **group).param_groups[0]
        full = {key: known[key] for key in known if key not in ("params", "threshold", "foreach")}
        optimizer, reference = build(name, params, [full], path)
        found = []
        for step, now in enumerate(stream(params, profile(225, (50, 205)))):
            before = reference.consolidations
            step_with(optimizer, params, now)
            reference.step([listed(grad) for grad in now])
            found += [step] if reference.consolidations > before else []
            assert consolidations(optimizer) == reference.consolidations
        assert len(found) == 2
        assert 50 <= found[0] < 60
        assert 205 <= found[1] < 215
        assert_agree(optimizer, reference, params, dtype)
        assert optimizer.stability(params[0]).max() > 0


@pytest.mark.parametrize("name", BASES)
def test_observing_equals_the_reference(name: str) -> None:
    params = make_params([(4, 3), (2,)], torch.float64)
    group: dict[str, Any] = {"protection": 0.3, "pull": 10.0}
    known = BASES[name][0](make_params(), **group).param_groups[0]
    full = {key: known[key] for key in known if key not in ("params", "threshold", "foreach")}
    optimizer, reference = build(name, params, [full], "default")
    grads = stream(params, profile(30))
    with optimizer.observe():
        for now in grads[:10]:
            step_with(optimizer, params, now)
            reference.step([listed(grad) for grad in now], observing=True)
    optimizer.consolidate()
    reference.consolidate()
    assert reference.consolidations == 1
    for now in grads[10:]:
        step_with(optimizer, params, now)
        reference.step([listed(grad) for grad in now])
    assert_agree(optimizer, reference, params, torch.float64)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("extra", [1, 2 * 4096 + 5])
def test_slices_of_a_large_tensor_change_nothing(name: str, extra: int) -> None:
    """At the real slice size and beyond it by odd numbers: bit for bit the unsliced step."""
    size = pieces_module.SLICE + extra
    runs = []
    for limit in (pieces_module.SLICE, 10 * size):
        with pytest.MonkeyPatch.context() as patch:
            cuts = _counted(patch)
            patch.setattr(pieces_module, "SLICE", limit)
            params = make_params([(size,), (3,)])
            kwargs = {"momentum": 0.9} if name == "SALSGD" else {}
            optimizer = BASES[name][0](params, lr=0.01, weight_decay=0.01, foreach=False, **kwargs)
            for step, now in enumerate(stream(params, profile(6))):
                if step == 3:
                    optimizer.consolidate()
                step_with(optimizer, params, now)
            runs.append((params, len(cuts), optimizer))
    (one, cut, optimizer), (other, uncut, _) = runs
    assert uncut == 12
    assert cut == 6 * (2 + math.ceil(extra / pieces_module.SLICE))
    assert consolidations(optimizer) == 1
    assert_equal(one, other)
    assert math.isfinite(float(one[0].detach().sum()))


def _counted(patch: pytest.MonkeyPatch) -> list[None]:
    """Note each part that a step is cut into."""
    cuts: list[None] = []
    real = optimizer_module.advance

    def noted(*args: Any) -> None:
        cuts.append(None)
        real(*args)

    patch.setattr(optimizer_module, "advance", noted)
    return cuts
