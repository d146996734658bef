"""Accuracies of a network on all tasks of a stream, quickly or in full.

The curves are taken often, so they use the first examples of each test set: looking would otherwise
take longer than training. The more tasks, the fewer examples of each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.streams import Stream, masked

CURVE_EXAMPLES, LEAST, IN_ALL = 250, 25, 2500
# With more tasks than this, the matrix is in full on its diagonal and in its last row only.
LONG = 20


class Probe:
    """Looks at one network; never trains it."""

    def __init__(self, model: nn.Module, stream: Stream) -> None:
        self.model, self.stream = model, stream
        count = min(CURVE_EXAMPLES, max(LEAST, IN_ALL // stream.tasks))
        tests = [stream.test(task).first(count) for task in range(stream.tasks)]
        self.sizes = [len(test.y) for test in tests]
        self.x = torch.cat([test.x for test in tests])
        self.y = torch.cat([test.y for test in tests])
        masks = [test.mask.expand(len(test.y), -1) for test in tests if test.mask is not None]
        self.mask: Tensor | None = torch.cat(masks) if masks else None

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the classes that are open."""
        mask = self.stream.test(0).mask
        return 1 / (self.stream.outputs if mask is None else int(mask.sum()))

    @torch.no_grad()
    def quick(self) -> list[float]:
        """Accuracy on every task, on the first examples of its test set."""
        hits = masked(self._answers(self.x), self.mask).argmax(1) == self.y
        return [round(float(part.float().mean()), 5) for part in torch.split(hits, self.sizes)]

    @torch.no_grad()
    def full(self, task: int) -> float:
        """Accuracy on the whole test set of one task."""
        test = self.stream.test(task)
        hits = masked(self._answers(test.x), test.mask).argmax(1) == test.y
        return float(hits.double().mean())

    def _answers(self, x: Tensor) -> Tensor:
        """Logits without dropout."""
        self.model.eval()
        found: Tensor = self.model(x)
        self.model.train()
        return found

    def row(self, after: int | None) -> list[float]:
        """Accuracies on all tasks after training task `after` (None: before any)."""
        tasks = range(self.stream.tasks)
        if self.stream.tasks <= LONG or after == self.stream.tasks - 1:
            return [self.full(task) for task in tasks]
        found = self.quick()
        if after is not None:
            found[after] = self.full(after)
        return found
