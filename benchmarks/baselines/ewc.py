"""Elastic weight consolidation (Kirkpatrick et al. 2017), told where tasks end.

After each task the exact diagonal of the Fisher information at the final weights is added up:
per example, and in expectation over the model's own predictions (not the labels, and not the
square of a batch's mean gradient, which is off by orders of magnitude). The penalty is the sum
over past tasks t of λ/2 · F_t (w - w_t)²; λ is `strength`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.baselines.base import Method
from benchmarks.networks import masked
from benchmarks.streams import Batch

DEFAULT_STRENGTH = 100.0
CHUNK = 500


class EWC(Method):
    """Quadratic penalties toward the weights at the end of each past task."""

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
        # The sum of all penalties is again quadratic: Σ F_t and Σ F_t w_t hold its gradient.
        self.fisher = [torch.zeros_like(p) for p in self.params]
        self.pulled = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def before_step(self, batch: Batch) -> None:
        for p, fisher, pulled in zip(self.params, self.fisher, self.pulled, strict=True):
            assert p.grad is not None
            p.grad.add_(fisher * p - pulled, alpha=self.strength)

    def boundary(self, task: Batch) -> None:
        examples = Batch(task.x[: self.fisher_examples], task.y, task.mask)
        with torch.no_grad():
            now = diagonal_fisher(self.model, examples)
            for p, f, total, pulled in zip(self.params, now, self.fisher, self.pulled, strict=True):
                total.add_(f)
                pulled.addcmul_(f, p)


@torch.enable_grad()
def diagonal_fisher(model: nn.Module, examples: Batch) -> list[Tensor]:
    """Mean over examples of Σ_c p_c · (∂ log p_c / ∂w)², in the order of model.parameters().

    A linear layer's gradient for one example is the outer product of what flows back into its
    output (δ) and its input (a), so the sum of the squares over examples is (δ²)ᵀ a²: exact, at
    the price of one backward pass a class. Parameters outside nn.Linear are refused.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    owned = [p for layer in layers for p in layer.parameters()]
    if [id(p) for p in owned] != [id(p) for p in model.parameters()]:
        raise NotImplementedError("diagonal_fisher: model has parameters outside nn.Linear layers")
    fisher = [torch.zeros_like(p) for p in owned]
    for x in torch.split(examples.x, CHUNK):
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []

        def record(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs.append(args[0].detach().square())  # noqa: B023 (used within this round only)
            outputs.append(output)  # noqa: B023

        hooks = [layer.register_forward_hook(record) for layer in layers]
        try:
            log_p = masked(model(x), examples.mask).log_softmax(1)
        finally:
            for hook in hooks:
                hook.remove()
        for label in range(log_p.shape[1]):
            if examples.mask is not None and not examples.mask[..., label].any():
                continue
            deltas = torch.autograd.grad(log_p[:, label].sum(), outputs, retain_graph=True)
            weight = log_p[:, label].detach().exp().unsqueeze(1)
            position = 0
            for layer, delta, a2 in zip(layers, deltas, inputs, strict=True):
                d2 = delta.square().mul_(weight)
                fisher[position] += d2.T @ a2
                position += 1
                if layer.bias is not None:
                    fisher[position] += d2.sum(0)
                    position += 1
    return [f / len(examples.x) for f in fisher]
