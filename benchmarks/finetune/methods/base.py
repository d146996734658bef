"""What every way of fine-tuning has: an optimizer, and things to do around its step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

# The mean loss of a model on sequences.
Loss = Callable[[nn.Module, Tensor], Tensor]
# Every AdamW here has torch's default.
WEIGHT_DECAY = 0.01


class Method:
    """AdamW on all parameters; the others change what they name."""

    # Whose sequences it asks to see first: "old", "own" (the model's samples), "new" or nobody's.
    observes: ClassVar[str | None] = None
    # Whether points are taken after the run, of more and more of its change, not over the run.
    averages: ClassVar[bool] = False

    def __init__(self, model: nn.Module, *, lr: float, **options: Any) -> None:
        self.model = self.prepare(model, **options)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.kept: list[Tensor] = []  # tensors beside the optimizer's state
        self.optimizer: Optimizer = self.make(lr)

    def prepare(self, model: nn.Module, **options: Any) -> nn.Module:
        """The model that is trained; takes what options there are."""
        if options:
            raise TypeError(f"{type(self).__name__} has no options {sorted(options)}")
        return model

    def make(self, lr: float) -> Optimizer:
        return AdamW(self.params, lr=lr, weight_decay=WEIGHT_DECAY)

    def observe(self, batches: Sequence[Tensor], loss: Loss) -> None:
        """Look at the sequences that were asked for, before any step."""

    def before_step(self) -> None:
        """Gradients are there, and may be changed."""

    def after_step(self) -> None:
        """Weights have moved."""

    @torch.no_grad()
    def give_back(self, start: Sequence[Tensor], share: float) -> None:
        """Keep a share of the change: weights between the pretrained ones and the present."""
        for param, first in zip(self.model.parameters(), start, strict=True):
            param.copy_(torch.lerp(first, param, share))

    def figures(self) -> dict[str, float]:
        """What the method says of itself at the end."""
        return {}

    def weights(self) -> list[Tensor]:
        """The model's weights, in the order of the pretrained model's parameters."""
        return [p.detach() for p in self.model.parameters()]

    def bytes_kept(self) -> int:
        """Bytes beyond weights and gradients."""
        found = [*self.kept]
        for state in self.optimizer.state.values():
            found += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum({id(t): t.numel() * t.element_size() for t in found}.values())


def copies(params: Sequence[Tensor]) -> list[Tensor]:
    """Of the weights as they are."""
    return [p.detach().clone() for p in params]
