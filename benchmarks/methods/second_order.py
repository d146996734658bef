"""Optimizers that differentiate the gradients once more in their step, as Adahessian does.

Each gradient then comes with the graph that it was made by, which training does not keep otherwise.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from benchmarks.methods.base import Method
from benchmarks.methods.layered import Layered
from benchmarks.streams import Batch, masked

SECOND_ORDER = ("torch_optimizer.Adahessian",)


class Graphed(Method):
    """The pass is made again, with its graph kept."""

    def before_step(self, batch: Batch) -> None:
        loss = cross_entropy(masked(self.model(batch.x), batch.mask), batch.y)
        grads = torch.autograd.grad(loss, self.params, create_graph=True)
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad.clone()  # the gradient of a weight may be a view


class GraphedLayered(Graphed, Layered):
    """The same in a layer."""
