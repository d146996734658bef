"""Kinds of importance by name: what a matrix has under each setting of ``importance``."""

from functools import lru_cache

from torch import Tensor

from sal_optim.importance.base import Importance, Penalty, State
from sal_optim.importance.blocked import Blocked
from sal_optim.importance.diagonal import Diagonal
from sal_optim.importance.factored import Factored
from sal_optim.importance.kronecker import Kronecker
from sal_optim.sharding.stacked import Layout

__all__ = ["IMPORTANCE", "Importance", "Penalty", "State", "code_of", "kind_of"]

IMPORTANCE: dict[str, Importance] = {
    "kronecker": Kronecker(),
    "diagonal": Diagonal(),
    "factored": Factored(),
}


def kind_of(name: str, param: Tensor, *, layout: Layout | None, rank: int) -> Importance:
    """The kind that a parameter has: matrices as the setting says, all others diagonal.

    Args:
        name: a key of :data:`IMPORTANCE`.
        param: more than two dimensions count as the first by all the others.
        layout: its blocks, where other processes hold other parts of it.
        rank: directions that a factored kind keeps of each side.
    """
    if param.dim() < 2 or name == "diagonal":
        return IMPORTANCE["diagonal"]
    return IMPORTANCE[name] if layout is None else _blocked(name, layout, rank)


def code_of(kind: Importance) -> float:
    """A number for the blocks that importance is of; 0 where it is of the whole."""
    return kind.layout.code if isinstance(kind, Blocked) else 0.0


@lru_cache(maxsize=1024)
def _blocked(name: str, layout: Layout, rank: int) -> Blocked:
    return Blocked(IMPORTANCE[name], layout, rank)
