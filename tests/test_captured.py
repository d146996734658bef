"""``capturable=True``: a step that a CUDA graph may hold, replayed on a CPU by ``graphs.py``."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sal_optim import SALAdamW, SALOptimizer
from sal_optim.captured import DeviceThreshold
from sal_optim.threshold import new_threshold, observe_norm, restart
from tests.testing.drive import (
    assert_equal,
    assert_near,
    assert_same_state,
    clone_params,
    consolidations,
    drive,
    fall,
    make_params,
    profile,
    reload,
    seeded,
    snapshot,
    step_with,
    stream,
)
from tests.testing.graphs import Graph
from tests.testing.rows import CLASSES, GRANULARITIES, ROWS, Row, row_of

CHANGE = 60
MANNERS: list[dict[str, Any]] = [
    *({"granularity": name} for name in GRANULARITIES),
    {"state_dtype": torch.bfloat16},
    {"pull": 0.0},
    {"protection": 0.0},
    {"foreach": True},
]


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Tells steps that they are captured, or no longer."""

    def tell(now: bool) -> None:
        monkeypatch.setattr(SALOptimizer, "_capturing", lambda self: now)

    return tell


def rising(steps: int = CHANGE + 40) -> list[float]:
    """A change, before it an outlier and a gradient of zero."""
    scales = profile(steps, (CHANGE,))
    scales[40], scales[44] = 1e3, 0.0
    return scales


class Replayed:
    """Parameters that are stepped by replays of one captured step."""

    def __init__(
        self,
        params: list[Tensor],
        optimizer: SALOptimizer,
        capturing: Callable[[bool], None],
        first: list[Tensor],
    ) -> None:
        self.params, self.optimizer = params, optimizer
        step_with(optimizer, params, first)  # before a capture, state has to be there
        # A capture runs nothing on a card; here it does, on a copy of what it changes.
        before = copy.deepcopy(optimizer.state), [param.detach().clone() for param in params]
        assert optimizer._captured is not None
        threshold = optimizer._captured.read()
        self.graph = Graph()
        capturing(True)
        with torch.no_grad(), self.graph:
            optimizer.step()
        capturing(False)
        with torch.no_grad():
            for param, old in zip(params, before[1], strict=True):
                param.copy_(old)
            for param, saved in zip(optimizer.state.values(), before[0].values(), strict=True):
                for name, value in saved.items():
                    if isinstance(value, Tensor):
                        param[name].copy_(value)
        optimizer._captured.write(threshold)

    def step(self, grads: list[Tensor]) -> None:
        with torch.no_grad():
            for param, grad in zip(self.params, grads, strict=True):
                assert param.grad is not None
                param.grad.copy_(grad)
        self.graph.replay()
        self.optimizer.consolidate_if_due()


@pytest.mark.parametrize("manner", MANNERS, ids=str)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_replays_do_what_steps_do(
    row: Row, manner: dict[str, Any], capturing: Callable[[bool], None]
) -> None:
    """Through an outlier, a gradient of zero and a change, bit for bit."""
    params = make_params()
    twins = clone_params(params)
    grads = stream(params, rising())
    replayed = Replayed(params, row(params, capturable=True, **manner), capturing, grads[0])
    plain = row(twins, capturable=True, **manner)
    step_with(plain, twins, grads[0])
    found: list[list[int]] = [[], []]
    for step, now in enumerate(grads[1:], start=1):
        for place, optimizer in enumerate((replayed.optimizer, plain)):
            count = consolidations(optimizer)
            if place == 0:
                replayed.step(now)
            else:
                capturing(True)  # as a replay, it leaves consolidating to the call after it
                step_with(plain, twins, now)
                capturing(False)
                plain.consolidate_if_due()
            if consolidations(optimizer) != count:
                found[place].append(step)
    assert len(found[0]) == 1
    assert found[0] == found[1]
    assert_same_state(snapshot(replayed.optimizer), snapshot(plain))
    assert_equal(params, twins)


@pytest.mark.parametrize("manner", MANNERS, ids=str)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_captured_step_is_the_step_of_an_accelerator(
    row: Row, manner: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It masks what others leave out: the same consolidation, the same weights to rounding."""
    params = make_params()
    twins = clone_params(params)
    grads = stream(params, rising())
    captured = row(params, capturable=True, **manner)
    ahead = row(twins, **manner)
    monkeypatch.setattr(ahead, "_looks_ahead", lambda work: True)
    assert drive(captured, params, grads) == drive(ahead, twins, grads) != []
    # A sum of two bytes may be rounded to its other neighbour.
    rough = "state_dtype" in manner
    assert_near(params, twins, rtol=1e-2 if rough else 1e-5, atol=1e-3 if rough else 1e-6)
    mine, theirs = captured.param_groups[0]["threshold"], ahead.param_groups[0]["threshold"]
    assert mine["consolidations"] == theirs["consolidations"] == 1.0
    assert mine["unit"] == pytest.approx(theirs["unit"], rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_the_device_judges_norms_as_the_host_does(seed: int) -> None:
    """Heavy tails, lasting changes, and norms that tell nothing."""
    draws = torch.randn(400, generator=seeded(seed), dtype=torch.float64).mul(0.4).exp()
    norms = [float(norm) * fall(step, 200) for step, norm in enumerate(draws)]
    host, cpu = new_threshold(), torch.device("cpu")
    device = DeviceThreshold(host, cpu)
    settings = {"tau0": 1.0, "alpha": 3.0, "beta": 0.98}
    changes = 0
    for step, norm in enumerate(norms):
        if step % 50 == 7:  # as from a gradient of zero, or an infinite one
            norm = 0.0 if step % 100 == 7 else math.inf
        known, due = norm not in (0.0, math.inf), host["steps"] % 4.0 == 0.0
        gathers = device.listen(
            torch.tensor(norm, dtype=torch.float64),
            torch.tensor(known),
            torch.tensor(due),
            observing=False,
            **settings,
        )
        before = dict(host)
        verdict = observe_norm(host, norm, **settings) if known else None
        ordinary = verdict is not None and not verdict.surprising
        assert bool(gathers) == (ordinary and due)
        host["pending_steps"] += float(ordinary and due)
        if verdict is not None and verdict.change is not None:
            changes += 1
            assert device.read() == pytest.approx({**before, "unheard": norm}, rel=1e-12)
            restart(host)
            device.write(host)
        assert device.read() == pytest.approx(host, rel=1e-12)
    assert changes >= 1


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_before_a_change_it_is_the_base_optimizer(row: Row) -> None:
    """To rounding: decay and update share a division, as in a protected step."""
    params = make_params()
    twins = clone_params(params)
    grads = stream(params, profile(50))
    drive(row(params, capturable=True), params, grads)
    drive(row.base(twins), twins, grads)  # type: ignore[arg-type]
    assert_near(params, twins, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_a_schedule_reaches_replays_by_a_tensor(
    row: Row, capturing: Callable[[bool], None]
) -> None:
    grads = stream(make_params(), profile(30))
    results = []
    for replays in (True, False):
        params = make_params()
        lr = torch.tensor(row.kwargs["lr"])
        optimizer = row(params, lr=lr, capturable=True)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
        replayed = Replayed(params, optimizer, capturing, grads[0]) if replays else None
        for step, now in enumerate(grads):
            if replayed is not None:
                if step:
                    replayed.step(now)
            else:
                step_with(optimizer, params, now)
            scheduler.step()
        assert float(lr) == pytest.approx(row.kwargs["lr"] * 0.5**6)
        results.append(params)
    assert_equal(*results)


@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_a_resumed_run_goes_on_exactly(row: Row, capturing: Callable[[bool], None]) -> None:
    """Saved at any point of a change, also between its confirmation and the consolidation."""
    grads = stream(make_params(), profile(CHANGE + 20, (CHANGE,)))
    whole = make_params()
    straight = row(whole, capturable=True)
    assert len(drive(straight, whole, grads)) == 1
    for cut in (20, CHANGE + 1, CHANGE + 2, CHANGE + 3, CHANGE + 4):
        params = make_params()
        optimizer = row(params, capturable=True)
        drive(optimizer, params, grads[:cut])
        saved = reload(optimizer.state_dict())
        other = clone_params(params)
        resumed = row(other, capturable=True)
        resumed.load_state_dict(saved)
        drive(resumed, other, grads[cut:])
        assert_same_state(snapshot(resumed), snapshot(straight))
        assert_equal(other, whole)


def test_a_checkpoint_goes_to_an_optimizer_that_is_not_captured_and_back() -> None:
    grads = stream(make_params(), profile(CHANGE + 20, (CHANGE,)))
    for cut in (20, CHANGE + 2, CHANGE + 3):
        for first in (True, False):
            params = make_params()
            optimizer = ROWS[0](params, capturable=first)
            drive(optimizer, params, grads[:cut])
            saved = reload(optimizer.state_dict())
            other = ROWS[0](params, capturable=not first)
            other.load_state_dict(saved)
            drive(other, params, grads[cut:])
            assert consolidations(other) == 1


def test_what_a_user_asks_knows_the_replays(capturing: Callable[[bool], None]) -> None:
    params = make_params()
    grads = stream(params, profile(CHANGE))
    replayed = Replayed(params, ROWS[0](params, capturable=True), capturing, grads[0])
    for now in grads[1:30]:
        replayed.step(now)
    optimizer = replayed.optimizer
    assert optimizer.state_dict()["param_groups"][0]["threshold"]["steps"] == 30.0
    assert optimizer.diagnostics()["surprise"] != 1.0
    optimizer.consolidate()
    assert consolidations(optimizer) == 1
    assert float(optimizer.stability(params[0]).max()) > 0.0
    free = [param.detach().clone() for param in params]
    replayed.step(grads[30])  # the same graph, from now on with protection
    held = [float((param - old).norm()) for param, old in zip(params, free, strict=True)]
    assert all(size > 0.0 for size in held)
    assert optimizer.state_dict()["param_groups"][0]["threshold"]["steps"] == 1.0
    with optimizer.observe():
        step_with(optimizer, params, grads[31])
    assert optimizer.state_dict()["param_groups"][0]["threshold"]["pending_steps"] == 2.0


def test_a_consolidation_that_is_due_by_steps_comes_too(
    capturing: Callable[[bool], None],
) -> None:
    params = make_params()
    grads = stream(params, profile(70))
    optimizer = ROWS[0](params, capturable=True, consolidate_every=20)
    replayed = Replayed(params, optimizer, capturing, grads[0])
    found = []
    for step, now in enumerate(grads[1:], start=1):
        before = consolidations(optimizer)
        replayed.step(now)
        if consolidations(optimizer) != before:
            found.append(step)
    assert found == [20, 41, 62]


def test_pending_sums_are_halved_beyond_their_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sal_optim.protection.PENDING_HORIZON", 4.0)
    params = make_params()
    optimizer = ROWS[0](params, capturable=True)
    for now in stream(params, profile(60)):
        step_with(optimizer, params, now)
        assert optimizer.state_dict()["param_groups"][0]["threshold"]["pending_steps"] <= 4.0


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_an_infinite_gradient_leaves_evidence_finite(
    granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With decisions on the device, and where the norm is judged a step later."""
    for captured in (True, False):
        params = make_params()
        optimizer = row_of("SALSGD")(params, capturable=captured, granularity=granularity)
        if not captured:
            monkeypatch.setattr(optimizer, "_looks_ahead", lambda work: True)
        grads = stream(params, profile(9))
        grads[4] = [torch.full_like(grad, torch.inf) for grad in grads[4]]
        drive(optimizer, params, grads)
        for state in optimizer.state.values():
            for name, value in state.items():
                if "pending" in name:
                    assert bool(value.isfinite().all()), name


class Devices(TorchDispatchMode):
    """Notes operations that have to do with a tensor on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor) and leaf.device.type != "cuda":
                self.found.append(str(func))
        return result


def _copied(self: Tensor, source: Tensor) -> Tensor:
    torch._foreach_copy_([self], [source])
    return self


@pytest.mark.parametrize(
    "manner", [manner for manner in MANNERS if "kronecker" not in manner.values()], ids=str
)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_on_a_card_no_tensor_of_a_captured_step_is_on_the_host(
    row: Row, manner: dict[str, Any], capturing: Callable[[bool], None]
) -> None:
    """On tensors that have a card's device and no values: to read one is an error there."""
    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeviceThreshold, "send", lambda self: None)
        # A torch without CUDA can't do this one, even without values; nor index, as directions do.
        patch.setattr(Tensor, "copy_", _copied)
        capturing(False)
        params = [
            torch.zeros(shape, device="cuda", requires_grad=True) for shape in ((6, 5), (5,), ())
        ]
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer = row(params, capturable=True, **manner)
        lr = torch.full((), 0.1, device="cuda")
        optimizer.param_groups[0]["lr"] = lr  # a constructor would ask for its value
        optimizer.step()
        capturing(True)
        with Devices() as devices:
            optimizer.step()
        assert devices.found == []
        assert all(state["step"].device.type == "cuda" for state in optimizer.state.values())


def test_a_first_step_is_not_captured(capturing: Callable[[bool], None]) -> None:
    params = make_params()
    optimizer = SALAdamW(params, capturable=True)
    capturing(True)
    with pytest.raises(RuntimeError, match="take a step before the capture"):
        step_with(optimizer, params, stream(params, [1.0])[0])
    assert not optimizer.state


def test_groups_share_what_captured_steps_decide() -> None:
    first, second = make_params(((3,),)), make_params(((2,),))
    optimizer = SALAdamW(first, capturable=True)
    with pytest.raises(ValueError, match="capturable must be True as in the first"):
        optimizer.add_param_group({"params": second, "capturable": False})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": second})
    with pytest.raises(ValueError, match="Invalid capturable value"):
        SALAdamW([{"params": first, "capturable": True}, {"params": second}])


def test_parameters_of_a_captured_step_are_on_one_device() -> None:
    params = [*make_params(((3,),)), torch.zeros(2, device="meta", requires_grad=True)]
    optimizer = SALAdamW(params, capturable=True)
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="cpu, meta; with capturable they must be on one device"):
        optimizer.step()


def test_a_call_after_replays_is_harmless_elsewhere() -> None:
    params = make_params()
    optimizer = SALAdamW(params)
    optimizer.consolidate_if_due()
    drive(optimizer, params, stream(params, profile(5)))
    before = snapshot(optimizer)
    optimizer.consolidate_if_due()
    assert_same_state(before, snapshot(optimizer))
