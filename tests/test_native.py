"""compile=True on a CPU: one call for all tensors, the eager result to rounding, built once.

What ``native.cpp`` does not know is left to ``compiled.py`` or to the eager path, with a result to
match. The compiler of ``compiled.py`` is forbidden here, so that nothing else can have served.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sal_optim import SALAdam, SALAdamW, SALOptimizer, compiled, native
from sal_optim.kept import Kept
from tests.testing.drive import (
    assert_near,
    clone_params,
    consolidations,
    drive,
    drive_both,
    make_params,
    profile,
    snapshot,
    step_with,
    stream,
)
from tests.testing.rows import GRANULARITIES, ROWS, Row

# Beside small ones, a matrix of several parts of a thread's work, and two of no elements.
SHAPES = [(6, 5), (5,), (3, 2, 4), (1,), (), (0, 3), (3, 0), (70, 900)]
CHANGE = 60


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other compiler may serve."""
    if native._built(("LION=1",), "float", "float") is None:
        pytest.skip("no C++ compiler with OpenMP on this machine")

    def forbidden(*_: Any) -> None:
        raise AssertionError("compiled.py was asked")

    monkeypatch.setattr(compiled, "_kernel", forbidden)


def builds() -> int:
    return native._built.cache_info().misses


def pair(
    row: Row, dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[SALOptimizer, list[Tensor], SALOptimizer, list[Tensor]]:
    """The same parameters, with and without a kernel."""
    params = make_params(SHAPES, dtype)
    params[2] = params[2].detach().permute(2, 0, 1).requires_grad_()  # dense, not contiguous
    twins = [p.detach().clone().requires_grad_() for p in params]
    return row(params, compile=True, **changes), params, row(twins, **changes), twins


def agree(fast: SALOptimizer, slow: SALOptimizer, rtol: float = 1e-5, coarse: float = 1e-4) -> None:
    """Parameters and state of both; ``coarse`` for what is summed over many steps."""
    for mine, theirs in zip(fast.param_groups, slow.param_groups, strict=True):
        for param, twin in zip(mine["params"], theirs["params"], strict=True):
            assert_near([param], [twin], rtol=rtol, atol=rtol / 10)
            assert fast.state[param].keys() == slow.state[twin].keys()
            for name, value in slow.state[twin].items():
                if isinstance(value, Tensor) and not name.endswith("_basis"):
                    ours = fast.state[param][name]
                    assert ours.dtype == value.dtype
                    largest = float(value.abs().max()) if value.numel() else 0.0
                    assert_near([ours], [value], rtol=coarse, atol=1e-6 + coarse * largest)


@pytest.mark.parametrize("granularity", [g for g in GRANULARITIES if g != "tensor"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_eager_result(row: Row, granularity: str) -> None:
    fast, params, slow, twins = pair(row, granularity=granularity)
    grads = stream(params, profile(CHANGE + 40, (CHANGE,)))
    found = drive(fast, params, grads)
    assert drive(slow, twins, grads) == found
    assert len(found) == 1
    assert float(fast.stability(params[0]).max()) > 0
    agree(fast, slow)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_options(row: Row) -> None:
    """Ascent, evidence that is taken before training, and no learning rate for a while."""
    fast, params, slow, twins = pair(row, maximize=True, weight_decay=0.1)
    for step, now in enumerate(stream(params, profile(30))):
        for optimizer, mine in ((fast, params), (slow, twins)):
            if step == 10:
                optimizer.consolidate()
            optimizer.param_groups[0]["lr"] = 0.0 if 15 <= step < 20 else 0.01
            if step < 10:
                with optimizer.observe():
                    step_with(optimizer, mine, now)
            else:
                step_with(optimizer, mine, now)
    agree(fast, slow)


@pytest.mark.parametrize(
    ("dtype", "state_dtype", "tolerance"),
    [
        (torch.float64, None, 1e-12),
        (torch.complex64, None, 1e-5),
        # One unit in the last place of bfloat16, where a tie may fall to either side.
        (torch.float32, "bfloat16", 1e-2),
    ],
)
@pytest.mark.parametrize("granularity", ["element", "factored"])
def test_dtypes(
    dtype: torch.dtype, state_dtype: str | None, tolerance: float, granularity: str
) -> None:
    for cls in (SALAdam, SALAdamW):
        row = Row(cls.__name__, cls, torch.optim.Adam, ())
        options = {"granularity": granularity, "state_dtype": state_dtype}
        if dtype.is_complex and granularity == "factored":
            options["granularity"] = "element"
        fast, params, slow, twins = pair(row, dtype, **options)
        grads = stream(params, profile(24))
        drive_both((fast, params), (slow, twins), grads, consolidate=[8, 16])
        agree(fast, slow, rtol=max(1e-5, tolerance / 50), coarse=max(1e-4, tolerance))


@pytest.mark.parametrize("scale", [1.0, 1e-19, 1e17])
def test_matrices_of_many_parts(scale: float) -> None:
    """Sums by column are taken in stretches of several parts; of tiny and huge squares too."""
    shapes = [(1200, 500), (3, 20_000), (20_000, 3), (7,)]
    params = make_params(shapes)
    twins = clone_params(params)
    fast, slow = (
        SALAdamW(p, compile=c, granularity="factored") for p, c in ((params, True), (twins, False))
    )
    grads = stream(params, [scale] * 10)
    drive_both((fast, params), (slow, twins), grads, consolidate=[5])
    agree(fast, slow)
    assert float(fast.stability(params[0]).max()) > 0


@given(
    shapes=st.lists(
        st.lists(st.sampled_from([0, 1, 2, 3, 17, 63, 64, 65, 130]), max_size=3).map(tuple),
        min_size=1,
        max_size=4,
    ),
    granularity=st.sampled_from(["element", "factored"]),
    pull=st.sampled_from([0.0, 50.0]),
    state_dtype=st.sampled_from([None, "bfloat16"]),
)
@settings(max_examples=40, derandomize=True, deadline=None, database=None)
def test_any_shapes(
    shapes: list[tuple[int, ...]], granularity: str, pull: float, state_dtype: str | None
) -> None:
    """Ends of blocks, parts and rows, and tensors of no elements in any dimension."""
    params = make_params(shapes)
    twins = clone_params(params)
    options: dict[str, Any] = {"granularity": granularity, "pull": pull}
    fast, slow = (
        SALAdamW(p, compile=c, state_dtype=state_dtype, **options)
        for p, c in ((params, True), (twins, False))
    )
    grads = stream(params, profile(14))
    drive_both((fast, params), (slow, twins), grads, consolidate=[8])
    agree(fast, slow, **({"rtol": 1e-3, "coarse": 2e-2} if state_dtype else {}))


def test_nothing_is_built_twice() -> None:
    """A schedule, betas, a late parameter: a build each for a kind of optimizer and of tensors."""
    params = make_params(SHAPES)
    optimizer = SALAdam(params, compile=True)
    for step, now in enumerate(stream([*params, *make_params([(4, 7)])], profile(40))):
        group = optimizer.param_groups[0]
        group["lr"], group["betas"], group["eps"] = 1e-3 / (1 + step), (0.8, 0.9), 1e-8 * step
        group["protection"], group["pull"] = 0.1 + step, 5.0 + step
        if step == 1:
            before = builds()
        if step == 10:
            optimizer.add_param_group({"params": make_params([(4, 7)])})
        if step == 20:
            optimizer.consolidate()
        mine = [p for g in optimizer.param_groups for p in g["params"]]
        step_with(optimizer, mine, now[: len(mine)])
    assert builds() == before


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("granularity", ["element", "factored"])
def test_a_norm_taken_late_changes_nothing(
    row: Row, granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step whose norm can't change what it does takes it afterwards: the same, but for rounding.

    Through changes, outliers, gradients of zero and an infinite one.
    """
    params = make_params(SHAPES)
    twins = clone_params(params)
    late, early = (row(p, compile=True, granularity=granularity) for p in (params, twins))
    monkeypatch.setattr(early, "_foreseen", lambda: False)
    scales = profile(160, (60, 110))
    scales[40], scales[85], scales[86], scales[87] = 1e3, 50.0, 0.0, float("inf")
    foreseen = []
    for now in stream(params, scales):
        foreseen.append(late._foreseen())
        step_with(late, params, now)
        step_with(early, twins, now)
        theirs = snapshot(early)
        for name, value in snapshot(late).items():
            if isinstance(value, float | Tensor):
                torch.testing.assert_close(
                    value,
                    theirs[name],
                    rtol=1e-5,
                    atol=1e-6,
                    equal_nan=True,
                    msg=lambda found, name=name: f"{name}: {found}",
                )
            else:
                assert value == theirs[name], name
    assert consolidations(early) >= 1
    assert any(foreseen) != late._activity
    assert not all(foreseen)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    threads, found = torch.get_num_threads(), []
    grads = stream(make_params(SHAPES), profile(30))
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            params = make_params(SHAPES)
            optimizer = SALAdamW(params, compile=True, granularity="factored")
            for step, now in enumerate(grads):
                if step == 15:
                    optimizer.consolidate()
                step_with(optimizer, params, now)
            found.append(snapshot(optimizer))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for name, value in found[0].items():
            if isinstance(value, Tensor):
                assert torch.equal(value, other[name]), name


def test_gradients_that_are_not_finite_are_eager_ones() -> None:
    fast, params, slow, twins = pair(ROWS[0])
    for step, now in enumerate(stream(params, profile(20))):
        if step == 8:
            fast.consolidate()
            slow.consolidate()
        if step == 12:
            now[0][0, 0], now[0][1, 1] = float("nan"), float("inf")
        step_with(fast, params, now)
        step_with(slow, twins, now)
    assert params[0].isnan().equal(twins[0].isnan())
    assert params[0].isnan().any()
    assert_near(params[1:], twins[1:], rtol=1e-5, atol=1e-6)


def test_what_it_does_not_know_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two-byte parameters, one number a tensor, another's update, a gradient with holes."""
    monkeypatch.undo()

    class Other(SALAdam):
        @staticmethod
        def _direction(*args: Any) -> Any:
            return SALAdam._direction(*args)

    def served(optimizer: SALOptimizer, params: list[Tensor]) -> list[bool]:
        for param in params:
            param.grad = torch.ones_like(param)
        group = optimizer.param_groups[0]
        works, base = optimizer._collect(Kept(group)), optimizer._base(group, fresh=True)
        if base is None:
            return []
        native.serve(works, base)
        return [work.library is not None for work in works]

    def one(dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return make_params([(3, 4)], dtype)

    for cls, params, options, expected in (
        (SALAdam, one(), {}, [True]),
        (SALAdam, one(torch.bfloat16), {}, [False]),
        (SALAdam, one(), {"granularity": "tensor"}, [False]),
        (Other, one(), {}, []),
    ):
        assert served(cls(params, compile=True, **options), params) == expected
    params = one()
    optimizer = SALAdam(params, compile=True)
    params[0].grad = torch.ones(3, 8)[:, ::2]
    (work,) = optimizer._collect(Kept(optimizer.param_groups[0]))
    base = optimizer._base(optimizer.param_groups[0], fresh=True)
    assert base is not None
    native.serve([work], base)
    assert work.library is None


def test_one_evidence_a_tensor() -> None:
    fast, params, slow, twins = pair(ROWS[0], granularity="tensor")
    grads = stream(params, profile(CHANGE + 20, (CHANGE,)))
    assert drive(fast, params, grads) == drive(slow, twins, grads)
    agree(fast, slow)


CHILD = """
import warnings
import torch
from sal_optim import SALAdam
torch.manual_seed(0)
params = [torch.randn(300, 300, requires_grad=True)]
optimizer = SALAdam(params, compile=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        params[0].grad = torch.ones(300, 300)
        optimizer.step()
bits = params[0].detach().view(torch.int32).sum(dtype=torch.int64)
print(sum("compile=True" in str(w.message) for w in caught), int(bits))
"""


def test_without_a_compiler(tmp_path: Any) -> None:
    """One warning, and the eager result bit for bit."""
    env = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, check=True
    )
    torch.manual_seed(0)
    twins = [torch.randn(300, 300, requires_grad=True)]
    slow = SALAdam(twins)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            step_with(slow, twins, [torch.ones(300, 300)])
    bits = twins[0].detach().view(torch.int32).sum(dtype=torch.int64)
    assert done.stdout.split() == ["1", str(int(bits))], done.stderr


def test_a_compiler_that_knows_of_no_widths(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = next(filter(shutil.which, native.COMPILERS))
    script = tmp_path / "compiler"
    script.write_text(
        '#!/bin/sh\nfor option in "$@"; do case "$option" in *vector-width*) exit 1;; esac; done\n'
        f'exec {compiler} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    build = native._built.__wrapped__
    assert build(("ADAM=1", "AMSGRAD=0"), "float", "float") is not None


def test_small_tensors_are_served_too() -> None:
    params, twins = make_params(), make_params()
    grads = stream(params, profile(6))
    fast, slow = SALAdam(params, compile=True), SALAdam(twins)
    for now in grads:
        step_with(fast, params, now)
        step_with(slow, twins, now)
    works = fast._collect(Kept(fast.param_groups[0]))
    base = fast._base(fast.param_groups[0], fresh=False)
    assert base is not None
    native.serve(works, base)
    assert all(work.library is not None for work in works)
    assert_near(params, twins, rtol=1e-5, atol=1e-6)
