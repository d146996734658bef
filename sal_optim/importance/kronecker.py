"""Kronecker-factored importance of a matrix, of low rank: it knows which moves go together.

With G the scaled gradient of an (m, n) matrix and T the sum of its squares, the importance of a
move along u on the left and v on the right is ``(u' L u) (v' R v) / T``, where ``L = mean G G'``
and ``R = mean G' G``. That is the Kronecker-factored approximation of the Fisher information which
Ritter et al. 2018 (arXiv 1805.07810) use against forgetting. Its factors are of gradients alone, as
in Shampoo (Gupta et al. 2018, arXiv 1802.09568). A diagonal holds every weight of an input that
matters, even where moves cancel in the output.

Of a side longer than twice the rank a random sketch is summed (Tropp et al. 2017, arXiv
1706.05736), and of any side the strongest directions are kept, the others by their mean.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from sal_optim.importance.base import Penalty, State
from sal_optim.importance.diagonal import scaled
from sal_optim.importance.low_rank import (
    directions,
    eigen,
    from_sketch,
    positive,
    projection,
    strongest,
)
from sal_optim.utils.rounding import Number, add, on_host, wide

SIDES = ("left", "right")

# The most by which a move along no known direction is damped: 1 / (1 + ROOM) of it is left. Where
# noise spreads gradients over all directions, as dropout does, a network could not learn on
# otherwise.
ROOM = 0.3

# Dampings of one matrix that tables are kept of.
MOST_TABLES = 4


class Table(NamedTuple):
    """Factors of a move by direction: both sides known, one of them, none."""

    outside: Number
    rows: Tensor  # (left rank, 1), less outside
    columns: Tensor  # (1, right rank), less outside
    both: Tensor  # (left rank, right rank), less all of these

    def times(self, factor: Number) -> "Table":
        """All factors times a number."""
        rows, columns, both = (part * factor for part in self[1:])
        return Table(self.outside * factor, rows, columns, both)


class Tables(NamedTuple):
    """With Omega as it is held: ``1 / (1 + damping * Omega)``, and Omega times this."""

    damped: Table
    pulled: Table


class Kronecker:
    """The strongest directions of both sides of a matrix, and a mean of the others.

    Args:
        room: the most by which a move along no known direction is damped.
    """

    # In two-byte floats directions are not orthogonal, and little would be protected.
    wide = True

    def __init__(self, room: float = ROOM) -> None:
        self.room = room
        # Tables by damping, made once a consolidation. They follow from the values.
        self._tables: Any = WeakIdKeyDictionary()

    def shapes(self, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
        return _shapes(shape, rank)

    def accumulate(
        self, states: list[State], grads: list[Tensor], scale: Number, at: float
    ) -> None:
        for state, grad in zip(states, grads, strict=True):
            if not grad.numel():
                continue
            factor = 1.0
            # Sums in two-byte floats are of float32 values, so that they can be rounded in turn.
            kept: torch.dtype = state["left_values"].dtype
            if isinstance(scale, Tensor) or grad.dtype != kept or kept.itemsize == 2:
                matrix = scaled(grad, kept, scale).flatten(1)
            else:
                # Scaled on the way, once on either side: a copy would be read and written.
                matrix, factor = grad.flatten(1), scale
            total = (torch.linalg.vector_norm(matrix) * factor).square()
            add(state["pending_total"], total, at)
            for side, one in zip(SIDES, (matrix, matrix.T), strict=True):
                pending = state[f"{side}_pending"]
                size, width = pending.shape
                seen = one.T
                if width < size:
                    seen = seen @ projection(size, width, one.dtype, one.device)
                seen = seen * factor
                if pending.dtype == one.dtype:
                    pending.addmm_(one, seen, alpha=factor)
                else:
                    add(pending, one @ seen, at)

    def merge(
        self, state: State, values: Tensor, *, new: float, old: float, memory: float, at: float
    ) -> None:
        if not values.numel():
            return
        exact = wide(values.dtype)
        pending = state["pending_total"].to(exact) * new
        known = total(state, exact) * old
        before, after = [], []
        for side in SIDES:
            basis = state[f"{side}_basis"].to(exact)
            strengths = state[f"{side}_values"].to(exact) * old
            sums = state[f"{side}_pending"].to(exact) * new
            directions, found = _merged(sums, basis, strengths, pending)
            before.append(_seen_along(directions, basis, strengths, known))
            after.append(found)
            state[f"{side}_basis"].copy_(directions)
            state[f"{side}_values"].copy_(found)
            state[f"{side}_pending"].zero_()
        state["pending_total"].zero_()
        if "anchor" not in state:
            return
        held = torch.outer(*before) / positive(known)
        gain = (torch.outer(*after) / positive(known + pending) - held).clamp_min_(0.0)
        share = gain / positive(memory * held + gain)
        anchor = state["anchor"].to(exact)
        moved = (values.to(exact) - anchor).flatten(1)
        step = along([(table_of(share), moved)], *bases(state, exact))
        state["anchor"].copy_(anchor + step.view_as(values))

    def protect(
        self, states: list[State], grads: list[Tensor], penalty: Penalty | None, damping: float
    ) -> list[Tensor]:
        found, exact = [], wide(grads[0].dtype)
        for index, (state, grad) in enumerate(zip(states, grads, strict=True)):
            if not grad.numel():
                found.append(grad)
                continue
            tables = self._tables_of(state, damping, exact)
            moves = [(tables.damped, _matrix(grad, exact))]
            if penalty is not None:
                # Pulled and damped at once: along a strong direction the pull alone is many times
                # the gradient.
                pulled = tables.pulled.times(penalty.stiffness)
                moves.append((pulled, _matrix(penalty.moved[index], exact)))
            damped = along(moves, *bases(state, exact))
            found.append(damped.view_as(grad).to(grad.dtype))
        return found

    def draw(self, state: State, values: Tensor, strength: float) -> None:
        if not values.numel():
            return
        exact = wide(values.dtype)
        springs = self._omega(state, exact) * strength
        # A spring beyond all numbers draws back entirely.
        share = (springs / (springs + 1.0)).nan_to_num_(nan=1.0)
        moved = (values.to(exact) - state["anchor"].to(exact)).flatten(1)
        values.sub_(along([(table_of(share), moved)], *bases(state, exact)).view_as(values))

    def grow(self, state: State, larger: State) -> None:
        """Directions keep their values and have no part in new rows, which have none."""
        for side in SIDES:
            basis, values = state[f"{side}_basis"], state[f"{side}_values"]
            wider, found = larger[f"{side}_basis"], larger[f"{side}_values"]
            size, kept = basis.shape
            rows, width = wider.shape
            wider[:size, :kept] = basis
            # Where all directions are known, so are those of new rows: by themselves.
            wider[size : size + width - kept, kept:].fill_diagonal_(1.0)
            found[:kept] = values[:-1]
            # The sum over what is not known stays as it was.
            found[-1] = values[-1] * ((size - kept) / max(1, rows - width))

    def elements(self, state: State, values: Tensor, damping: float = 0.0) -> Tensor:
        exact = wide(state["left_values"].dtype)
        if not values.numel():
            return torch.zeros_like(values, dtype=exact)
        sides = []
        for side in SIDES:
            basis = state[f"{side}_basis"].to(exact)
            strengths = state[f"{side}_values"].to(exact)
            sides.append(basis.square() @ (strengths[:-1] - strengths[-1]) + strengths[-1])
        divisor = self._divisor(self._omega(state, exact)[-1, -1], damping)
        found = torch.outer(*sides) / positive(total(state, exact)) / divisor
        return found.view(values.shape)

    def _tables_of(self, state: State, damping: float, dtype: torch.dtype) -> Tables:
        """The tables of a protected gradient, made once a consolidation."""
        left, right = (state[f"{side}_values"] for side in SIDES)
        if left.is_inference() or right.is_inference():
            # Begun under torch.inference_mode: no version says when they have changed.
            return self._made(state, damping, dtype)
        # Views of one tensor, as blocks of sharded state are, have their places in it.
        whole = left if left._base is None else left._base
        version = (left._version, right._version, right.data_ptr(), dtype)
        known = self._tables.setdefault(whole, {})
        place = left.storage_offset()
        if place not in known or known[place][0] != version:
            known[place] = version, {}
        tables: dict[float, Tables] = known[place][1]
        if damping not in tables:
            if len(tables) >= MOST_TABLES:  # a schedule of the protection's strength
                tables.clear()
            tables[damping] = self._made(state, damping, dtype)
        return tables[damping]

    def _made(self, state: State, damping: float, dtype: torch.dtype) -> Tables:
        omega = self._omega(state, dtype)
        omega = omega / self._divisor(omega[-1, -1], damping)
        factors = 1.0 / (omega * damping + 1.0)
        return Tables(table_of(factors), table_of(omega * factors))

    def _divisor(self, outside: Tensor, damping: float) -> Tensor:
        """What importance is divided by, at least 1, so that damping leaves room to learn."""
        return (outside * (damping / self.room)).clamp_min(1.0)

    @staticmethod
    def _omega(state: State, dtype: torch.dtype) -> Tensor:
        """Importance of each pair of directions; the last row and column are for no direction."""
        left: Tensor = state["left_values"].to(dtype)
        right: Tensor = state["right_values"].to(dtype)
        return torch.outer(left, right) / positive(total(state, dtype))


@lru_cache(maxsize=1024)
def _shapes(shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"pending_total": ()}
    for side, size in zip(SIDES, (shape[0], math.prod(shape[1:])), strict=True):
        kept = min(size, rank)
        found[f"{side}_pending"] = (size, min(size, 2 * rank))
        found[f"{side}_basis"] = (size, kept)
        # Of each direction, and of one that is none of them.
        found[f"{side}_values"] = (kept + 1,)
    return found


def total(state: State, dtype: torch.dtype) -> Tensor:
    """T, the sum of the importance of all elements: the trace of either side."""
    values: Tensor = state["left_values"].to(dtype)
    basis: Tensor = state["left_basis"]
    return values[:-1].sum() + values[-1] * (basis.shape[0] - basis.shape[1])


def bases(state: State, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Directions of the left and of the right side, as columns."""
    return state["left_basis"].to(dtype), state["right_basis"].to(dtype)


def table_of(factors: Tensor) -> Table:
    """Factors of all pairs of directions, taken apart as :func:`along` needs them."""
    outside = factors[-1, -1]
    rows, columns = factors[:-1, -1:] - outside, factors[-1:, :-1] - outside
    both = factors[:-1, :-1] - rows - columns - outside
    # Reading a number would be a wait for an accelerator.
    return Table(float(outside) if on_host(outside) else outside, rows, columns, both)


def along(moves: Sequence[tuple[Table, Tensor]], left: Tensor, right: Tensor) -> Tensor:
    """The sum of moves of a matrix, (m, n), each with its parts by direction times factors."""
    inside, beside, outside = [], [], []
    for table, move in moves:
        down, across = left.T @ move, move @ right
        both = table.both * (left.T @ across)
        inside.append(torch.addmm(table.rows * down, both, right.T))
        beside.append(table.columns * across)
        outside.append(move * table.outside)
    found = _total(outside)
    return found.addmm_(left, _total(inside)).addmm_(_total(beside), right.T)


def _total(parts: list[Tensor]) -> Tensor:
    """Their sum, in the place of the first."""
    for part in parts[1:]:
        parts[0].add_(part)
    return parts[0]


def _matrix(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).flatten(1)


def _merged(
    pending: Tensor, basis: Tensor, values: Tensor, pending_total: Tensor
) -> tuple[Tensor, Tensor]:
    """The strongest directions of one side's importance with what is pending, and their values."""
    size, rank = basis.shape
    rest = values[-1]
    known = basis * (values[:-1] - rest).clamp_min(0.0).sqrt()
    if pending.shape[1] == size:
        squares, vectors = eigen(known @ known.T + pending)
    else:
        factor = from_sketch(pending)
        # What a sketch has missed lies anywhere.
        rest = rest + (pending_total - factor.square().sum()).clamp_min(0.0) / size
        squares, vectors = directions(torch.cat([known, factor], 1))
    return strongest(squares, vectors, rank, rest)


def _seen_along(new: Tensor, basis: Tensor, values: Tensor, known: Tensor) -> Tensor:
    """What earlier importance says of new directions and, by its mean, of all others."""
    size, rank = new.shape
    rest = values[-1]
    parts = rest + (basis.T @ new).square().T @ (values[:-1] - rest)
    others = (known - parts.sum()).clamp_min(0.0) / max(1, size - rank)
    return torch.cat([parts, others[None]])
