"""The public names and signatures, frozen: a change here is a change for every user.

CONTRIBUTING.md tells how a name or an argument is retired.
"""

from __future__ import annotations

import ast
import importlib
import importlib.resources
import inspect
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import sal_optim
from sal_optim import config
from tests.testing.drive import make_params
from tests.testing.rows import WITH_DEPRECATED, Row

# The numbers are defaults that were chosen by measuring: they stand in config.py alone.
PROTECTION = (
    f"pull={config.PULL}, importance='kronecker', rank={config.RANK}, consolidate_every='auto', "
    f"retention={config.RETENTION}, tau0=1.0, alpha=4.0, stats_beta=0.98, state_dtype=None"
)
SHARED = f"protection={config.PROTECTION}, {PROTECTION}, foreach=None, maximize=False"
OLD = "granularity=None, plasticity=None, compile=False"
LION = SHARED.replace(
    f"protection={config.PROTECTION}, pull={config.PULL}",
    f"protection={config.LION_PROTECTION}, pull={config.LION_PULL}",
)
NAMES = {
    "CommunicationLayer",
    "LiveView",
    "SALAdam",
    "SALAdamW",
    "SALLion",
    "SALMuon",
    "SALOptimizer",
    "SALSGD",
    "__version__",
    "load_importance",
    "monitors",
    "plot",
    "report",
    "save_importance",
    "writers",
}
CONSTRUCTORS = {
    "SALAdam": (
        "params, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, amsgrad=False, *, "
        f"{SHARED}, capturable=False, differentiable=False, fused=None, "
        f"decoupled_weight_decay=False, {OLD}"
    ),
    "SALAdamW": (
        "params, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, amsgrad=False, *, "
        f"{SHARED}, capturable=False, differentiable=False, fused=None, {OLD}"
    ),
    "SALSGD": (
        "params, lr=0.001, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, *, "
        f"{SHARED}, differentiable=False, fused=None, {OLD}"
    ),
    "SALLion": (
        "params, lr=0.0001, betas=(0.9, 0.99), weight_decay=0.0, *, "
        f"{LION}, differentiable=False, {OLD}"
    ),
    "SALMuon": (
        "params, lr=0.001, weight_decay=0.1, momentum=0.95, nesterov=True, "
        "ns_coefficients=(3.4445, -4.775, 2.0315), eps=1e-07, ns_steps=5, adjust_lr_fn=None, *, "
        f"use_muon=True, betas=(0.9, 0.95), adamw_lr_ratio=1.0, {SHARED}, differentiable=False, "
        f"{OLD}"
    ),
}
LAYER = (
    f"optimizer, protection={config.PROTECTION}, *, {PROTECTION}, granularity=None, "
    "plasticity=None, unit_update=None, momenta=None"
)
LAYER_METHODS = {
    "analyze": "self, model",
    "consolidate": "self, model=None",
    "diagnostics": "self",
    "grow": "self, old, new",
    "observe": "self",
    "protect": "self, model",
    "remove": "self",
    "restore": "self, strength, model=None",
    "stability": "self, param",
    "tell": "self, **numbers",
}
METHODS = {
    "add_param_group": "self, param_group",
    "consolidate": "self, model=None",
    "diagnostics": "self",
    "grow": "self, old, new",
    "load_state_dict": "self, state_dict",
    "observe": "self",
    "restore": "self, strength, model=None",
    "stability": "self, param",
    "state_dict": "self",
    "step": "self, closure=None",
    "tell": "self, **numbers",
}
COMPANIONS = {
    "BasinMap": "self, /, *args, **kwargs",
    "Cascade": (
        "self, model, optimizer, score, branches=4, *, survivors=2, pulse=0.01, merge=True, seed=0"
    ),
    "ConsistencyEdges": (
        "self, blocks, inputs, targets, loss=None, *, optimizer=None, penalty=1.0, edge_lr=0.5"
    ),
    "Correction": "self, optimizer, sources=0, *, sharpness=1.0, memory=0.9, lowest=0.0",
    "Node": "self, /, *args, **kwargs",
    "TypedRoutes": "self, inputs, hidden, outputs, names=('task', 'memory', 'safety')",
    "basin_map": (
        "model, prompts, *, length=64, layer=None, temperature=0.0, "
        "context=None, n=3, loop=0.2, collapse=0.3606737602222409, generate=None, seed=0"
    ),
    "plot_basins": "found",
    "plot_lineage": "lineage",
    "route_gaps": "routes, metrics, how='zero', *, repeats=5, seed=0",
    "CellularMemory": "self, features, budget, *, decay=1.0, floor=0.5",
    "Drift": "self, model, probe, layer=None",
    "SpectralMonitor": (
        "self, model, layers, every=100, *, drifting=0.8, warning=0.5, alarm=None, measured=None"
    ),
    "HealthLine": "self, stream=None, width=100",
    "SpectrumRows": "self, /, *args, **kwargs",
    "halve_lr": "optimizer, lowest=0.0",
    "horizon": "p, target=0.5",
    "linear_cka": "x, y",
    "plot_shift": "found",
    "plot_spectra": "rows",
    "repetition_rate": "tokens, n=3",
    "shift_map": "features, bank, *, k=5, quantile=0.99, repeats=5, seed=0",
    "Channels": (
        "self, optimizer, budgets, *, scaffold=None, penalty=10.0, dual_lr=1.0, "
        "tolerance=0.01, lowest=0.0, limit=10000.0"
    ),
    "SelfModel": "self, model, layer, weight, detach=True, *, source=None, features=None",
    "ablate": "module, how='mean', *, generator=None",
    "necessity_gap": "module, metric, how='mean', *, repeats=1, seed=0",
    "rank_floor_loss": "h, floor",
}
DIAGNOSTICS = {
    "protected",
    "neutral",
    "volatile",
    "mean_gate",
    "innovation_cost",
    "threshold",
    "surprise",
    "descent",
    "consolidations",
    "changes",
    "drift",
    "published_stability",
}


def signature(function: Any) -> str:
    """Names, order, kinds and defaults, without the types."""
    found = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return str(inspect.Signature(bare)).removeprefix("(").removesuffix(")")


def skip_newer(row: Row) -> None:
    if row.cls.__name__ not in WITH_DEPRECATED:
        pytest.skip("has no deprecated arguments")


def test_names() -> None:
    assert set(sal_optim.__all__) == NAMES
    assert set(dir(sal_optim)) >= NAMES  # those that are imported later, too
    assert all(hasattr(sal_optim, name) for name in NAMES)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructors(name: str) -> None:
    cls = getattr(sal_optim, name)
    assert signature(cls.__init__) == f"self, {CONSTRUCTORS[name]}"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("granularity", "element", "importance='diagonal'"),
        ("granularity", "tensor", "importance='diagonal'"),
        ("granularity", "factored", "importance='factored'"),
        ("granularity", "kronecker", "importance='kronecker'"),
        ("plasticity", 0.4, "no effect"),
        ("compile", True, "no effect"),
    ],
)
def test_deprecated_arguments(class_row: Row, name: str, value: Any, told: str) -> None:
    skip_newer(class_row)
    with pytest.warns(FutureWarning, match=f"{name} is deprecated.*{told}") as caught:
        optimizer = class_row(make_params(), **{name: value})
    assert name not in optimizer.param_groups[0]
    assert len(caught) == 1
    if name == "granularity":
        assert repr(optimizer.param_groups[0]["importance"]) in told


def test_a_deprecation_names_the_line_of_the_user() -> None:
    params = make_params()
    with pytest.warns(FutureWarning) as caught:
        sal_optim.SALAdam(params, granularity="element")
    assert [row.filename for row in caught] == [__file__]
    optimizer = torch.optim.SGD(params, lr=0.1)
    with pytest.warns(FutureWarning) as caught:
        sal_optim.CommunicationLayer(optimizer, unit_update=True)
    assert [row.filename for row in caught] == [__file__]


def test_an_unknown_granularity_is_refused(class_row: Row) -> None:
    skip_newer(class_row)
    with pytest.raises(ValueError, match="Invalid granularity value: 'elements'"):
        class_row(make_params(), granularity="elements")


def test_methods() -> None:
    found = _methods(sal_optim.SALOptimizer)
    assert found == METHODS
    for name in CONSTRUCTORS:
        public = {n for n in vars(getattr(sal_optim, name)) if not n.startswith("_")}
        # torch puts a wrapped step into each class when it is first instantiated.
        assert public <= {"step"}


def test_the_layer() -> None:
    assert signature(sal_optim.CommunicationLayer.__init__) == f"self, {LAYER}"
    assert _methods(sal_optim.CommunicationLayer) == LAYER_METHODS


def _methods(cls: type) -> dict[str, str]:
    """The public methods of a class, and of its bases in this package."""
    return {
        name: signature(inspect.unwrap(value))
        for base in reversed(cls.__mro__)
        if base.__module__.startswith("sal_optim")
        for name, value in vars(base).items()
        if callable(value) and not name.startswith("_")
    }


def test_the_report() -> None:
    assert signature(sal_optim.report) == "optimizer, model"
    assert inspect.getdoc(sal_optim.report)
    with pytest.raises(AttributeError, match=r"sal_optim.*no attribute 'reports'"):
        sal_optim.reports  # type: ignore[attr-defined] # noqa: B018


def test_the_pictures() -> None:
    assert signature(sal_optim.plot.history) == "source"
    assert signature(sal_optim.plot.layers) == "optimizer, model"


def test_the_live_view() -> None:
    expected = "self, optimizer, refresh=2.0, console=None"
    assert signature(sal_optim.LiveView.__init__) == expected
    assert _methods(sal_optim.LiveView) == {"remove": "self"}


def test_the_writers() -> None:
    from sal_optim.monitoring.writers import CSVWriter, Recorder, TensorBoardWriter

    assert signature(Recorder.__init__) == "self, optimizer, every=1, limit=10000"
    assert signature(CSVWriter.__init__) == "self, optimizer, path, every=1"
    expected = "self, optimizer, writer, every=1, prefix='sal/'"
    assert signature(TensorBoardWriter.__init__) == expected
    for cls in (CSVWriter, Recorder, TensorBoardWriter):
        assert _methods(cls) == {"remove": "self"}


def test_the_companions() -> None:
    module = importlib.import_module("sal_optim.companions")
    assert set(module.__all__) == set(COMPANIONS) <= set(dir(module))
    for name, expected in COMPANIONS.items():
        found = getattr(module, name)
        assert signature(found.__init__ if inspect.isclass(found) else found) == expected
        assert inspect.getdoc(found)
    with pytest.raises(AttributeError, match=r"sal_optim.companions.*no attribute 'Other'"):
        module.Other  # noqa: B018


def test_diagnostics() -> None:
    import torch

    optimizer = sal_optim.SALAdam([torch.zeros(1, requires_grad=True)])
    assert set(optimizer.diagnostics()) == DIAGNOSTICS


def test_every_public_name_is_documented() -> None:
    for name in NAMES - {"__version__"}:
        cls = getattr(sal_optim, name)
        assert all(
            inspect.getdoc(getattr(cls, method)) for method in METHODS if hasattr(cls, method)
        ), name


def test_types_are_shipped() -> None:
    assert importlib.resources.files("sal_optim").joinpath("py.typed").is_file()


def _in_a_new_process(code: str) -> Any:
    # The parent's measuring tools would be imported too.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def test_import_is_light() -> None:
    """No other package, and nothing of torch that ``import torch`` leaves out, as its compiler."""
    code = """
import sys, torch
before = set(sys.modules)
import sal_optim
print(sorted(set(sys.modules) - before))
"""
    modules = {name for name in _in_a_new_process(code) if not name.startswith("sal_optim")}
    assert {name for name in modules if name.split(".")[0] not in sys.stdlib_module_names} == set()


def test_companions_are_imported_when_asked_for() -> None:
    """``import sal_optim`` imports none of them, and one of them none of the others."""
    code = """
import sys
import sal_optim
def loaded():
    names = ("sal_optim.companions", "cooper")
    return sorted(name for name in sys.modules if name.startswith(names))
before = loaded()
from sal_optim.companions import rank_floor_loss
print((before, loaded()))
"""
    before, after = _in_a_new_process(code)
    assert before == []
    package = "sal_optim.companions"
    assert after == [package, f"{package}.activations", f"{package}.rank"]
