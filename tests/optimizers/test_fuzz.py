"""Fuzz: constructors and state dicts with one thing wrong raise an error that names it, or work.

Only ValueError, TypeError and KeyError may escape, and nothing has changed then. Some hundred cases
by default; ``make fuzz`` (``SAL_OPTIM_FUZZ=10000``) runs that many.
"""

from __future__ import annotations

import copy
import functools
import math
import os
from collections import Counter
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from sal_optim import SALOptimizer
from tests.testing.drive import (
    assert_names,
    assert_same_state,
    make_params,
    profile,
    snapshot,
    step_with,
    stream,
)
from tests.testing.rows import CLASSES, Row

CASES = int(os.environ.get("SAL_OPTIM_FUZZ", "600"))
# Of each class: half constructors, half state dicts.
EACH = -(-CASES // (2 * len(CLASSES)))
ERRORS = (ValueError, TypeError, KeyError)
fuzzed = functools.partial(
    settings,
    max_examples=EACH,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

pytestmark = [
    pytest.mark.timeout(300 + CASES),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]

numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2, -(10**9), 10**400, 0.0, -0.0, 0.5, -0.5, 1.5, 1e30, 5e-324]),
    st.floats(-1e6, 1e6),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.booleans(),
)
tensors = st.sampled_from(
    [
        lambda: torch.tensor(0.5),
        lambda: torch.tensor(-1.0),
        lambda: torch.tensor(math.nan),
        lambda: torch.tensor(3),
        lambda: torch.tensor(True),
        lambda: torch.tensor(1j),
        lambda: torch.zeros(0),
        lambda: torch.ones(1),
        lambda: torch.ones(2),
        lambda: torch.ones(2, 3),
        lambda: torch.ones(2, 3, dtype=torch.int64),
        lambda: torch.ones(2, 3, dtype=torch.bool),
        lambda: torch.ones(2, 3, dtype=torch.complex64),
        lambda: torch.ones(2, 3, dtype=torch.float8_e4m3fn),
        lambda: torch.ones(2, 3, dtype=torch.bfloat16),
        lambda: torch.ones(2, 3, dtype=torch.float64),
        lambda: torch.full((2, 3), math.nan),
        lambda: torch.ones(2, 3).to_sparse(),
        lambda: torch.ones(2, 3, device="meta"),
        lambda: torch.tensor(1.0, device="meta"),
        lambda: torch.ones(2, 3, requires_grad=True) * 2,
        lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    ]
).map(lambda make: make())
oddities = st.sampled_from(
    [
        lambda: None,
        lambda: "",
        lambda: "x",
        lambda: "1e-3",
        lambda: "nan",
        lambda: b"\x00",
        lambda: object(),
        lambda: int,
        lambda: len,
        lambda: {1, 2},
        lambda: range(3),
        lambda: iter([1]),
        lambda: (i for i in range(2)),
        lambda: torch.float32,
        lambda: 1j,
        lambda: torch.nn.Linear(1, 1),
    ]
).map(lambda make: make())
garbage = st.recursive(
    st.one_of(numbers, tensors, oddities, st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(-1, 3)), inner, max_size=3),
    ),
    max_leaves=4,
)


def tiny(row: Row) -> tuple[list[Tensor], SALOptimizer]:
    """Two groups, some steps into a second regime."""
    params = make_params([(2, 3), (2,)])
    optimizer = row([{"params": params[:1]}, {"params": params[1:]}])
    for now in stream(params, profile(3)):
        step_with(optimizer, params, now)
    optimizer.consolidate()
    for now in stream(params, profile(3)):
        step_with(optimizer, params, now)
    return params, optimizer


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All paths into nested dicts and lists."""
    if isinstance(value, dict):
        keys: Any = value
    elif isinstance(value, list):
        keys = range(len(value))
    else:
        return [path]
    return [path, *(spot for key in keys for spot in spots(value[key], (*path, key)))]


def mutate(state: dict[str, Any], path: tuple[Any, ...], action: str, value: Any) -> Any:
    """The state dict with one thing replaced, deleted or added; itself at an empty path."""
    if not path:
        return value if action == "replace" else {**state, "novel": value}
    target: Any = state
    for key in path[:-1]:
        target = target[key]
    if action == "replace":
        target[path[-1]] = value
    elif action == "delete":
        del target[path[-1]]
    elif isinstance(target, list):
        target.append(value)
    else:
        target["novel"] = value
    return state


def usable(params: list[Tensor], optimizer: SALOptimizer) -> None:
    """What was accepted can be worked with."""
    for now in stream(params, profile(2)):
        step_with(optimizer, params, now)
    optimizer.consolidate()
    optimizer.diagnostics()
    optimizer.state_dict()


@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_fuzz_of_state_dicts(row: Row) -> None:
    params, optimizer = tiny(row)
    template = copy.deepcopy(optimizer.state_dict())
    paths = spots(template)
    before = snapshot(optimizer)
    outcomes: Counter[str] = Counter()

    @fuzzed()
    @given(
        path=st.sampled_from(paths),
        action=st.sampled_from(["replace", "replace", "delete", "add"]),
        value=garbage,
    )
    def run(path: tuple[Any, ...], action: str, value: Any) -> None:
        nonlocal params, optimizer, before
        broken = mutate(copy.deepcopy(template), path, action, value)
        try:
            optimizer.load_state_dict(broken)
        except ERRORS as error:
            outcomes["refused"] += 1
            # The innermost named place; a number in a list is named by what holds it.
            named = [str(part) for part in path if isinstance(part, str)][-1:] or ["state_dict"]
            if path[:1] == ("state",):
                named.append("state of parameter")
            assert_names(error, [*named, "'params'"] + ["novel"] * (action == "add"))
            assert_same_state(snapshot(optimizer), before)
            return
        outcomes["loaded"] += 1
        usable(params, optimizer)
        # Products of matrices may differ in their last bit by where memory lies.
        params, optimizer = tiny(row)
        before = snapshot(optimizer)

    run()
    assert outcomes.total() >= EACH
    assert min(outcomes["loaded"], outcomes["refused"]) > EACH // 20, outcomes


# As torch.optim words them.
WORDS = {"lr": "learning rate", "eps": "epsilon", "betas": "beta"}
NESTEROV = {"nesterov", "momentum", "dampening"}


@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_fuzz_of_constructors(row: Row) -> None:
    names = sorted(row.cls(make_params()).defaults)
    outcomes: Counter[str] = Counter()

    @fuzzed()
    @given(
        kwargs=st.dictionaries(
            st.sampled_from(names), st.one_of(numbers, garbage), min_size=1, max_size=2
        ),
        how=st.sampled_from(["constructor", "group", "later"]),
    )
    def run(kwargs: dict[str, Any], how: str) -> None:
        params = make_params([(2, 3), (2,)])
        optimizer = None
        try:
            if how == "later":
                optimizer = row(params[:1])
                before = snapshot(optimizer)
                optimizer.add_param_group({"params": params[1:], **kwargs})
            elif how == "group":
                optimizer = row([{"params": params, **kwargs}])
            else:
                optimizer = row(params, **kwargs)
        except ERRORS as error:
            outcomes["refused"] += 1
            words = [word for name in kwargs for word in (name, WORDS.get(name, name))]
            assert_names(error, words + ["Nesterov"] * bool(NESTEROV & kwargs.keys()))
            if how == "later":
                assert optimizer is not None
                assert_same_state(snapshot(optimizer), before)
            return
        outcomes["made"] += 1
        usable(params, optimizer)

    run()
    assert outcomes.total() >= EACH
    assert min(outcomes["made"], outcomes["refused"]) > EACH // 50, outcomes
