"""Importance of other blocks of the same matrix, where the number of processes has changed.

With L, R and T of a block as in ``kronecker.py``, the part of its rows S and columns C has
``L[S, S] * tr(R[C, C]) / T`` and ``R[C, C] * tr(L[S, S]) / T``: its importance is that of the block
there, and their traces are one. A block that is put together of such parts has the sums of their
factors, each in its place. The sum of right factors of blocks of rows is what the gradients of all
had given, as ``G' G`` is a sum over rows. What rows of two blocks have in common was never seen and
is 0. Sums are then kept as ``kronecker.py`` keeps them: the strongest directions, and a mean.

It knows nothing of processes and of files.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sal_optim.importance.base import Importance, State
from sal_optim.importance.factored import Factored
from sal_optim.importance.kronecker import SIDES, Kronecker, total
from sal_optim.importance.low_rank import directions, eigen, positive
from sal_optim.importance.low_rank import strongest as kept

# Columns of a sum of factors from which it is brought to fewer: of very many blocks.
MANY = 1024

Indices = tuple[Tensor, Tensor]  # rows and columns of a matrix


class Piece(NamedTuple):
    """What an old block and a new one share."""

    state: State  # of the old block, without what is pending
    there: Indices  # in the old block
    here: Indices  # in the new one


def reblocked(kind: Importance, pieces: Sequence[Piece], state: State) -> None:
    """Fill in the importance of a new block, which is there as zeros.

    Args:
        pieces: which make up the new block.
        state: of the new block; on the device of the old ones, or on another.

    Raises:
        ValueError: a kind whose importance can't be put together.
    """
    if isinstance(kind, Kronecker):
        _kronecker(pieces, state)
    elif isinstance(kind, Factored):
        _factored(pieces, state)
    else:
        raise ValueError(
            f"Invalid importance value: {type(kind).__name__.lower()!r}; only 'kronecker' and "
            "'factored' importance can be given other blocks"
        )


def _kronecker(pieces: Sequence[Piece], state: State) -> None:
    parts = [_restricted(piece.state, piece.there) for piece in pieces]
    for side, name in enumerate(SIDES):
        size, rank = state[f"{name}_basis"].shape
        factor = torch.zeros(size, 0, dtype=torch.float64, device="cpu")
        rest = torch.zeros(size, dtype=torch.float64, device="cpu")
        for piece, part in zip(pieces, parts, strict=True):
            own, beside = part[side]
            wider = torch.zeros(size, own.shape[1], dtype=torch.float64, device="cpu")
            wider[piece.here[side]] = own
            rest[piece.here[side]] += beside
            factor = torch.cat([factor, wider], 1)
            if MANY < factor.shape[1] < size:
                factor, missed = _narrowed(factor, MANY // 2)
                rest += missed
        basis, values = _strongest(factor, rest, rank)
        state[f"{name}_basis"].copy_(basis)
        state[f"{name}_values"].copy_(values)


def _restricted(state: State, where: Indices) -> list[tuple[Tensor, float]]:
    """Of each side F and c, so that ``F F' + c I`` is the factor of a part of a block."""
    known = positive(total(state, torch.float64))
    found, traces = [], []
    for name, index in zip(SIDES, where, strict=True):
        values = state[f"{name}_values"].double()
        roots = (values[:-1] - values[-1]).clamp_min(0.0).sqrt()
        factor = state[f"{name}_basis"].double()[index] * roots
        found.append((factor, values[-1]))
        traces.append(factor.square().sum() + values[-1] * len(index))
    shares = [traces[1] / known, traces[0] / known]
    return [
        (factor * share.sqrt(), float(beside * share))
        for (factor, beside), share in zip(found, shares, strict=True)
    ]


def _strongest(factor: Tensor, rest: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The strongest directions of ``F F' + diag(rest)``, and their values with the mean of others.

    Where F has fewer columns than rows, ``rest`` counts by its mean.
    """
    if factor.shape[1] >= factor.shape[0]:
        return kept(*eigen(factor @ factor.T + rest.diag()), rank, 0.0)
    return kept(*directions(factor), rank, rest.mean())


def _narrowed(factor: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """A factor of fewer columns, and what it leaves out of each row."""
    squares, vectors = directions(factor)
    found = vectors[:, :width] * squares[:width].sqrt()
    return found, (factor.square().sum(1) - found.square().sum(1)).clamp_min(0.0)


def _factored(pieces: Sequence[Piece], state: State) -> None:
    """Means of rows and columns of the importance that the pieces have."""
    row, column = state["evidence_row"], state["evidence_column"]
    dense = torch.zeros(len(row), column.shape[1], dtype=torch.float64, device="cpu")
    for state_there, there, here in pieces:
        rows = state_there["evidence_row"].double()
        columns = state_there["evidence_column"].double()
        columns = columns / positive(columns.mean())
        dense[here[0][:, None], here[1]] = rows[there[0]] * columns[:, there[1]]
    row.copy_(dense.mean(1, keepdim=True))
    column.copy_(dense.mean(0, keepdim=True))
