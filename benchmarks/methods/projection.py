"""Gradients kept out of what past inputs span, told where tasks end: OWM and GPM.

Both act on the input side of each linear layer, (m, n) with the bias as last column and a 1
appended to its input: a step ΔW with ΔW a = 0 leaves the layer's answer to a past input a as it is.
OWM weighs all directions by how much past inputs used them; GPM keeps the leading ones and takes
them out altogether. The base optimizer's state is dropped at a boundary: momentum that was gathered
before would move the weights along directions that are held now.

What the Kronecker penalties do, which weigh outputs too, is in kfac.py and ncl.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.methods.base import Method
from benchmarks.methods.kfac import CHUNK, joined, linear_layers, passed, with_ones
from benchmarks.streams import Batch


class Projected(Method):
    """Multiplies each layer's gradient by a matrix (n, n) from the right, once there is one."""

    told = True

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.layers = linear_layers(model)
        self.projectors: list[Tensor] = []

    @torch.no_grad()
    def before_step(self, batch: Batch) -> None:
        for layer, projector in zip(self.layers, self.projectors, strict=bool(self.projectors)):
            weight, bias = layer.weight.grad, layer.bias.grad if layer.bias is not None else None
            assert weight is not None
            whole = weight if bias is None else torch.cat([weight, bias[:, None]], 1)
            free = whole @ projector
            weight.copy_(free[:, : layer.in_features])
            if bias is not None:
                bias.copy_(free[:, -1])

    def boundary(self, task: Batch) -> None:
        self.projectors = self.gathered(task)
        self.optimizer.state.clear()

    def gathered(self, task: Batch) -> list[Tensor]:
        """What the gradient of each layer is multiplied by from now on."""
        raise NotImplementedError


class OWM(Projected):
    """Orthogonal weights modification: Zeng et al. 2019 (arXiv 1810.01256), eqs. 1 and 2.

    P = (S / damping + I)⁻¹ with S the sum over past tasks of the mean of a aᵀ. The paper updates P
    recursively after each batch; here S is summed exactly at each boundary.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        damping: float = 1e-1,
        examples: int = 10_000,
    ) -> None:
        super().__init__(model, optimizer)
        self.damping, self.examples = damping, examples
        self.seen = [joined(layer).new_zeros(n, n) for layer, n in sized(self.layers)]

    def gathered(self, task: Batch) -> list[Tensor]:
        for total, moment in zip(
            self.seen, moments(self.model, task.first(self.examples)), strict=True
        ):
            total += moment
        found = []
        for total in self.seen:
            eye = torch.eye(len(total))
            found.append(torch.linalg.inv(total / self.damping + eye))
        return found


class GPM(Projected):
    """Gradient projection memory: Saha, Garg and Roy 2021 (arXiv 2103.09762), algorithm 1.

    After a task, inputs of `examples` of its examples are taken at each layer; the left singular
    vectors of what the memory does not hold yet join it, as many as bring the held share of their
    squared norm to a threshold (eqs. 5, 8 and 9). Single-head, thresholds as published: 0.95 at the
    first layer and 0.99 beyond. The authors' networks have no biases; here they are held with the
    weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        first_threshold: float = 0.95,
        threshold: float = 0.99,
        examples: int = 300,
    ) -> None:
        super().__init__(model, optimizer)
        self.examples = examples
        later = len(self.layers) - 1
        self.thresholds = [first_threshold, *[threshold] * later]
        self.bases = [joined(layer).new_zeros(n, 0) for layer, n in sized(self.layers)]

    def gathered(self, task: Batch) -> list[Tensor]:
        inputs, _, _ = passed(self.model, self.layers, task.first(self.examples).x)
        for place, (layer, seen) in enumerate(zip(self.layers, inputs, strict=True)):
            columns = with_ones(layer, seen).T
            self.bases[place] = extended(self.bases[place], columns, self.thresholds[place])
        return [torch.eye(len(basis)).to(basis) - basis @ basis.T for basis in self.bases]


@torch.no_grad()
def extended(basis: Tensor, columns: Tensor, threshold: float) -> Tensor:
    """`basis` (n, k) with directions of `columns` (n, examples) until it holds `threshold` of them.

    The share held is of the squared Frobenius norm. The result has orthonormal columns, n at most.
    """
    total = columns.square().sum()
    rest = columns - basis @ (basis.T @ columns)
    held = 1 - rest.square().sum() / total
    if held >= threshold:
        return basis
    vectors, values, _ = torch.linalg.svd(rest, full_matrices=False)
    shares = held + (values.square() / total).cumsum(0)
    count = int((shares < threshold).sum()) + 1
    return torch.cat([basis, vectors[:, :count]], 1)[:, : len(basis)]


def sized(layers: list[nn.Linear]) -> list[tuple[nn.Linear, int]]:
    """Each layer with the number of its inputs, the 1 for its bias included."""
    return [(layer, layer.in_features + (layer.bias is not None)) for layer in layers]


@torch.no_grad()
def moments(model: nn.Module, examples: Batch) -> list[Tensor]:
    """The mean of a aᵀ over examples, (n, n) for each linear layer."""
    layers = linear_layers(model)
    found = [joined(layer).new_zeros(n, n) for layer, n in sized(layers)]
    for start in range(0, len(examples.x), CHUNK):
        inputs, _, _ = passed(model, layers, examples.x[start : start + CHUNK])
        for total, layer, seen in zip(found, layers, inputs, strict=True):
            whole = with_ones(layer, seen)
            total.addmm_(whole.T, whole, alpha=1 / len(examples.x))
    return found
