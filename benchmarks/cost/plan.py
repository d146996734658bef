"""What the protection costs a model of given shapes, on paper: bytes, operations and messages.

Each formula is checked against a measured small run in tests/benchmarks/test_bench_plan.py. Numbers
are of the process that holds the largest parts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data.errors import UserError
from sal_optim.config import RANK
from sal_optim.importance import IMPORTANCE
from sal_optim.protection.clock import INTERVAL
from sal_optim.sharding.stacked import layout_for

MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Tensors:
    """``count`` tensors of one shape, and the dimension that tensor parallelism cuts; or None."""

    count: int
    shape: tuple[int, ...]
    parallel: int | None = None

    @property
    def size(self) -> int:
        return self.count * math.prod(self.shape)


@dataclass(frozen=True)
class Model:
    name: str
    tensors: tuple[Tensors, ...]

    @property
    def size(self) -> int:
        return sum(tensors.size for tensors in self.tensors)

    @classmethod
    def read(cls, path: str) -> Model:
        """From a JSON file, or one of :data:`MODELS` by its name."""
        file = MODELS / f"{path}.json" if (MODELS / f"{path}.json").is_file() else Path(path)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            tensors = [Tensors(t["count"], tuple(t["shape"]), t.get("parallel"))
                       for t in found["tensors"]]  # fmt: skip
            return cls(found["name"], tuple(tensors))
        except (OSError, ValueError, KeyError, TypeError) as error:
            known = ", ".join(sorted(p.stem for p in MODELS.glob("*.json")))
            raise UserError(f"--plan: {path!r}: {error!r}; known by name: {known}") from error


@dataclass(frozen=True)
class Plan:
    """Of one process. Operations are floating point ones, two a multiplication and addition."""

    parameters: int  # that it holds
    blocks: int  # of matrices
    factors: int  # bytes of importance and of what is pending
    anchor: int  # bytes
    step: float  # operations of the mean step of four
    consolidation: int  # operations
    numbers: int  # float32 numbers of a reduction
    reductions: float  # of the mean step, for each dimension of the mesh that cuts parameters


def plan(model: Model, shards: int, parallel: int = 1, *, rank: int = RANK, item: int = 4) -> Plan:
    """The costs of a model over ``shards`` (FSDP2) times ``parallel`` (tensor parallelism).

    Args:
        model: shapes.
        shards: processes that FSDP2 cuts a tensor's first dimension over.
        parallel: processes that tensor parallelism cuts the dimension of each tensor over.
        rank: directions that are kept of each side.
        item: bytes a number of anchors and of vectors' importance: 4, or 2 with ``state_dtype``.
            Factors take 4.
    """
    held = blocks = factors = consolidation = 0
    step = 0.0
    for tensors in model.tensors:
        shape, count = tensors.shape, tensors.count
        dims, sizes = (0, tensors.parallel), (shards, parallel)
        if parallel == 1 or tensors.parallel is None:
            dims, sizes = (0, None), (shards, 1)
        layout = layout_for(shape, sizes, dims)
        cut = math.prod(sizes[i] for i in range(2) if dims[i] == 0)
        here = (-(-shape[0] // cut), *layout.block[1:])
        held += count * math.prod(here)
        if len(shape) < 2:
            factors += count * math.prod(here) * 2 * item
            continue
        each = -(-here[0] // layout.block[0])
        blocks += count * each
        rows, columns = layout.block[0], math.prod(layout.block[1:])
        shapes = IMPORTANCE["kronecker"].shapes(layout.block, rank).values()
        factors += count * each * 4 * sum(math.prod(one) for one in shapes)
        step += count * each * mean_step(rows, columns, rank)
        consolidation += count * each * merging(rows, columns, rank)
    numbers = sum(tensors.count for tensors in model.tensors)
    return Plan(held, blocks, factors, held * item, step, consolidation, numbers, 1 + 1 / INTERVAL)


def damping(rows: int, columns: int, rank: int) -> int:
    """Two narrow products, small ones of what they give, and two that bring it back."""
    back = 2 * (min(rows, rank) + min(columns, rank)) * rows * columns
    return penalty(rows, columns, rank) + back


def penalty(rows: int, columns: int, rank: int) -> int:
    """The same of the distance to the anchor, which is brought back together with the gradient."""
    left, right = min(rows, rank), min(columns, rank)
    return 2 * ((left + right) * rows * columns + left * right * (rows + columns))


def gathering(rows: int, columns: int, rank: int) -> int:
    """For each side a product with its sketch, and one with the matrix."""
    found = 0
    for size in (rows, columns):
        width = min(size, 2 * rank)
        found += 2 * width * rows * columns * (2 if width < size else 1)
    return found


def mean_step(rows: int, columns: int, rank: int) -> float:
    """Damping in each step; penalty and gathering in every fourth."""
    rare = penalty(rows, columns, rank) + gathering(rows, columns, rank)
    return damping(rows, columns, rank) + rare / INTERVAL


def merging(rows: int, columns: int, rank: int) -> int:
    """A consolidation: the products of both sides, and the anchor's move."""
    found = damping(rows, columns, rank)
    for size in (rows, columns):
        kept, width = min(size, rank), min(size, 2 * rank)
        found += 2 * kept * kept * size
        if width == size:
            found += 2 * size * size * kept
            continue
        joined = kept + width
        found += 2 * 2 * width * width * size
        found += 2 * size * size * joined if joined >= size else 2 * 2 * joined * joined * size
    return found


def rows_of(
    model: Model, processes: Sequence[int], parallel: int, *, item: int = 4
) -> list[dict[str, Any]]:
    """A row of the table for each number of processes, as far as tensor parallelism divides it."""
    found = []
    for count in processes:
        if count % parallel == 0 and count >= parallel:
            costs = plan(model, count // parallel, parallel, item=item)
            found.append({"processes": count, "parallel": parallel, **vars(costs)})
    return found
