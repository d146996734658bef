"""Cutting a step's work into pieces that fit a cache, and lists that share one code path.

An elementwise update of a large tensor in eager mode writes temporaries as large as the tensor. Cut
into flat slices of some hundred kilobytes, the same operations find their temporaries in cache, and
peak memory no longer grows with the model. For-loop mode is a list of one slice; foreach mode is a
list of many tensors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sal_optim.distributed import Sharding, aligned, is_distributed, local, sharding
from sal_optim.evidence import GRANULARITIES, LIST, SHARED, SLICE
from sal_optim.kronecker import SIDES
from sal_optim.utils.rounding import Number

# Elements of a whole group that is one list on a CPU: so far, fewer calls save more than smaller
# temporaries.
TOGETHER = 1 << 19
# Elements from which a tensor is worth the call of a compiled kernel: on smaller ones that call
# takes longer than all operations of a list. In 64 tensors of 33 thousand neither is clearly the
# faster, of 66 thousand the kernel is. (A compiler takes lengths of 0 and 1 for constants.)
KERNEL = 1 << 16


# Parameters, gradients and lists of state tensors by name.
Part = tuple[list[Tensor], list[Tensor], dict[str, list[Tensor]]]


@dataclass(slots=True)
class Work:
    """One parameter of a step as plain real local tensors."""

    param: Tensor
    grad: Tensor
    state: dict[str, Tensor]  # the tensors of the parameter's state that have its shape, and others
    step: Number  # the parameter's own step count, from 1
    fresh: bool  # whether the base optimizer's state was created in this very step
    owner: dict[str, Any]  # the whole state of the parameter
    sliceable: bool
    total: int  # scalars of the whole parameter, over all processes
    sharding: Sharding | None  # where the rest of them is
    whole: Tensor  # the parameter itself
    protected: bool = False  # by evidence
    # The evidence of a matrix by direction, which no elementwise update takes.
    sides: dict[str, Tensor] | None = None
    squares: float | None = None  # the gradient's sum of squares, where a kernel has taken it
    library: Any = None  # native.py's, where it serves
    place: bytes | None = None  # where its tensors are, as native.py hands it over
    sums: Any = None  # of squares by row and by column, as memory, where it took them

    def tensors(self) -> tuple[Tensor, ...]:
        """All that an elementwise update takes."""
        return self.param, self.grad, *self.state.values()


@dataclass(slots=True)
class Piece:
    """Works of one param group, device and dtype that are updated together."""

    group: dict[str, Any]
    works: list[Work] = field(default_factory=list)
    size: int = 0  # elements of a list
    compiled: bool = False  # one large tensor, for a kernel if there is one
    library: Any = None  # native.py's, which serves them all
    served: bool | None = None  # whether a kernel of torch may be given them, once it is asked
    together: Part | None = None  # as lists, once they are made
    gate: Any = None  # update.py's, of works that are kept

    @property
    def sliced(self) -> bool:
        """Whether it is a single large work, of which each slice is updated by itself."""
        work = self.works[0]
        return len(self.works) == 1 and work.param.numel() > _slice(work)

    def parts(self) -> Iterator[Part]:
        """Lists to be updated together: of all works, or slice by slice of a single large one."""
        work = self.works[0]
        if not (self.sliced and all(tensor.is_contiguous() for tensor in work.tensors())):
            yield self.lists()
            return
        shape = work.param.shape
        # Where rows share evidence, whole rows.
        columns = shape[1:].numel() if "evidence_row" in work.state else 1
        rows = max(1, _slice(work) // columns)
        count = -(-work.param.numel() // (columns * rows))

        def cut(tensor: Tensor, *, by_row: bool = False) -> Sequence[Tensor]:
            if tensor.shape == shape:
                return torch.split(tensor.view(-1, columns), rows)
            return torch.split(tensor, rows) if by_row else [tensor] * count

        state = [cut(t, by_row=name.endswith("_row")) for name, t in work.state.items()]
        for param, grad, *slices in zip(cut(work.param), cut(work.grad), *state, strict=True):
            yield [param], [grad], {n: [t] for n, t in zip(work.state, slices, strict=True)}

    def lists(self) -> Part:
        """Of all works."""
        grads = [work.grad for work in self.works]
        if self.together is None:
            params = [work.param for work in self.works]
            names = self.works[0].state
            state = {name: [work.state[name] for work in self.works] for name in names}
            self.together = params, grads, state
        else:
            self.together[1][:] = grads
        return self.together

    def let_go(self) -> None:
        """Hold no gradients."""
        if self.together is not None:
            self.together[1].clear()


def _slice(work: Work) -> int:
    """Elements of a slice of it."""
    return SLICE if work.sliceable else SHARED


def pieces(group: dict[str, Any], works: Sequence[Work]) -> Iterator[Piece]:
    """Cut the works of one param group, by its ``foreach`` flag or, where None, by device.

    On an accelerator, where each launch costs, lists are the faster; on a CPU, what fits a cache:
    all of a small model, else slices of large tensors, and lists of small ones that are together no
    larger. With ``compile``, large tensors are pieces of their own.
    """
    lists: dict[tuple[Any, ...], Piece] = {}
    together = sum(work.param.numel() for work in works) <= TOGETHER
    for work in works:
        param, grad, size = work.param, work.grad, work.param.numel()
        if work.library is not None:
            alike = (work.library, work.protected, work.fresh, work.sides is None)
            lists.setdefault(
                (*alike, tuple(work.state)), Piece(group, library=work.library)
            ).works.append(work)
            continue
        if group["compile"] and size >= KERNEL:
            yield Piece(group, [work], compiled=True)
            continue
        listed, limit = group["foreach"], LIST
        if listed is None and (together or not param.is_cpu):
            listed = True
        elif listed is None:
            listed, limit = size < SLICE, SLICE
        if not listed:
            yield Piece(group, [work])
            continue
        kinds = (param.get_device(), param.dtype, grad.dtype, work.protected, work.fresh)
        key = (*kinds, *work.state)
        piece = lists.get(key)
        if piece is None:
            piece = lists[key] = Piece(group)
        piece.works.append(work)
        piece.size += size
        if piece.size >= limit:
            yield lists.pop(key)
    yield from lists.values()


def packed(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether its memory is its elements, in order: a kernel may read it there."""
    return tensor.dtype is dtype and tensor.is_contiguous() and not tensor.is_neg()


def plain(tensor: Tensor) -> Tensor:
    """The real tensor behind a complex one, and this process's part of a distributed one."""
    tensor = local(tensor)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def work_on(
    param: Tensor, state: dict[str, Any], group: dict[str, Any], *, step: Number, fresh: bool
) -> Work:
    """One parameter that has a gradient, with the tensors of its state."""
    grad = param.grad
    assert grad is not None
    tensors = {n: t for n, t in state.items() if isinstance(t, Tensor)}
    tensors.pop("step", None)
    spread, real = is_distributed(param), param
    # Most are neither; looking at each of their tensors takes longer than small ones' updates.
    if spread or is_distributed(grad) or param.is_complex():
        real, grad = plain(param), plain(aligned(grad, param))
        tensors = {name: plain(tensor) for name, tensor in tensors.items()}
    sides = None
    if "left_basis" in tensors:
        sides = {n: t for n, t in tensors.items() if n.startswith(SIDES)}
        tensors = {n: t for n, t in tensors.items() if n not in sides}
    return Work(
        param=real,
        grad=grad,
        state=tensors,
        sides=sides,
        step=step,
        fresh=fresh,
        owner=state,
        sliceable=GRANULARITIES[group["granularity"]].sliceable,
        total=param.numel() * (2 if param.is_complex() else 1),
        sharding=sharding(param) if spread else None,
        whole=param,
    )
