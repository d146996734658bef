"""CommunicationLayer around torch's own optimizers; third parties' are in tests/integrations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sal_optim import CommunicationLayer, SALAdam, SALLion, SALMuon
from sal_optim.checkpoint.validation import is_own
from sal_optim.layer import layer_of
from sal_optim.protection.gradients import descends
from tests.testing.drive import (
    REGIME,
    assert_equal,
    assert_same_state,
    clone_params,
    drive,
    make_params,
    profile,
    reload,
    snapshot,
    step_with,
    stream,
)
from tests.testing.layered import check_layer
from tests.testing.rows import KINDS

optim = torch.optim
BUILDERS: dict[str, Any] = {
    "Adam": lambda p: optim.Adam(p, lr=0.01),
    "Adam-foreach": lambda p: optim.Adam(p, lr=0.01, foreach=True),
    "Adam-fused": lambda p: optim.Adam(p, lr=0.01, fused=True),
    "AdamW-amsgrad": lambda p: optim.AdamW(p, lr=0.01, amsgrad=True),
    "SGD": lambda p: optim.SGD(p, lr=0.5),
    "SGD-momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.05),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.05),
    "Adamax": lambda p: optim.Adamax(p, lr=0.01),
    "ASGD": lambda p: optim.ASGD(p, lr=0.5),
    "LBFGS": lambda p: optim.LBFGS(p, lr=0.02, max_iter=2),
    "NAdam": lambda p: optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: optim.RAdam(p, lr=0.03),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01, alpha=0.9, centered=True),
    "Rprop": lambda p: optim.Rprop(p, lr=0.01),
}
if hasattr(optim, "Muon"):
    BUILDERS["Muon"] = lambda p: optim.Muon(p, lr=0.02)


def adam(params: list[Tensor], **settings: Any) -> tuple[Optimizer, CommunicationLayer]:
    optimizer = optim.Adam(params, lr=0.01)
    return optimizer, CommunicationLayer(optimizer, **settings)


@pytest.mark.parametrize("name", BUILDERS)
def test_around_torch(name: str) -> None:
    check_layer(BUILDERS[name], closure=True)


class Descent(Optimizer):
    """Gradient descent as another package may have it."""

    def __init__(self, params: Any, lr: float | None = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    param.sub_(0.1 * param.grad)


def test_gradient_descent_of_another_package_is_protected_as_torchs() -> None:
    """It was given shortened gradients, and learned a third less."""
    ours, theirs = make_params([(6, 4)]), make_params([(6, 4)])
    grads = stream(ours, profile(200, (90,)))
    kinds = {"consolidate_every": 20}
    drive(CommunicationLayer(optim.SGD(ours, lr=0.1), **kinds).optimizer, ours, grads)
    drive(CommunicationLayer(Descent(theirs), **kinds).optimizer, theirs, grads)
    assert float((ours[0] - make_params([(6, 4)])[0]).detach().abs().max()) > 0.1
    torch.testing.assert_close(theirs[0], ours[0])
    # Some have no learning rate until their first step.
    free = make_params([(6, 4)])
    drive(CommunicationLayer(Descent(free, lr=None), **kinds).optimizer, free, grads)
    assert bool(free[0].isfinite().all())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("SGD", True), ("ASGD", True), ("Adam", False), ("NAdam", False), ("LBFGS", False)],
)
def test_which_steps_are_as_long_as_their_gradients(name: str, wanted: bool) -> None:
    assert descends(getattr(optim, name)(make_params())) == wanted
    assert descends(Descent(make_params()))
    assert not any(descends(cls(make_params([(4, 3)]))) for cls in (SALAdam, SALLion, SALMuon))


@pytest.mark.parametrize(("every", "expected"), [(None, [61]), ("auto", [59])])
def test_a_change_is_found_once_and_resumed_at_any_moment(every: Any, expected: list[int]) -> None:
    """Saved before, during and after a detection: a fresh layer goes on bit for bit."""
    params = make_params()
    grads = stream(params, profile(90, (60,)))
    optimizer, _ = adam(params, consolidate_every=every)
    saved: dict[int, Any] = {}
    found = []
    for index, now in enumerate(grads):
        if index in (0, 1, 40, 59, 60, 61, 62, 75):
            saved[index] = (clone_params(params), reload(optimizer.state_dict()))
        found += [index] if drive(optimizer, params, [now]) else []
    assert found == expected
    for index, (weights, state) in saved.items():
        fresh, layer = adam(weights, consolidate_every=every)
        fresh.load_state_dict(state)
        drive(fresh, weights, grads[index:])
        assert_equal(weights, params, f"resumed at {index}:")
        assert_same_state(snapshot(fresh), snapshot(optimizer))
        assert layer.diagnostics()["consolidations"] == 1


def test_nothing_is_undone_at_a_change() -> None:
    """Up to the step that finds the change all moves as the optimizer moves it; momentum stays."""
    params, twin = make_params(), make_params()
    optimizer, layer = adam(params, consolidate_every=None, importance="diagonal")
    free = optim.Adam(twin, lr=0.01)
    grads = stream(params, profile(62, (60,)))
    for now in grads[:61]:
        step_with(optimizer, params, now)
        step_with(free, twin, now)
    assert_equal(params, twin)
    assert layer.diagnostics()["changes"] == 0
    before = [optimizer.state[param]["exp_avg"].clone() for param in params]
    step_with(optimizer, params, grads[61])
    assert layer.diagnostics()["changes"] == 1
    for param, old, grad in zip(params, before, grads[61], strict=True):
        passed = (optimizer.state[param]["exp_avg"] - 0.9 * old) / (0.1 * grad)
        assert passed.min() > 0
        assert passed.max() < 1.01


def test_two_published_lines_change_nothing() -> None:
    models = [nn.Linear(6, 4), nn.Linear(6, 4)]
    models[1].load_state_dict(models[0].state_dict())
    pairs = [adam(list(model.parameters()), consolidate_every=5) for model in models]
    for step in range(20):
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        for model, (optimizer, layer) in zip(models, pairs, strict=True):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            if model is models[0]:
                layer.analyze(model)
                layer.protect(model)
            optimizer.step()
    assert_same_state(snapshot(pairs[0][0]), snapshot(pairs[1][0]))
    assert_equal(list(models[0].parameters()), list(models[1].parameters()))
    assert pairs[0][1].diagnostics()["consolidations"] == 4


def test_analyze_and_protect_alone_do_nothing() -> None:
    model = nn.Linear(6, 4)
    optimizer, layer = adam(list(model.parameters()))
    model(torch.randn(16, 6)).square().mean().backward()
    still = [t.clone() for p in model.parameters() for t in (p.detach(), p.grad)]
    before = copy.deepcopy(layer.diagnostics())
    layer.analyze(model)
    layer.protect(model)
    assert_equal([t for p in model.parameters() for t in (p.detach(), p.grad)], still)
    assert not optimizer.state
    assert layer.diagnostics() == before


def test_observe_gathers_and_moves_nothing() -> None:
    params = make_params()
    still = clone_params(params)
    optimizer, layer = adam(params)
    with layer.observe():
        drive(optimizer, params, stream(params, profile(10)))
    assert params[0].grad is not None
    assert_equal(params, still)
    assert not optimizer.state
    layer.consolidate()
    assert layer.diagnostics()["mean_gate"] < 1
    assert layer.stability(params[0]).max() > 0


def test_looking_before_the_first_step() -> None:
    optimizer, layer = adam(make_params())
    before = copy.deepcopy(optimizer.state_dict())
    report = layer.diagnostics()
    assert (report["volatile"], report["consolidations"], report["drift"]) == (1.0, 0.0, 0.0)
    layer.consolidate()
    assert not optimizer.state
    assert optimizer.state_dict()["state"] == before["state"]


def test_parameters_without_evidence_move_freely() -> None:
    params, twin = make_params(), make_params()
    optimizer, layer = adam(params, protection=10.0, alpha=1e6)
    free = optim.Adam(twin, lr=0.01)
    grads = stream(params, profile(REGIME))
    for now in grads[:10]:
        some = [None, *now[1:]]
        step_with(optimizer, params, some)
        step_with(free, twin, some)
    layer.consolidate()
    for now in grads[10:20]:
        step_with(optimizer, params, now)
        step_with(free, twin, now)
    assert_equal(params[:1], twin[:1])
    assert not torch.equal(params[1], twin[1])


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    params = make_params()
    optimizer, layer = adam(params, importance=kind, consolidate_every=None)
    found = drive(optimizer, params, stream(params, profile(90, (60,))))
    assert found == [61]
    assert 0 < layer.diagnostics()["mean_gate"] < 1


def test_statistics_keep_float32_beside_bfloat16() -> None:
    params = make_params(dtype=torch.bfloat16)
    optimizer, layer = adam(params)
    drive(optimizer, params, stream(params, profile(70, (60,))))
    fresh, _ = adam(clone_params(params))
    fresh.load_state_dict(reload(optimizer.state_dict()))
    assert_same_state(snapshot(fresh), snapshot(optimizer))
    assert layer.diagnostics()["consolidations"] == 1
    assert optimizer.state[params[0]]["left_values"].dtype == torch.float32
    assert optimizer.state[params[1]]["evidence"].dtype == torch.float32


def test_complex_parameters() -> None:
    params = make_params(dtype=torch.complex64)
    optimizer, layer = adam(params, consolidate_every=None)
    assert drive(optimizer, params, stream(params, profile(90, (60,)))) == [61]
    assert layer.diagnostics()["mean_gate"] < 1


def test_groups_have_their_own_protection_and_schedules_reach_it() -> None:
    params, twin = make_params(), make_params()
    optimizer = optim.SGD(
        [{"params": params[:2], "protection": 0.0}, {"params": params[2:]}], lr=0.01
    )
    layer = CommunicationLayer(optimizer, protection=10.0, alpha=1e6)
    free = optim.SGD(twin, lr=0.01)
    grads = stream(params, profile(20))
    for now in grads[:10]:
        step_with(optimizer, params, now)
        step_with(free, twin, now)
    layer.consolidate()
    assert [group["protection"] for group in optimizer.param_groups] == [0.0, 10.0]
    step_with(optimizer, params, grads[10])
    step_with(free, twin, grads[10])
    assert_equal(params[:2], twin[:2])
    assert not torch.equal(params[2], twin[2])
    optimizer.param_groups[1]["protection"] = 0.0
    held = clone_params(params)
    step_with(optimizer, params, grads[11])
    moved = held[2].detach() - 0.01 * grads[11][2]
    torch.testing.assert_close(params[2].detach(), moved)
    optimizer.param_groups[1]["protection"] = -1.0
    with pytest.raises(ValueError, match=r"protection.*-1\.0.*\[0, inf\)"):
        step_with(optimizer, params, grads[12])


def test_checkpoints_of_the_bare_optimizer_go_on() -> None:
    params = make_params()
    bare = optim.Adam(params, lr=0.01)
    grads = stream(params, profile(10))
    for now in grads[:5]:
        step_with(bare, params, now)
    optimizer, _ = adam(clone_params(params))
    optimizer.load_state_dict(reload(bare.state_dict()))
    ours = optimizer.param_groups[0]["params"]
    for now in grads[5:]:
        step_with(bare, params, now)
        step_with(optimizer, ours, now)
    assert_equal(ours, params)


def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    params = make_params()
    optimizer, _ = adam(params)
    drive(optimizer, params, stream(params, profile(3)))
    state = reload(optimizer.state_dict())
    state["state"][1]["evidence"] = torch.zeros(7)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"parameter 1, 'evidence'.*\(7,\)"):
        optimizer.load_state_dict(state)
    assert_same_state(snapshot(optimizer), before)


def test_a_non_finite_gradient_is_no_evidence() -> None:
    params = make_params()
    optimizer, layer = adam(params)
    drive(optimizer, params, stream(params, profile(4)))
    own = [(s, n) for s in optimizer.state.values() for n in s if is_own(n)]
    kept = {index: torch.as_tensor(s[n]).clone() for index, (s, n) in enumerate(own)}
    # The fifth step would be gathered.
    step_with(optimizer, params, [torch.full_like(param, torch.inf) for param in params])
    assert_equal([torch.as_tensor(s[n]) for s, n in own], list(kept.values()))
    assert layer.diagnostics()["surprise"] < 10


def test_removal() -> None:
    params, twin = make_params(), make_params()
    optimizer, layer = adam(params)
    layer.remove()
    free = optim.Adam(twin, lr=0.01)
    for now in stream(params, profile(3)):
        step_with(optimizer, params, now)
        step_with(free, twin, now)
    assert_equal(params, twin)
    assert layer_of(optimizer) is None
    assert "evidence" not in optimizer.state[params[0]]


@pytest.mark.parametrize(
    ("name", "value"), [("unit_update", True), ("momenta", ("exp_avg",)), ("plasticity", 0.9)]
)
def test_what_has_no_effect_any_more(name: str, value: Any) -> None:
    params, twin = make_params(), make_params()
    with pytest.warns(FutureWarning, match=f"{name} is deprecated.*no effect"):
        optimizer, _ = adam(params, consolidate_every=5, **{name: value})
    other, _ = adam(twin, consolidate_every=5)
    for now in stream(params, profile(12)):
        step_with(optimizer, params, now)
        step_with(other, twin, now)
    assert_same_state(snapshot(optimizer), snapshot(other))


def test_the_old_name_of_importance() -> None:
    with pytest.warns(FutureWarning, match="granularity is deprecated.*importance='diagonal'"):
        optimizer, _ = adam(make_params(), granularity="element")
    drive(optimizer, optimizer.param_groups[0]["params"], stream(make_params(), profile(1)))
    assert all("evidence" in state for state in optimizer.state.values())


def test_it_shows_its_settings() -> None:
    _, layer = adam(make_params(), protection=5)
    assert repr(layer).startswith("CommunicationLayer(Adam, protection=5.0, pull=1.2, ")


def test_what_is_refused() -> None:
    params = make_params()
    optimizer, layer = adam(params)
    with pytest.raises(ValueError, match="protected already"):
        CommunicationLayer(optimizer)
    with pytest.raises(ValueError, match="protected already"):
        CommunicationLayer(SALAdam(make_params()))
    with pytest.raises(TypeError, match=r"optimizer.*str.*torch\.optim\.Optimizer"):
        CommunicationLayer("adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"protection.*-1.*\[0, inf\)"):
        CommunicationLayer(optim.SGD(make_params(), lr=1.0), protection=-1)
    with pytest.raises(ValueError, match=r"model.*Linear.*optimizer"):
        layer.analyze(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"model.*Linear.*optimizer"):
        layer.protect(nn.Linear(2, 2))
    params[0].grad = torch.zeros(6, 5).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


def test_each_group_has_its_protection_from_the_start() -> None:
    optimizer = torch.optim.SGD(make_params(), lr=0.1)
    layer = CommunicationLayer(optimizer, protection=20.0)
    optimizer.param_groups[0]["protection"] *= 0.5
    assert "protection=10.0" in repr(layer)
    layer.remove()
    assert repr(CommunicationLayer(optimizer, protection=5.0)).count("protection=10.0") == 1
