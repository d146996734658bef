"""Means over examples of powers of per-example gradients: what Fisher and MAS are made of.

Exact, never from a batch's mean gradient. Fully connected networks take a shortcut that needs one
backward pass a column; any other network goes through torch.func, example by example.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.streams import Batch, masked

CHUNK = 500
# Without the shortcut, gradients of a chunk's examples are all in memory, one set a column.
SMALL_CHUNK = 16

# Masked logits (batch x classes) -> scalars and their weights, both (batch x columns).
Heads = Callable[[Tensor], tuple[Tensor, Tensor]]


@torch.enable_grad()
def mean_power(model: nn.Module, examples: Batch, heads: Heads, power: int) -> list[Tensor]:
    """Mean over examples of Σ_k weight_k · |∂ scalar_k / ∂w|^power, as model.parameters() has w.

    Columns whose weight is 0 for all examples of a chunk are left out.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    owned = [p for layer in layers for p in layer.parameters()]
    shortcut = [id(p) for p in owned] == [id(p) for p in model.parameters()]
    totals = [torch.zeros_like(p) for p in model.parameters()]
    size = CHUNK if shortcut else SMALL_CHUNK
    for start in range(0, len(examples.x), size):
        x = examples.x[start : start + size]
        mask = examples.mask
        if mask is not None:
            rows = mask if mask.dim() == 1 else mask[start : start + size]
            mask = rows.expand(len(x), -1)
        if shortcut:
            _add_linear(model, layers, x, mask, heads, power, totals)
        else:
            _add_any(model, x, mask, heads, power, totals)
    return [total / len(examples.x) for total in totals]


def _add_linear(
    model: nn.Module,
    layers: list[nn.Linear],
    x: Tensor,
    mask: Tensor | None,
    heads: Heads,
    power: int,
    totals: list[Tensor],
) -> None:
    """A linear layer's gradient for one example is the outer product of what flows back into its
    output (δ) and its input (a), so the sum over examples is (|δ|^power)ᵀ |a|^power."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(args[0].detach().abs().pow(power))
        outputs.append(output)

    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        scalars, weights = heads(masked(model(x), mask))
    finally:
        for hook in hooks:
            hook.remove()
    for column in range(scalars.shape[1]):
        weight = weights[:, column].detach().unsqueeze(1)
        if not weight.any():
            continue
        deltas = torch.autograd.grad(scalars[:, column].sum(), outputs, retain_graph=True)
        position = 0
        for layer, delta, a in zip(layers, deltas, inputs, strict=True):
            d = delta.abs().pow(power).mul_(weight)
            totals[position] += d.T @ a
            position += 1
            if layer.bias is not None:
                totals[position] += d.sum(0)
                position += 1


def _add_any(
    model: nn.Module,
    x: Tensor,
    mask: Tensor | None,
    heads: Heads,
    power: int,
    totals: list[Tensor],
) -> None:
    params = {name: p.detach() for name, p in model.named_parameters()}

    def scalars(
        params: dict[str, Tensor], row: Tensor, row_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits = torch.func.functional_call(model, params, (row.unsqueeze(0),))
        values, weights = heads(masked(logits, row_mask))
        return values.squeeze(0), weights.squeeze(0)

    places = (None, 0, None if mask is None else 0)
    each = torch.func.vmap(torch.func.jacrev(scalars, has_aux=True), in_dims=places)
    gradients, weights = each(params, x, mask)
    # A class that is shut out has weight 0, and a gradient that may not be finite.
    used = (weights != 0).to(weights)
    for total, grad in zip(totals, gradients.values(), strict=True):
        shape = (*weights.shape, *([1] * total.dim()))
        clean = torch.where(used.view(shape) != 0, grad, torch.zeros((), dtype=grad.dtype))
        total += (clean.abs().pow(power) * weights.detach().view(shape)).sum((0, 1))
