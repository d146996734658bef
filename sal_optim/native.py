"""The update of a step on a CPU as one pass over memory, for all tensors in one call.

``native.cpp`` is built by the machine's C++ compiler in a second, once a process for each kind of
base optimizer and dtype. Whatever changes from step to step is an argument. Where there is no such
compiler, or a tensor is of a kind that it does not know, ``compiled.py`` serves.
"""

import ctypes
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from sal_optim.distributed import PLAIN
from sal_optim.pieces import Work, packed
from sal_optim.update import Numbers, Plan

SOURCE = Path(__file__).with_name("native.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
         "-shared", "-fPIC")  # fmt: skip
# Where a vector may be a whole line of a cache: steps that read and write most take 4% less.
WIDE = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
REAL = {torch.float32: "float", torch.float64: "double"}
KEPT = {**REAL, torch.bfloat16: "bf16"}
# Of native.cpp: what stays of a struct Tensor from step to step, what does not; struct Numbers.
PLACE, STEP, NUMBERS = struct.Struct("3q9P"), struct.Struct("2P3d"), struct.Struct("12d")
# Elements a thread is given at least: waking one up takes as long as that many.
ENOUGH = 1 << 14


@dataclass(frozen=True, slots=True)
class Base:
    """A base optimizer's rule as native.cpp knows it."""

    defines: tuple[str, ...]  # of ADAM, AMSGRAD, SGD, MOMENTUM, LION
    constants: tuple[float, ...]
    moments: tuple[str, ...]  # names of state tensors, in its order


class Library:
    """``native.cpp``, built for one kind of base optimizer and of tensors."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._advance, self._squares = library.sal_advance, library.sal_squares

    def advance(self, plan: Plan, base: Base, works: Sequence[Work], numbers: Numbers) -> None:
        """:func:`sal_optim.update.advance` on all works; leaves the squares of their gradients."""
        if not (plan.moves or plan.gathers):
            return
        guarded = plan.moves and plan.protected
        pulled = guarded and plan.pulled
        shared = NUMBERS.pack(
            *base.constants,
            *[0.0] * (4 - len(base.constants)),
            numbers.decay if plan.decays and not guarded else 0.0,
            numbers.coupled_decay,
            -1.0 if plan.maximize else 1.0,
            *(float(n) for n in (numbers.protection, numbers.stiffness, numbers.scale)),
            *(float(n) for n in (numbers.gathered, numbers.rounding)),
        )
        factors, inverses = [0.0] * len(works), [1.0] * len(works)
        if plan.moves:
            factors = [float(factor) for factor in numbers.base[-1]]
        if len(numbers.base) > 1:  # Adam's
            inverses = [float(inverse) for inverse in numbers.base[1]]
        shares = [float(share) for share in numbers.decay_shares] or [0.0] * len(works)
        own = list(zip(factors, shares, inverses, strict=True))
        table = _table(works, base.moments, own)
        squares = None if plan.hears else (ctypes.c_double * len(works))()
        self._advance(
            shared,
            ctypes.c_int64(len(works)),
            table,
            squares,
            plan.gathers + 2 * guarded + 4 * pulled + 8 * (not plan.moves),
            _threads(works),
        )
        if squares is not None:
            _leave(works, squares)

    def squares(self, works: Sequence[Work]) -> None:
        """Leave the sum of squares of each gradient in its work; of matrices, by sides as well."""
        for work in works:
            if "evidence_column" in work.state:
                size = sum(_sides(work)) * work.param.element_size()
                work.sums = ctypes.create_string_buffer(size)
        found = (ctypes.c_double * len(works))()
        self._squares(ctypes.c_int64(len(works)), _table(works), found, _threads(works))
        _leave(works, found)


def serve(works: Sequence[Work], base: Base) -> None:
    """Give each work that it knows the library that serves it; the others have none.

    A work that is kept has it from the step before, and only its gradient is new.
    """
    for work in works:
        param, grad = work.param, work.grad
        usual = param.is_contiguous() and packed(grad, param.dtype)
        if work.library is None or not usual:
            kept = _kept(work, base.moments)
            work.library = None
            if kept is not None:
                work.library = _built(base.defines, REAL[param.dtype], KEPT[kept])


@cache
def _built(defines: tuple[str, ...], real: str, kept: str) -> Library | None:
    """None where it can't be built."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        return None
    known = [*defines, f"REAL={real}", f"KEPT={kept}"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "native.so"
        command = [*compiler.split(), *FLAGS, *(f"-D{name}" for name in known)]
        for extra in dict.fromkeys((WIDE, ())):  # not every compiler knows of widths
            try:
                subprocess.run(
                    [*command, *extra, str(SOURCE), "-o", str(path)],
                    check=True,
                    capture_output=True,
                )
                return Library(ctypes.CDLL(str(path)))
            except (OSError, subprocess.SubprocessError):
                continue
    return None


def _kept(work: Work, moments: Sequence[str]) -> torch.dtype | None:
    """The dtype of the evidence of a work of a kind that native.cpp knows; else None."""
    param, grad = work.param, work.grad
    dtype, kept = param.dtype, None
    if dtype not in REAL or type(param) not in PLAIN or not param.is_cpu:
        return None
    if grad.dtype != dtype or grad.is_neg():
        return None
    packed = param.is_contiguous() and grad.is_contiguous()
    for name, tensor in work.state.items():
        if name in moments:
            if tensor.dtype != dtype:
                return None
        elif kept is None:
            kept = tensor.dtype
        elif tensor.dtype != kept:
            return None
        packed = packed and tensor.is_contiguous()
    if kept != dtype and kept != torch.bfloat16:
        return None
    evidence = work.state.get("evidence")
    if evidence is not None and evidence.shape != param.shape:
        return None  # one number a tensor
    if not packed:
        alike = [param, grad, *work.state.values()]
        if not _dense(param) or any(
            tensor.shape != param.shape or tensor.stride() != param.stride() for tensor in alike
        ):
            return None
    return kept


def _dense(tensor: Tensor) -> bool:
    """Whether its elements fill a stretch of memory, in any order of its dimensions."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).is_contiguous()


def _sides(work: Work) -> tuple[int, int]:
    """Rows and columns of a matrix whose evidence is shared by them; all else is one row."""
    param = work.param
    if "evidence_column" in work.state:
        return param.shape[0], param.shape[1:].numel()
    return 1, param.numel()


def _table(
    works: Sequence[Work],
    moments: Sequence[str] = (),
    numbers: Sequence[tuple[float, float, float]] | None = None,
) -> bytes:
    """An array of struct Tensor; what is not given is null."""
    rows = []
    for index, work in enumerate(works):
        own = numbers[index] if numbers is not None else (0.0, 0.0, 0.0)
        # Where a work is kept, its memory is known to be where it was.
        place = work.place
        if place is None:
            place = _place(work, moments)
            if numbers is not None:
                work.place = place
        rows.append(place)
        sums = 0 if work.sums is None else ctypes.addressof(work.sums)
        rows.append(STEP.pack(work.grad.data_ptr(), sums, *own))
    return b"".join(rows)


def _place(work: Work, moments: Sequence[str]) -> bytes:
    state = work.state
    shared = "evidence_column" in state
    pointers = [state[name].data_ptr() for name in moments] + [0] * (3 - len(moments))
    if shared:
        names = ("evidence_column", "evidence_row", "pending_column", "pending_row")
        pointers += [state[name].data_ptr() for name in names]
    else:
        pointers += [state["evidence"].data_ptr(), 0, state["pending"].data_ptr(), 0]
    pointers.append(state["anchor"].data_ptr() if "anchor" in state else 0)
    return PLACE.pack(*_sides(work), shared, work.param.data_ptr(), *pointers)


def _threads(works: Sequence[Work]) -> int:
    size = sum(work.param.numel() for work in works)
    return max(1, min(torch.get_num_threads(), size // ENOUGH))


def _leave(works: Sequence[Work], squares: Iterable[float]) -> None:
    for work, found in zip(works, squares, strict=True):
        work.squares = found
