"""What constructors and param groups take, convert and refuse, naming the argument."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from sal_optim.checkpoint.validation import STATISTICS
from sal_optim.protection.gradients import DEVIATIONS, LARGEST_GAIN
from tests.testing.drive import (
    CLOCK,
    assert_equal,
    assert_near,
    clone_params,
    drive,
    make_params,
    profile,
    seasoned,
    step_with,
    stream,
)
from tests.testing.rows import KINDS, WITH_DEPRECATED, Row, row_of

Mode = dict[str, Any]
NAN, INF = math.nan, math.inf

# Argument: values to refuse with a ValueError that names it.
REFUSED: dict[str, tuple[Any, ...]] = {
    "lr": (-1e-3, NAN, INF, "-1", "fast"),
    "weight_decay": (-0.1, NAN, INF),
    "protection": (-1.0, NAN, INF, "much"),
    "pull": (-1.0, NAN, INF),
    "tau0": (-1.0, 0.5, NAN, INF),
    "alpha": (-1.0, NAN, INF),
    "stats_beta": (-0.1, 1.0, 1.5, NAN),
    "consolidate_every": (0, -5, 1.5, NAN, INF),
    "retention": (-0.1, 1.1, NAN),
    "importance": ("elements", "element", "", 3),
    "rank": (0, -1, 1.5, NAN, INF),
    "state_dtype": ("int4", torch.int32, torch.float16, "nonsense"),
    "maximize": ("yes", 2, None),
    "foreach": ("yes", 2),
    "differentiable": (True,),
}
# And those of some bases only.
REFUSED_BASE: dict[str, tuple[Any, ...]] = {
    "betas": ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, NAN), (0.9,), (0.9, 0.9, 0.9), (INF, 0.9)),
    "eps": (-1e-8, NAN, INF),
    "momentum": (-0.5, NAN, INF),
    "dampening": (NAN, INF),
    "amsgrad": ("yes", 2, torch.zeros(0)),
    "capturable": ("yes", 2),
    "fused": ("yes", 2),
    "nesterov": ("yes", 2, torch.zeros(0)),
    "decoupled_weight_decay": ("yes", 2, torch.zeros(0)),
}
WORDS = {"lr": "learning rate", "betas": "beta", "eps": "epsilon"}


def accepts(row: Row, name: str) -> bool:
    return name in inspect.signature(row.cls).parameters


def cases(row: Row) -> Iterator[tuple[str, Any]]:
    for name, values in {**REFUSED, **REFUSED_BASE}.items():
        if accepts(row, name):
            for value in values:
                yield name, value


def test_refused_in_the_constructor(row: Row, mode: Mode) -> None:
    count = 0
    for name, value in cases(row):
        with pytest.raises(ValueError, match=WORDS.get(name, name)) as error:
            row(make_params(), **{**mode, name: value})
        text = str(error.value)
        shown = value[0] if name == "betas" and len(value) == 2 else value
        if name == "betas" and len(value) == 2 and 0 <= value[0] < 1:
            shown = value[1]
        assert str(shown) in text, f"{name}={value!r}: {text}"
        count += 1
    assert count > 40


def test_refused_in_a_group_of_the_constructor(row: Row, mode: Mode) -> None:
    for name, value in cases(row):
        groups = [{"params": make_params()}, {"params": make_params(), name: value}]
        with pytest.raises(ValueError, match=WORDS.get(name, name)):
            row(groups, **mode)


def test_refused_in_add_param_group(row: Row, mode: Mode) -> None:
    optimizer = row(make_params(), **mode)
    for name, value in cases(row):
        with pytest.raises(ValueError, match=WORDS.get(name, name)):
            optimizer.add_param_group({"params": make_params(), name: value})
        assert len(optimizer.param_groups) == 1, name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", None),
        ("lr", [1e-3]),
        ("weight_decay", None),
        ("protection", object()),
        ("betas", 0.9),
        ("betas", "0.9"),
        ("betas", None),
    ],
)
def test_wrong_types(row: Row, mode: Mode, name: str, value: Any) -> None:
    if not accepts(row, name):
        pytest.skip(f"{row} has no {name}")
    with pytest.raises((TypeError, ValueError), match=WORDS.get(name, name)):
        row(make_params(), **{**mode, name: value})


def test_nesterov_needs_momentum() -> None:
    from tests.testing.rows import SALSGD

    with pytest.raises(ValueError, match="Nesterov"):
        SALSGD(make_params(), nesterov=True)
    with pytest.raises(ValueError, match="Nesterov"):
        SALSGD(make_params(), nesterov=True, momentum=0.9, dampening=0.1)


def test_unknown_keyword(row: Row, mode: Mode) -> None:
    with pytest.raises(TypeError, match="protecton"):
        row(make_params(), protecton=0.3, **mode)


def test_shared_arguments_are_keywords_and_visible(row: Row) -> None:
    parameters = inspect.signature(row.cls).parameters
    if row.cls.__name__ in WITH_DEPRECATED:
        assert {"granularity", "plasticity", "compile"} <= set(parameters)
    assert set(REFUSED) - {"lr", "weight_decay"} <= set(parameters)
    for name in set(REFUSED) - {"lr", "weight_decay"}:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY, name
    assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def test_positional_arguments_are_those_of_the_base(row: Row) -> None:
    ours = [
        name
        for name, parameter in inspect.signature(row.cls).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    theirs = inspect.signature(row.peer).parameters
    assert ours == [n for n in theirs if theirs[n].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    for name in ours:
        assert inspect.signature(row.cls).parameters[name].default == theirs[name].default, name


class Sequence:
    """Like OmegaConf's ListConfig: a sequence that is neither list nor tuple."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]


def test_text_and_sequences_are_converted(row: Row, mode: Mode) -> None:
    text: dict[str, Any] = {
        "lr": "1e-3",
        "weight_decay": "0.01",
        "protection": "0.2",
        "pull": "1",
        "alpha": "5",
        "tau0": "1.5",
        "stats_beta": ".95",
        "consolidate_every": "500",
        "retention": "1",
        "rank": "8",
    }
    clear: dict[str, Any] = {
        name: int(value) if name in ("consolidate_every", "rank") else float(value)
        for name, value in text.items()
    }
    if row.has_betas:
        text["betas"], clear["betas"] = Sequence(".9", 0.99), (0.9, 0.99)
    for optimizer in (
        row(make_params(), **mode, **text),
        row([{"params": make_params(), **text}], **mode),
    ):
        group = optimizer.param_groups[0]
        for name, value in clear.items():
            assert group[name] == value, name
            assert type(group[name]) is type(value), name
    params, twin = make_params(), make_params()
    grads = stream(params, profile(5))
    drive(row(params, **mode, **text), params, grads)
    drive(row(twin, **mode, **clear), twin, grads)
    assert_equal(params, twin)


def test_lists_are_converted(row: Row, mode: Mode) -> None:
    if not row.has_betas:
        pytest.skip(f"{row} has no betas")
    for value in ([".9", 0.99], [0.9, "0.99"], (torch.tensor(0.9).item(), 0.99)):
        betas = row(make_params(), **mode, betas=value).param_groups[0]["betas"]
        assert type(betas) is tuple
        assert betas == pytest.approx((0.9, 0.99))


@pytest.mark.parametrize("value", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_state_dtype(row: Row, mode: Mode, value: Any) -> None:
    params = make_params()
    optimizer = row(params, state_dtype=value, importance="diagonal", **mode)
    found = drive(optimizer, params, stream(params, profile(80, (60,))))
    assert len(found) == 1
    state = optimizer.state[params[0]]
    for name in ("evidence", "pending", "anchor"):
        assert state[name].dtype is torch.bfloat16, name
    assert state["evidence"].max() > 0


@pytest.mark.parametrize("importance", KINDS)
def test_state_dtype_of_each_kind(class_row: Row, importance: str) -> None:
    params = make_params()
    optimizer = class_row(params, state_dtype="bfloat16", importance=importance)
    drive(optimizer, params, stream(params, profile(70)))
    for param in params:
        state = optimizer.state[param]
        names = [name for name in state if name.startswith(STATISTICS)]
        assert len(names) >= 3
        for name in names:
            if isinstance(state[name], Tensor):
                factor = "left_values" in state and name != "anchor"
                assert state[name].dtype is (torch.float32 if factor else torch.bfloat16), name
        assert optimizer.stability(param).max() > 0


def test_tensor_lr(row: Row, mode: Mode) -> None:
    rate = torch.tensor(0.01)
    if mode.get("foreach") and "exp_avg_sq" in row.moments:
        with pytest.raises(ValueError, match="lr as a Tensor is not supported"):
            row(make_params(), **{**mode, "lr": rate})
        return
    params, twin, plain = make_params(), make_params(), make_params()
    one = row(params, **{**mode, "lr": rate})
    other = row(twin, **{**mode, "lr": rate.item()})
    base = row.base(plain, **{**mode, "lr": rate})
    grads = stream(params, profile(90, (60,)))
    for now in grads[:CLOCK]:
        step_with(one, params, now)
        step_with(base, plain, now)
    assert one.param_groups[0]["lr"] is rate
    assert_equal(params, plain, "as torch.optim's, whose rounding depends on the kind of lr:")
    drive(other, twin, grads[:CLOCK])
    assert drive(one, params, grads[CLOCK:]) == drive(other, twin, grads[CLOCK:]) == [0]
    assert_near(params, twin, rtol=1e-5)
    rate.mul_(0.5)
    other.param_groups[0]["lr"] *= 0.5
    before = clone_params(params)
    step_with(one, params, grads[0])
    step_with(other, twin, grads[0])
    assert_near(params, twin, rtol=1e-5)
    assert not torch.equal(params[0], before[0])


def test_tensor_lr_of_two_elements_is_refused(row: Row, mode: Mode) -> None:
    with pytest.raises(ValueError, match="lr"):
        row(make_params(), **{**mode, "lr": torch.tensor([0.1, 0.1])})


@pytest.mark.parametrize("name", ["protection", "lr", "weight_decay"])
def test_changes_of_a_group_take_effect_in_the_next_step(row: Row, mode: Mode, name: str) -> None:
    (one, changed), (other, plain) = seasoned(row, **mode), seasoned(row, **mode)
    assert_equal(one, other)
    start = clone_params(one)
    changed.param_groups[0][name] = {"protection": 100.0, "lr": 0.05, "weight_decay": 0.5}[name]
    grads = stream(one, profile(1))[0]
    step_with(changed, one, grads)
    step_with(plain, other, grads)
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[0], start[0])


def test_protection_damps_the_gradient(mode: Mode) -> None:
    """Of plain gradient descent, whose move is the gradient that it is given: by element."""
    settings: Mode = {"weight_decay": 0.0, "pull": 0.0, "importance": "diagonal", **mode}
    factors = []
    for protection in (1.0, 1000.0):
        params, optimizer = seasoned(row_of("SALSGD"), **settings)
        optimizer.param_groups[0]["protection"] = protection
        start = clone_params(params)
        grads = stream(params, profile(1))[0]
        damped = [(1.0 - optimizer.stability(p)) * g for p, g in zip(params, grads, strict=True)]
        step_with(optimizer, params, grads)
        moves = [p.detach() - was.detach() for p, was in zip(params, start, strict=True)]
        # All of it may be scaled up toward the norm of the gradient, by one factor.
        factor = float(moves[0].norm() / damped[0].norm() / 0.01)
        factors.append(factor)
        for move, wanted in zip(moves, damped, strict=True):
            torch.testing.assert_close(move, -0.01 * factor * wanted, rtol=1e-3, atol=1e-6)
    assert all(0.99 <= factor <= LARGEST_GAIN + 0.01 for factor in factors), factors


def test_a_leap_of_the_norm_is_not_made_up_for() -> None:
    """Gradient descent's step is as long as its gradient, unless that is unusually long."""
    settings: Mode = {"weight_decay": 0.0, "pull": 0.0, "importance": "diagonal"}
    factors = []
    for size in (1.0, 2.0, 100.0):
        params, optimizer = seasoned(row_of("SALSGD"), protection=1.0, **settings)
        start = clone_params(params)
        grads = [size * g for g in stream(params, profile(1))[0]]
        damped = [(1.0 - optimizer.stability(p)) * g for p, g in zip(params, grads, strict=True)]
        step_with(optimizer, params, grads)
        moved = [p.detach() - was.detach() for p, was in zip(params, start, strict=True)]
        taken = float(get_total_norm(moved)) / 0.01
        usual = math.hypot(*(optimizer.state[p]["grad_norm_mean"] for p in params))
        usual += DEVIATIONS * math.hypot(
            *(optimizer.state[p]["grad_norm_var"] ** 0.5 for p in params)
        )
        assert taken <= max(float(get_total_norm(damped)), usual) * 1.001
        factors.append(taken / float(get_total_norm(grads)))
    assert factors[0] == pytest.approx(1.0, abs=1e-3), factors
    assert 1.0 > factors[1] > factors[2], factors


def test_settings_of_all_groups(row: Row, mode: Mode) -> None:
    """The detector and the clock are shared: one group can't have its own settings of them."""
    others = {"tau0": 1.5, "alpha": 5.0, "stats_beta": 0.9, "consolidate_every": 20}
    for name, value in others.items():
        group = {"params": make_params(), name: value}
        with pytest.raises(ValueError, match=f"Invalid {name} value.*shared by all groups"):
            row([{"params": make_params()}, group], **mode)
        with pytest.raises(ValueError, match=f"Invalid {name} value.*shared by all groups"):
            row(make_params(), **mode).add_param_group(group)
        alike = row([group, {"params": make_params(), name: str(value)}], **mode)
        assert [group[name] for group in alike.param_groups] == [value, value]
        saved = alike.state_dict()
        saved["param_groups"][1][name] = row(make_params()).param_groups[0][name]
        with pytest.raises(ValueError, match=rf"param_groups'\]\[1\]: Invalid {name} value"):
            alike.load_state_dict(saved)


def test_protection_zero_mid_run_moves_as_the_base(row: Row, mode: Mode) -> None:
    params, optimizer = seasoned(row, **mode)
    optimizer.param_groups[0]["protection"] = 0.0
    twin = clone_params(params)
    base = row.base(twin, **mode)
    state = base.state_dict()
    names = ("step", *row.moments)
    state["state"] = {
        key: {name: saved[name].clone() for name in names if name in saved}
        for key, saved in optimizer.state_dict()["state"].items()
    }
    base.load_state_dict(state)
    for now in stream(params, profile(20)):
        step_with(optimizer, params, now)
        step_with(base, twin, now)
    assert_equal(params, twin)
