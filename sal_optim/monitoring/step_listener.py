"""``StepListener``: what every writer and view has in common, a hook on an optimizer's step.

It counts the optimizer's own steps: from those in its state where it keeps them, so that a resumed
run goes on where its checkpoint was. Steps in ``observe()`` are none. What is done after a step is
for ``writers.py`` and ``live_view.py``.
"""

from typing import Any

from torch import Tensor

from sal_optim.monitoring.lookup import required_protection


class StepListener:
    """Calls :meth:`_stepped` after every step, until it is removed."""

    def __init__(self, optimizer: object) -> None:
        self._protection = required_protection(optimizer)
        self._optimizer = self._protection.controller.optimizer
        self._step = 0
        self._stopped = False
        self._inside = False  # in a hook: torch goes through its hooks
        self._count()
        self._handles = [
            self._optimizer.register_step_post_hook(self._after),
            self._optimizer.register_load_state_dict_post_hook(self._count),
        ]

    def remove(self) -> None:
        """Stop; what was written or shown stays. Calling it twice is harmless."""
        self._stopped = True
        if not self._inside:
            for handle in self._handles:
                handle.remove()

    def _count(self, *_: Any) -> None:
        steps = [state["step"] for state in self._optimizer.state.values() if "step" in state]
        if steps:
            self._step = int(max(float(s) for s in steps if isinstance(s, (int, float, Tensor))))

    def _after(self, *_: Any) -> None:
        if self._stopped:
            return
        if not self._protection.controller.observing:
            self._step += 1
            self._inside = True
            try:
                self._stepped()
            finally:
                self._inside = False

    def _stepped(self) -> None:
        raise NotImplementedError
