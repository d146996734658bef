"""Kronecker-factored Laplace penalties, told where tasks end: EWC that knows of directions.

Ritter, Botev and Barber 2018 (arXiv 1805.07810). Of a linear layer with inputs a, a 1 appended for
the bias, and gradients g at its outputs, the Fisher information of a task t is taken as A_t ⊗ B_t,
with A = E[a aᵀ] and B = E[g gᵀ] at the weights after the task: over examples, and for B in
expectation over the model's own predictions. The penalty is the sum over past tasks of
λ/2 · tr(ΔW A_t ΔWᵀ B_t), ΔW = W - W_t with the bias as W's last column; λ is `strength`.

A sum of Kronecker products is none, so every task keeps its own factors, and its penalty is around
its own weights, as EWC's is. Only the abstract of the paper could be read here: where its anchors
and sums differ from these is not checked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.data.errors import UserError
from benchmarks.methods.base import Method
from benchmarks.streams import Batch, masked

# 1 is the posterior's own. On validation data of permuted digits 3 to 100 are within some points.
DEFAULT_STRENGTH = 10.0
CHUNK = 500


@dataclass(frozen=True)
class Hold:
    """What holds a layer to a past task: A (n, n), B (m, m) and the weights then (m, n)."""

    inputs: Tensor
    outputs: Tensor
    anchor: Tensor


class KFAC(Method):
    """A penalty by Kronecker factors toward the weights at the end of each past task."""

    told = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        strength: float = DEFAULT_STRENGTH,
        fisher_examples: int = 10_000,
    ) -> None:
        super().__init__(model, optimizer)
        self.strength, self.fisher_examples = strength, fisher_examples
        self.layers = linear_layers(model)
        self.holds: list[list[Hold]] = [[] for _ in self.layers]

    @torch.no_grad()
    def before_step(self, batch: Batch) -> None:
        for layer, holds in zip(self.layers, self.holds, strict=True):
            if not holds:
                continue
            now = joined(layer)
            pull = torch.zeros_like(now)
            for hold in holds:
                pull += hold.outputs @ (now - hold.anchor) @ hold.inputs
            assert layer.weight.grad is not None
            layer.weight.grad.add_(pull[:, : layer.in_features], alpha=self.strength)
            if layer.bias is not None:
                assert layer.bias.grad is not None
                layer.bias.grad.add_(pull[:, -1], alpha=self.strength)

    def boundary(self, task: Batch) -> None:
        found = kronecker_fisher(self.model, task.first(self.fisher_examples))
        for layer, holds, factors in zip(self.layers, self.holds, found, strict=True):
            holds.append(Hold(*factors, joined(layer)))


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """The linear layers, which must have all parameters."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if {p for layer in layers for p in layer.parameters()} != set(model.parameters()):
        raise UserError(
            "kfac-ewc, owm, gpm, ncl: need a network of linear layers alone; allowed: --net mlp"
        )
    return layers


@torch.no_grad()
def joined(layer: nn.Linear) -> Tensor:
    """A copy of a layer's weights (m, n), the bias as last column where there is one."""
    weight = layer.weight
    return weight.clone() if layer.bias is None else torch.cat([weight, layer.bias[:, None]], 1)


@torch.enable_grad()
def kronecker_fisher(model: nn.Module, examples: Batch) -> list[tuple[Tensor, Tensor]]:
    """A (n, n) and B (m, m) of each linear layer, n with the bias.

    A is the mean over examples of a aᵀ, B of Σ_c p_c · g_c g_cᵀ with g_c = ∂ log p_c / ∂ outputs.
    """
    layers, size = linear_layers(model), len(examples.x)
    widths = [joined(layer).shape for layer in layers]
    found = [
        (layer.weight.new_zeros(n, n), layer.weight.new_zeros(m, m))
        for layer, (m, n) in zip(layers, widths, strict=True)
    ]
    for start in range(0, size, CHUNK):
        x, mask = examples.x[start : start + CHUNK], examples.mask
        if mask is not None and mask.dim() > 1:
            mask = mask[start : start + CHUNK]
        inputs, outputs, logits = passed(model, layers, x)
        log_p = masked(logits, mask).log_softmax(1)
        for (a, _), layer, seen in zip(found, layers, inputs, strict=True):
            seen = with_ones(layer, seen)
            a.addmm_(seen.T, seen, alpha=1 / size)
        for column in range(log_p.shape[1]):
            weight = log_p[:, column : column + 1].detach().exp()
            if not weight.any():
                continue  # a class that is shut out
            grads = torch.autograd.grad(log_p[:, column].sum(), outputs, retain_graph=True)
            for (_, b), g in zip(found, grads, strict=True):
                b.addmm_(g.T, g * weight, alpha=1 / size)
    return found


def with_ones(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """A layer's inputs (batch, n), a 1 appended for the bias where there is one."""
    return inputs if layer.bias is None else torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)


def passed(
    model: nn.Module, layers: list[nn.Linear], x: Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Inputs (batch, n) and outputs (batch, m) of each layer, and the model's output."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(args[0].detach())
        outputs.append(output)

    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        logits = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs, outputs, logits
