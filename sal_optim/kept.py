"""What a step found out about its parameters, kept for the next one.

To look through the state of a small tensor takes longer than to update it, and most steps find what
the one before found. Whatever is kept is compared with what it was made from before it is used. On
a CPU alone: who moves state off an accelerator between two steps wants its memory back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor

from sal_optim.distributed import PLAIN
from sal_optim.pieces import TOGETHER, Piece, Work, pieces
from sal_optim.update import Gate


@dataclass(frozen=True, slots=True)
class _Seen:
    """A work, and what it was made from."""

    work: Work
    values: list[Any]  # of the parameter's state
    tensors: list[Tensor]  # the parameter, and those of its state
    places: list[int]  # of their memory
    shape: torch.Size
    dtype: torch.dtype
    packed: bool


class Kept:
    """Works and pieces of one param group."""

    def __init__(self, group: dict[str, Any]) -> None:
        self.group = group
        self._settings: tuple[Any, ...] = ()
        self._seen: dict[int, _Seen] = {}
        self._works: list[Work] = []
        self._kinds: list[Any] = []
        self._pieces: list[Piece] = []

    def under(self, moments: tuple[str, ...]) -> None:
        """Forget what was found for other moments, or under other settings, than are asked for."""
        group = self.group
        settings = (
            moments,
            group["pull"] > 0.0,
            group["granularity"],
            group["rank"],
            group["state_dtype"],
            group["capturable"],
            group["compile"],
        )
        if settings != self._settings:
            self._settings = settings
            self._seen.clear()

    def holds(self, param: Tensor, state: dict[str, Any] | None) -> bool:
        """Whether all is as when the parameter's work was made; if not, that is forgotten."""
        seen = self._seen.get(id(param))
        if seen is None:
            return False
        grad, work = param.grad, seen.work
        if (
            work.owner is state
            and work.whole is param
            and len(state) == len(seen.values)
            and all(map(is_, state.values(), seen.values))
            and list(map(Tensor.data_ptr, seen.tensors)) == seen.places
            and param.dtype is seen.dtype
            and param.shape == seen.shape
            and param.is_contiguous() is seen.packed
            and param.is_cpu
            and grad is not None
            and type(grad) in PLAIN
            and grad.layout is torch.strided
        ):
            return True
        del self._seen[id(param)]
        return False

    def work(self, param: Tensor, grad: Tensor) -> Work | None:
        """The parameter's work, if there is one; asked after :meth:`holds`."""
        seen = self._seen.get(id(param))
        if seen is None:
            return None
        work = seen.work
        work.grad, work.fresh, work.protected = grad, False, False
        work.squares = work.sums = None
        return work

    def keep(self, work: Work) -> None:
        """Keep a work, where that is of use."""
        param, values = work.whole, list(work.owner.values())
        tensors = [param, *(value for value in values if isinstance(value, Tensor))]
        usual = type(param) in PLAIN and param.is_cpu and not param.is_complex()
        if (
            usual
            and not self.group["capturable"]
            and not torch.compiler.is_compiling()
            and not any(tensor.is_inference() for tensor in tensors)
        ):
            places = list(map(Tensor.data_ptr, tensors))
            kind = param.shape, param.dtype, param.is_contiguous()
            self._seen[id(param)] = _Seen(work, values, tensors, places, *kind)

    def pieces(self, works: list[Work]) -> list[Piece]:
        """These works, cut into pieces."""
        kinds = [self.group["foreach"], *((work.protected, work.library) for work in works)]
        if kinds != self._kinds or not all(map(is_, works, self._works)):
            self._pieces = list(pieces(self.group, works))
            self._works, self._kinds = works, kinds
            small = sum(work.param.numel() for work in works) <= TOGETHER
            for piece in self._pieces:
                eager = piece.library is None and not piece.sliced
                if small and eager and all(map(self._has, piece.works)):
                    piece.gate = Gate()
        return self._pieces

    def _has(self, work: Work) -> bool:
        return id(work.whole) in self._seen

    def let_go(self, works: Sequence[Work]) -> None:
        """Hold no gradient beyond its step, and no parameter that is not stepped any more."""
        if len(self._seen) != len(works):
            stepped = [id(work.whole) for work in works if self._has(work)]
            self._seen = {place: self._seen[place] for place in stepped}
        if len(self._seen) != len(works):
            self._works, self._kinds, self._pieces = [], [], []
        for piece in self._pieces:
            piece.let_go()
        for work in works:
            del work.grad
