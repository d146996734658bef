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

from sal_optim.distributed import Sharding, aligned, local, sharding
from sal_optim.evidence import GRANULARITIES

# Elements of a slice: float32 slices of a parameter, its gradient, state and temporaries stay
# within a few megabytes. A multiple of every vector width, so that slicing rounds nothing anew.
SLICE = 1 << 16
# Elements of a foreach list: bounds the temporaries of a step at three times this many values.
LIST = 1 << 24


@dataclass(slots=True)
class Work:
    """One parameter of a step, or a flat slice of one, as plain real local tensors."""

    param: Tensor
    grad: Tensor
    state: dict[str, Tensor]  # the tensors of the parameter's state that have its shape, and others
    step: float  # the parameter's own step count, from 1
    fresh: bool  # whether the base optimizer's state was created in this very step
    owner: dict[str, Any]  # the whole state of the parameter
    sliceable: bool
    total: int  # scalars of the whole parameter, over all processes
    sharding: Sharding | None  # where the rest of them is
    whole: Tensor  # the parameter itself
    protected: bool = False  # by evidence

    def slices(self) -> "Iterator[Work]":
        """Itself, or flat slices of itself where it is large, contiguous and sliceable."""
        tensors = (self.param, self.grad, *self.state.values())
        size = self.param.numel()
        if size <= SLICE or not self.sliceable or not all(t.is_contiguous() for t in tensors):
            yield self
            return
        columns = [
            torch.split(tensor.view(-1), SLICE) if tensor.numel() == size else None
            for tensor in tensors
        ]
        names = tuple(self.state)
        for index in range(-(-size // SLICE)):
            param, grad, *state = (
                tensor if column is None else column[index]
                for tensor, column in zip(tensors, columns, strict=True)
            )
            yield Work(
                param,
                grad,
                dict(zip(names, state, strict=True)),
                self.step,
                self.fresh,
                self.owner,
                self.sliceable,
                self.total,
                self.sharding,
                self.whole,
                self.protected,
            )


@dataclass(slots=True)
class Piece:
    """Works of one param group, device and dtype that are updated together."""

    group: dict[str, Any]
    works: list[Work] = field(default_factory=list)

    @property
    def params(self) -> list[Tensor]:
        return [work.param for work in self.works]

    @property
    def grads(self) -> list[Tensor]:
        return [work.grad for work in self.works]

    @property
    def state(self) -> dict[str, list[Tensor]]:
        """Lists by name, one entry a work."""
        return {name: [work.state[name] for work in self.works] for name in self.works[0].state}


def pieces(group: dict[str, Any], works: Sequence[Work]) -> Iterator[Piece]:
    """Cut the works of one param group, by its ``foreach`` flag or, where None, by device.

    On a CPU a loop over cache-sized slices is the faster; on an accelerator, where each launch
    costs, lists are.
    """
    lists: dict[tuple[Any, ...], Piece] = {}
    sizes: dict[tuple[Any, ...], int] = {}
    for work in works:
        if group["compile"]:
            yield Piece(group, [work])
            continue
        foreach = group["foreach"]
        if foreach is None:
            foreach = work.param.device.type != "cpu"
        if not foreach:
            for part in work.slices():
                yield Piece(group, [part])
            continue
        key = (
            work.param.device,
            work.param.dtype,
            work.grad.dtype,
            work.protected,
            work.fresh,
            tuple(work.state),
        )
        piece = lists.setdefault(key, Piece(group))
        piece.works.append(work)
        sizes[key] = sizes.get(key, 0) + work.param.numel()
        if sizes[key] >= LIST:
            yield lists.pop(key)
            del sizes[key]
    yield from lists.values()


def plain(tensor: Tensor) -> Tensor:
    """The real tensor behind a complex one, and this process's part of a distributed one."""
    tensor = local(tensor)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def work_on(
    param: Tensor, state: dict[str, Any], group: dict[str, Any], *, step: float, fresh: bool
) -> Work:
    """One parameter that has a gradient, with the tensors of its state."""
    assert param.grad is not None
    return Work(
        param=plain(param),
        grad=plain(aligned(param.grad, param)),
        state={
            name: plain(value)
            for name, value in state.items()
            if name != "step" and isinstance(value, Tensor)
        },
        step=step,
        fresh=fresh,
        owner=state,
        sliceable=GRANULARITIES[group["granularity"]].sliceable,
        total=param.numel() * (2 if param.is_complex() else 1),
        sharding=sharding(param),
        whole=param,
    )
