"""Protection: what one may ask of an optimizer of the family, and of a layer around another one.

Each has a controller, which does it. What differs between the two, the step, is in ``optimizer.py``
and ``layer.py``.
"""

import contextlib

from torch import Tensor, nn

from sal_optim.protection.controller import ProtectionController


class Protection:
    """What protects an optimizer: one of the family, or a layer."""

    controller: ProtectionController

    def consolidate(self, model: nn.Module | None = None) -> None:
        """Declare that a task ends here: what was learned is protected from now on.

        The anchors go to the weights, by the share of importance that is of this task. A change
        that is detected moves them less far.

        Harmless before any step, and when there is nothing new to consolidate. Where parameters
        are sharded (DTensor), every process must call it.

        Args:
            model: whose running statistics (BatchNorm) are kept for :meth:`restore` and in the
                ``state_dict``. It must be a module with parameters of this optimizer.
        """
        self.controller.consolidate(model)

    def observe(self) -> contextlib.AbstractContextManager[None]:
        """A context in which ``step()`` gathers importance and changes no parameter.

        For a model that arrives trained: run a few batches of what it should keep, with backward
        and ``step()``, then call :meth:`consolidate`. One warning where no step was taken.
        """
        return self.controller.observe()

    def tell(self, **numbers: float | Tensor) -> None:
        """Tell a change of the data by what the training loop knows; to be called before a step.

        Optional: a change is noticed without it, also where gradients are clipped. A loss that is
        told says more: while it falls, protection that no change has called for waits; once it
        rises again, that is in force. Of several numbers before one step, as of batches whose
        gradients accumulate, their mean is heard. One that is not finite, or not above 0, tells
        nothing.

        Args:
            numbers: ``loss``, the training loss, or ``norm``, the gradient's norm before it was
                clipped; floats, or tensors of one element, for which nothing waits. In several
                processes the number must be the same in all, such as the mean of their losses.

        Raises:
            TypeError: what is given has no value as a number.
            ValueError: a signal has another name, or text or a tensor is not one real number.
        """
        self.controller.tell(numbers)

    def restore(self, strength: float, model: nn.Module | None = None) -> None:
        """Draw all weights back to their anchors, each as far as its importance asks for.

        For the end of a fine-tuning: what the new data had no need of, and the old data suffers
        from, goes back first. By ``k / (1 + k)`` with k = ``strength`` times the importance, whose
        mean is 1. Weights that are not finite go back entirely.

        Args:
            strength: at least 0; the larger, the less of the change is kept. 0 draws nothing back.
            model: whose running statistics go back to those of the last ``consolidate(model=...)``,
                if ``strength`` is above 0.

        Raises:
            ValueError: a group keeps no anchor (``pull=0``), or nothing was kept of the running
                statistics of ``model``.
        """
        self.controller.restore(strength, model)

    def grow(self, old: Tensor, new: Tensor) -> None:
        """Put a parameter with more rows in the place of one: a last layer that has new classes.

        Rows that ``old`` has keep importance, anchor and moments; new rows are free. What was
        gathered of ``old`` is consolidated first. Moments of the new rows are 0; those that are not
        by element, as Adafactor's, begin anew.

        Args:
            old: a parameter of this optimizer, of shape (rows, ...).
            new: its successor, of shape (as many rows or more, ...), which begins with ``old``'s.

        Raises:
            ValueError: ``old`` is not this optimizer's, ``new`` is already, is of another dtype,
                device or number of columns, begins with other values, or is no leaf; one of them is
                distributed (DTensor), or the optimizer is LBFGS.
        """
        self.controller.grow(old, new)

    def stability(self, param: Tensor) -> Tensor:
        """The stability s of each element of a parameter, in [0, 1).

        Args:
            param: a parameter of this optimizer.

        Returns:
            A new tensor of the shape of ``param``, or of its local part where it is sharded; 0 is
            free to move, near 1 is protected. Of a complex one it has a last dimension of 2.
        """
        return self.controller.stability(param)

    def diagnostics(self) -> dict[str, float]:
        """What SAL does, as finite floats for any logger; keys: ``protection/diagnostics.py``."""
        return self.controller.diagnostics()
