"""The one interface of all methods: what a method may do around a training step.

A method owns its optimizer. The runner computes the loss of the batch and calls, in this order:
`penalty`, backward, `before_step`, `optimizer.step`, `after_step`; and after a task's last step
`boundary`, if the method is told boundaries. A method never sees the stream, the task's number or
the test data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.streams import Batch


class Method:
    """Does nothing beyond its optimizer: every plain optimizer is this."""

    told: ClassVar[bool] = False
    # Whether batches are drawn from all tasks up to the present one: an upper bound, no method.
    joint: ClassVar[bool] = False
    # The norm that a run clips gradients to, for methods that compute gradients of their own.
    clip: float | None = None

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
        """Figures worth a trace: those of SAL's `diagnostics()`, or nothing."""
        return {}

    def suppressed(self) -> dict[str, float]:
        """For each parameter by name, the share of an update that is held back; SAL's alone."""
        return {}

    def state_bytes(self) -> int:
        """Bytes of all tensors kept between steps, beyond the weights and their gradients."""
        sizes: dict[int, int] = {}
        own = {name: value for name, value in vars(self).items() if name not in ("model", "params")}
        _tensor_bytes([own, self.optimizer.state], sizes, set())
        for p in self.model.parameters():
            sizes.pop(p.data_ptr(), None)
            if p.grad is not None:
                sizes.pop(p.grad.data_ptr(), None)
        return sum(sizes.values())


def _tensor_bytes(value: Any, sizes: dict[int, int], seen: set[int]) -> None:
    """Collect the sizes of all tensors within `value`, each once; objects may hold each other."""
    if hasattr(value, "__dict__"):
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, Tensor):
        sizes[value.data_ptr()] = value.numel() * value.element_size()
    elif isinstance(value, nn.Module):
        _tensor_bytes(list(value.parameters()), sizes, seen)
    elif isinstance(value, Method):
        _tensor_bytes([vars(value), value.optimizer.state], sizes, seen)
    elif isinstance(value, Mapping):
        _tensor_bytes(list(value.values()), sizes, seen)
    elif isinstance(value, (list, tuple, deque)):
        for item in value:
            _tensor_bytes(item, sizes, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, Optimizer)):
        _tensor_bytes(vars(value), sizes, seen)
