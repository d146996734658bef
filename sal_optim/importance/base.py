"""What a kind of importance is: how much the data seen so far depends on each weight of a tensor.

Importance is an estimate of the diagonal or of the Kronecker factors of the empirical Fisher
information. It is a mean over the gathered steps of squared gradients, scaled in each step so that
their mean over all scalars of the optimizer is 1. A kind stores it, merges what was gathered, and
applies it to a gradient. It knows nothing of the clock, the change detector or any base optimizer.

A new kind is one file with this protocol and one line in ``importance/__init__.py``;
``CONTRIBUTING.md`` has a whole one.
"""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sal_optim.utils.rounding import Number

State = dict[str, Any]


class Penalty(NamedTuple):
    """What draws weights to their anchors: ``stiffness * Omega (w - w*)``."""

    moved: list[Tensor]  # w - w*
    stiffness: Number  # at least 0; a 0-dim tensor on an accelerator


class Importance(Protocol):
    """How the importance of one tensor is stored. Tensors are real and local to the process.

    A kind with an attribute ``wide`` that is true is kept in four bytes a number, or eight, even
    where ``state_dtype`` asks for two.
    A method ``grow(state, larger)``, if there is one, fills in the state of a parameter with more
    rows, in which all is 0; without it each tensor becomes the leading part of the larger one.
    """

    def shapes(self, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state tensors of one parameter.

        Names begin with ``pending`` for what was gathered since the last consolidation, and with
        ``evidence`` for importance: by these they are known in a checkpoint.

        Args:
            shape: of the parameter, real.
            rank: how many directions of each side a factored kind keeps.
        """

    def accumulate(
        self, states: list[State], grads: list[Tensor], scale: Number, at: float
    ) -> None:
        """Add the squares of ``scale`` times the gradients to what is pending.

        Args:
            states: one a parameter.
            grads: in the order of ``states``.
            scale: 1 over the root mean square of all gradients; a 0-dim tensor on an accelerator,
                0 where the gradients are not finite.
            at: where sums of low precision are rounded, see ``utils/rounding.py``.
        """

    def merge(
        self, state: State, values: Tensor, *, new: float, old: float, memory: float, at: float
    ) -> None:
        """Turn what is pending into importance, and move the anchor; nothing is pending after it.

        Importance becomes ``old * importance + new * pending``. The anchor moves to the present
        weights by the share ``gain / (memory * before + gain)`` of each direction or element.

        Args:
            state: of one parameter.
            values: its weights.
            new: weight of the pending sums, the number of their steps included.
            old: weight of the importance so far.
            memory: what importance so far counts for in the anchor's mean.
            at: as in :meth:`accumulate`.
        """

    def protect(
        self, states: list[State], grads: list[Tensor], penalty: Penalty | None, damping: float
    ) -> list[Tensor]:
        """``(g + stiffness * Omega (w - w*)) / (1 + damping * Omega)``, new tensors.

        Args:
            states: one a parameter.
            grads: g, in the order of ``states``; not changed.
            penalty: None where it is not due; its tensors may be overwritten.
            damping: at least 0.
        """

    def draw(self, state: State, values: Tensor, strength: float) -> None:
        """Move weights toward their anchor, in place, by ``k / (1 + k)``, k = strength * Omega."""

    def elements(self, state: State, values: Tensor, damping: float = 0.0) -> Tensor:
        """Omega of each element, in the shape of ``values``; a new tensor or a view.

        With a damping it is Omega as :meth:`protect` counts it.
        """
