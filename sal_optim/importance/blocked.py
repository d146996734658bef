"""Importance of a sharded matrix: each process's blocks have importance of their own, of any kind.

As blocked Shampoo does it (Anil et al. 2020, arXiv 2002.09018): no process needs another's part of
a gradient. What two blocks of rows have in common is not seen. The state of all blocks is stacked,
see ``sharding/stacked.py``; here each block is a view of it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sal_optim.importance.base import Importance, Penalty, State
from sal_optim.sharding.stacked import Layout
from sal_optim.utils.rounding import Number


class Blocked:
    """A kind of importance, by block."""

    def __init__(self, kind: Importance, layout: Layout, rank: int) -> None:
        self.kind, self.layout, self.rank = kind, layout, rank
        self.wide = getattr(kind, "wide", False)

    def shapes(self, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
        lead, block = self.layout
        found = self.kind.shapes(block, rank)
        return {f"{name}{self.layout.suffix}": (*lead, *size) for name, size in found.items()}

    def accumulate(
        self, states: list[State], grads: list[Tensor], scale: Number, at: float
    ) -> None:
        blocks = [pair for s, g in zip(states, grads, strict=True) for pair in self.blocks(s, g)]
        if blocks:
            self.kind.accumulate([part for part, _ in blocks], [g for _, g in blocks], scale, at)

    def merge(
        self, state: State, values: Tensor, *, new: float, old: float, memory: float, at: float
    ) -> None:
        for part, block in self.blocks(state, values):
            self.kind.merge(part, block, new=new, old=old, memory=memory, at=at)

    def protect(
        self, states: list[State], grads: list[Tensor], penalty: Penalty | None, damping: float
    ) -> list[Tensor]:
        each = [list(self.blocks(s, g)) for s, g in zip(states, grads, strict=True)]
        parts = [part for blocks in each for part, _ in blocks]
        if not parts:
            return grads
        forces = [block for blocks in each for _, block in blocks]
        if penalty is not None:
            moved = [block for whole in penalty.moved for block in self._rows(whole)]
            penalty = Penalty(moved, penalty.stiffness)
        rest = iter(self.kind.protect(parts, forces, penalty, damping))
        return [
            _joined([next(rest) for _ in blocks], grad)
            for blocks, grad in zip(each, grads, strict=True)
        ]

    def draw(self, state: State, values: Tensor, strength: float) -> None:
        for part, block in self.blocks(state, values):
            self.kind.draw(part, block, strength)

    def elements(self, state: State, values: Tensor, damping: float = 0.0) -> Tensor:
        blocks = self.blocks(state, values)
        found = [self.kind.elements(part, block, damping) for part, block in blocks]
        return _joined(found, values)

    def _rows(self, values: Tensor) -> tuple[Tensor, ...]:
        """The blocks of this process's part; none of an empty one."""
        return torch.split(values, self.layout.block[0]) if values.numel() else ()

    def blocks(self, state: State, values: Tensor) -> Iterator[tuple[State, Tensor]]:
        """The state of each block, as views, and its part of ``values``."""
        depth, suffix = len(self.layout.lead), self.layout.suffix
        names = self.kind.shapes(self.layout.block, self.rank)
        stacked = {name: state[f"{name}{suffix}"] for name in names}
        if depth:
            stacked = {name: value.flatten(0, depth - 1) for name, value in stacked.items()}
        anchors = self._rows(state["anchor"]) if "anchor" in state else None
        for index, block in enumerate(self._rows(values)):
            part: State = {}
            for name, size in self.kind.shapes(tuple(block.shape), self.rank).items():
                own = stacked[name][index] if depth else stacked[name]
                # The last part may be smaller than the others, its state with it.
                part[name] = own[tuple(slice(length) for length in size)]
            if anchors is not None:
                part["anchor"] = anchors[index]
            yield part, block


def _joined(blocks: list[Tensor], like: Tensor) -> Tensor:
    if len(blocks) == 1:
        return blocks[0]
    return torch.cat(blocks) if blocks else like
