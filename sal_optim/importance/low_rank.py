"""The strongest directions of a symmetric matrix ``A = F F'``, from A, from F or from a sketch.

A sketch is A times a random projection of few columns (Tropp et al. 2017, arXiv 1706.05736).
"""

from functools import lru_cache

import torch
from torch import Tensor

from sal_optim.utils.rounding import Number


@lru_cache(maxsize=64)
def projection(size: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random directions, the same in every process."""
    draw = torch.Generator().manual_seed(size)
    drawn = torch.randn(size, width, generator=draw, device="cpu", dtype=torch.float32)
    return drawn.to(device=device, dtype=dtype)


def directions(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of ``F F'``, the largest first, and as many eigenvectors as F has columns."""
    if factor.shape[1] >= factor.shape[0]:
        return eigen(factor @ factor.T)
    squares, inner = eigen(factor.T @ factor)
    # A direction of nothing is one of zeros, along which no move has a part.
    roots = torch.where(squares > squares[0] * 1e-12, squares, torch.inf).rsqrt()
    return squares, factor @ (inner * roots)


def strongest(squares: Tensor, vectors: Tensor, rank: int, rest: Number) -> tuple[Tensor, Tensor]:
    """The first directions, and their values with those of all others by their mean."""
    left_out = squares[rank:].sum() / max(1, len(vectors) - rank)
    return vectors[:, :rank], torch.cat([squares[:rank], left_out[None]]) + rest


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a matrix ``A = F F'``, the largest first, and eigenvectors.

    In float64 where there is one, and near 1: sides with rows of zeros, such as an embedding's, are
    not solved in float32.
    """
    scale = positive(matrix.diagonal().max())
    exact = torch.float32 if matrix.device.type == "mps" else torch.float64
    values, vectors = torch.linalg.eigh((matrix / scale).to(exact))
    values, vectors = values.flip(0), vectors.flip(1)
    # Less than rounding has left is nothing, or chance would decide where an anchor goes.
    least = values[0] * (len(matrix) * torch.finfo(matrix.dtype).eps)
    values = torch.where(values > least, values, 0.0) * scale.to(exact)
    return values.to(matrix.dtype), vectors.to(matrix.dtype)


def from_sketch(sketch: Tensor) -> Tensor:
    """A factor F of the matrix A = F F' of which ``sketch`` is ``A @ projection``."""
    drawn = projection(*sketch.shape, sketch.dtype, sketch.device)
    core = drawn.T @ sketch
    values, vectors = eigen((core + core.T) / 2)
    # Of a projection that sees less than it has columns, the rest is noise.
    kept = values > values[0] * (sketch.shape[1] * torch.finfo(sketch.dtype).eps)
    roots = torch.where(kept, values, 1.0).rsqrt() * kept
    return sketch @ (vectors * roots)


def positive(value: Tensor) -> Tensor:
    return value.clamp_min(torch.finfo(value.dtype).tiny)
