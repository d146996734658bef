"""Kinds of importance by name: what a matrix has under each setting of ``importance``."""

from torch import Tensor

from sal_optim.importance.base import Importance, State
from sal_optim.importance.diagonal import Diagonal
from sal_optim.importance.factored import Factored
from sal_optim.importance.kronecker import Kronecker

__all__ = ["IMPORTANCE", "Importance", "State", "kind_of"]

IMPORTANCE: dict[str, Importance] = {
    "kronecker": Kronecker(),
    "diagonal": Diagonal(),
    "factored": Factored(),
}


def kind_of(name: str, param: Tensor, *, sharded: bool) -> Importance:
    """The kind that a parameter has: matrices as the setting says, all others diagonal.

    Args:
        name: a key of :data:`IMPORTANCE`.
        param: real and local; more than two dimensions count as the first by all the others.
        sharded: whether other processes hold other parts of it. Its sides are then not here.
    """
    return IMPORTANCE["diagonal" if param.dim() < 2 or sharded else name]
