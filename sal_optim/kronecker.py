"""Evidence of a matrix in rotated directions: two small factors that know which moves go together.

With G the gradient of an (m, n) matrix, scaled as for all evidence, and T the sum of its squares,
the evidence of a move in direction u on the left and v on the right is
``(u' L u)(v' R v) / T``, where ``L = sum G G'`` and ``R = sum G' G``: the Kronecker-factored
approximation of the Fisher information, as in Ritter et al. 2018 (arXiv 1805.07810), with factors
from gradients alone, as in Shampoo (Gupta et al. 2018, arXiv 1802.09568). A diagonal knows nothing
of directions, and holds every weight of an input that matters even where moves cancel.

Of a side longer than twice the rank only a random sketch is summed (Tropp et al. 2017, arXiv
1706.05736), and of any side as many of the strongest directions are kept as the rank says, the
others by their mean.
This file knows of one matrix and its sides; when they are gathered and used is decided elsewhere.
"""

from functools import lru_cache

import torch
from torch import Tensor

from sal_optim.utils.rounding import Number, add, wide

# Directions kept of a side by default. On permuted MNIST 128 lose a point to all of them, 64 three;
# from a hundred sequences of text, 64 hold more than 128 (docs/experiments.md).
RANK = 128
# Names of the state tensors begin with these.
SIDES = ("left_", "right_")


def shapes(rows: int, columns: int, most: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state of a matrix's sides, of ``most`` directions each."""
    found: dict[str, tuple[int, ...]] = {}
    for side, size in zip(SIDES, (rows, columns), strict=True):
        rank = min(size, most)
        found[f"{side}pending"] = (size, min(size, 2 * most))
        found[f"{side}basis"] = (size, rank)
        # Of each direction, and of one that is none of them.
        found[f"{side}values"] = (rank + 1,)
    return found


@lru_cache(maxsize=64)
def _projection(size: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random directions, the same in every process."""
    draw = torch.Generator().manual_seed(size)
    return torch.randn(size, width, generator=draw).to(device=device, dtype=dtype)


def gather(sides: dict[str, Tensor], grad: Tensor, scale: Number, at: Number) -> None:
    """Add a gradient to the pending factors, or to sketches of them; ``at`` as in rounding.py."""
    if grad.numel() == 0:
        return
    matrix = (grad.to(wide(grad.dtype)) * scale).flatten(1)
    if isinstance(scale, Tensor):  # 0 where the gradient is infinite
        matrix = matrix.nan_to_num(0.0, 0.0, 0.0)
    for side, one in zip(SIDES, (matrix, matrix.T), strict=True):
        pending = sides[f"{side}pending"]
        size, width = pending.shape
        seen = one.T
        if width < size:
            seen = one.T @ _projection(size, width, one.dtype, one.device)
        add(pending, one @ seen, at)


def settle(
    sides: dict[str, Tensor],
    weights: Tensor,
    anchor: Tensor | None,
    *,
    pending: Tensor,
    known: Tensor,
    weight: float,
    keep: float,
    memory: float,
) -> None:
    """Turn pending factors into evidence, and move the anchor by it.

    Args:
        sides: the state of the sides; pending is set to zero.
        weights: the matrix as it is.
        anchor: its anchor, the mean of consolidated weights by their evidence; None: it has none.
        pending: the sum of squares that was gathered, a 0-dim tensor.
        known: the sum of squares that is evidence so far, a 0-dim tensor.
        weight: of what is pending.
        keep: of the evidence so far.
        memory: what evidence so far counts for in the anchor's mean.
    """
    dtype = wide(weights.dtype)
    pending, known = pending.to(dtype), known.to(dtype)
    before, after = [], []
    for side in SIDES:
        basis, values = sides[f"{side}basis"].to(dtype), sides[f"{side}values"].to(dtype) * keep
        new, found = _merged(sides[f"{side}pending"].to(dtype), basis, values, pending, weight)
        before.append(_seen_along(new, basis, values, known * keep))
        after.append(found)
        sides[f"{side}basis"].copy_(new)
        sides[f"{side}values"].copy_(found)
        sides[f"{side}pending"].zero_()
    if anchor is None:
        return
    old = torch.outer(*before) / _least(known * keep)
    gained = torch.outer(*after) / _least(known * keep + pending * weight) - old
    share = gained.clamp_min_(0.0) / _least(memory * old + gained)
    moved = (weights.to(dtype) - anchor.to(dtype)).flatten(1)
    anchor.copy_(anchor.to(dtype) + _by_direction(share, moved, sides).view_as(weights))


def pull(
    weights: Tensor, anchor: Tensor, sides: dict[str, Tensor], total: Tensor, stiffness: Number
) -> None:
    """Move a matrix toward its anchor, in place: by ``k / (1 + k)`` in each direction.

    ``k = stiffness * evidence``, in the implicit form of a spring, stable for every ``k >= 0``.

    Args:
        weights: the matrix; more dimensions count as the first by all others.
        anchor: in its shape.
        sides: state of its sides.
        total: T, the sum of the evidence of all its elements.
        stiffness: a number, at least 0.
    """
    dtype = wide(weights.dtype)
    values = [sides[f"{side}values"].to(dtype) for side in SIDES]
    springs = torch.outer(*values) * (stiffness / _least(total.to(dtype)))
    moved = (weights.to(dtype) - anchor.to(dtype)).flatten(1)
    # A spring beyond all numbers draws back entirely.
    share = (springs / (springs + 1.0)).nan_to_num_(nan=1.0)
    weights.sub_(_by_direction(share, moved, sides).view_as(weights))


def _by_direction(table: Tensor, move: Tensor, sides: dict[str, Tensor]) -> Tensor:
    """A move of a matrix with each of its parts by direction times a number of the table.

    The last row and column of the table are for what lies outside of all directions on a side.
    """
    left, right = (sides[f"{side}basis"].to(move.dtype) for side in SIDES)
    outside = table[-1, -1]
    rows, columns = table[:-1, -1:] - outside, table[-1:, :-1] - outside
    both = table[:-1, :-1] - rows - columns - outside
    within = left.T @ move
    from_left = rows * within + (both * (within @ right)) @ right.T
    return outside * move + left @ from_left + (columns * (move @ right)) @ right.T


def _merged(
    pending: Tensor, basis: Tensor, values: Tensor, total: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """The strongest directions of one side's evidence with what is pending, and their values."""
    size, rank = basis.shape
    rest = values[-1]
    known = basis * (values[:-1] - rest).clamp_min(0.0).sqrt()
    if pending.shape[1] == size:
        squares, vectors = _eigen(known @ known.T + pending * weight)
    else:
        factor = _from_sketch(pending)
        # What a sketch has missed lies anywhere.
        rest = rest + (total - factor.square().sum()).clamp_min(0.0) * (weight / size)
        joined = torch.cat([known, factor * weight**0.5], 1)
        if joined.shape[1] >= size:
            squares, vectors = _eigen(joined @ joined.T)
        else:
            squares, inner = _eigen(joined.T @ joined)
            # A direction of nothing is one of zeros, along which no move has a part.
            roots = torch.where(squares > squares[0] * 1e-12, squares, torch.inf).rsqrt()
            vectors = joined @ (inner * roots)
    left_out = squares[rank:].sum() / max(1, size - rank)
    return vectors[:, :rank], torch.cat([squares[:rank], left_out[None]]) + rest


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a matrix ``A = F F'``, the largest first, and eigenvectors.

    In float64 where there is one, and near 1: sides with rows of zeros, such as an embedding's, are
    not solved in float32.
    """
    scale = _least(matrix.diagonal().max())
    exact = torch.float32 if matrix.device.type == "mps" else torch.float64
    values, vectors = torch.linalg.eigh((matrix / scale).to(exact))
    values = values.flip(0).clamp_min(0.0) * scale.to(exact)
    return values.to(matrix.dtype), vectors.flip(1).to(matrix.dtype)


def _from_sketch(sketch: Tensor) -> Tensor:
    """A factor F of the matrix A = F F' of which ``sketch`` is ``A @ projection``."""
    projection = _projection(*sketch.shape, sketch.dtype, sketch.device)
    core = projection.T @ sketch
    values, vectors = _eigen((core + core.T) / 2)
    # Of a projection that sees less than it has columns, the rest is noise.
    kept = values > values[0] * (sketch.shape[1] * torch.finfo(sketch.dtype).eps)
    roots = torch.where(kept, values, 1.0).rsqrt() * kept
    return sketch @ (vectors * roots)


def _seen_along(new: Tensor, basis: Tensor, values: Tensor, total: Tensor) -> Tensor:
    """What earlier evidence says of new directions and, by its mean, of all others."""
    size, rank = new.shape
    rest = values[-1]
    along = rest + (basis.T @ new).square().T @ (values[:-1] - rest)
    others = (total - along.sum()).clamp_min(0.0) / max(1, size - rank)
    return torch.cat([along, others[None]])


def _least(value: Tensor) -> Tensor:
    return value.clamp_min(torch.finfo(value.dtype).tiny)
