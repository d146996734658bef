"""The one interface of all methods: what a method may do around a training step.

A method owns its optimizer. The runner computes the loss of the batch and calls, in this order:
`penalty`, backward, `before_step`, `optimizer.step`, `after_step`; and after a task's last step
`boundary`, if the method is told boundaries. A method never sees the stream, the task's number or
the test data.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.streams import Batch


class Method:
    """Does nothing beyond its optimizer: every plain optimizer is this."""

    told: ClassVar[bool] = False

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.params = [p for p in model.parameters() if p.requires_grad]

    def penalty(self, batch: Batch, logits: Tensor) -> Tensor | None:
        """A term to add to the loss of the batch."""
        return None

    def before_step(self, batch: Batch) -> None:
        """Gradients are there and may be changed; the weights are still the old ones."""

    def after_step(self, batch: Batch) -> None:
        """The weights are the new ones; the gradients are still those of the step."""

    def boundary(self, task: Batch) -> None:
        """A task has ended; `task` is all its training examples. Only called if `told`."""

    def diagnostics(self) -> dict[str, float]:
        """Figures worth a trace: `consolidations`, `surprise`, `threshold`, where it has them."""
        return {}
