"""What others do to keep what a pretrained model knows, on AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from benchmarks.data.errors import UserError
from benchmarks.finetune.methods.base import WEIGHT_DECAY, Loss, Method, copies
from benchmarks.methods.of_torch import Muon


class Anchored(Method):
    """AdamW without weight decay that keeps the pretrained weights, and an option `strength`."""

    usual: ClassVar[float]  # strength where none is given

    def prepare(
        self, model: nn.Module, *, strength: float | None = None, **options: Any
    ) -> nn.Module:
        self.strength = self.usual if strength is None else strength
        return super().prepare(model, **options)

    def make(self, lr: float) -> Optimizer:
        self.kept = self.start = copies(self.params)
        return AdamW(self.params, lr=lr, weight_decay=0.0)


class L2SP(Anchored):
    """A spring of one strength to the pretrained weights (Li et al. 2018, arXiv 1802.01483)."""

    usual: ClassVar[float] = 0.01

    @torch.no_grad()
    def before_step(self) -> None:
        for param, start in zip(self.params, self.start, strict=True):
            if param.grad is not None:
                param.grad.add_(param - start, alpha=self.strength)


class EWC(Anchored):
    """A spring by the Fisher's diagonal (Kirkpatrick et al. 2017, arXiv 1612.00796).

    The Fisher is the mean square of the gradient of one sequence's loss, over the observed ones.
    """

    observes: ClassVar[str | None] = "old"
    usual: ClassVar[float] = 100.0

    def make(self, lr: float) -> Optimizer:
        made = super().make(lr)
        self.fisher = [torch.zeros_like(p) for p in self.params]
        self.kept = [*self.start, *self.fisher]
        return made

    def observe(self, batches: Sequence[Tensor], loss: Loss) -> None:
        rows = [row[None] for batch in batches for row in batch]
        for row in rows:
            grads = torch.autograd.grad(loss(self.model, row), self.params)
            for fisher, grad in zip(self.fisher, grads, strict=True):
                fisher.addcmul_(grad, grad, value=1 / len(rows))

    @torch.no_grad()
    def before_step(self) -> None:
        for param, start, fisher in zip(self.params, self.start, self.fisher, strict=True):
            if param.grad is not None:
                param.grad.addcmul_(fisher, param - start, value=self.strength)


class SPD(Anchored):
    """Selective projection decay (Tian et al. 2024, NeurIPS).

    After AdamW's step, a tensor whose gradient asks to go back toward its pretrained weights is
    drawn there, by `strength` times the part of its distance that this step has added.
    """

    usual: ClassVar[float] = 1.0

    @torch.no_grad()
    def before_step(self) -> None:
        self.back, self.distance = [], []
        for param, start in zip(self.params, self.start, strict=True):
            gone = param - start
            grad = param.grad
            self.back.append(grad is not None and float((grad * gone).sum()) > 0.0)
            self.distance.append(float(gone.norm()))

    @torch.no_grad()
    def after_step(self) -> None:
        for param, start, back, before in zip(
            self.params, self.start, self.back, self.distance, strict=True
        ):
            now = float((param - start).norm())
            if back and now > before:
                share = min(1.0, self.strength * (now - before) / now)
                param.lerp_(start, share)


class FilteredAdamW(AdamW):
    """AdamW that moves, in each tensor, only the elements of the largest momentum."""

    fraction = 0.15

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        before = copies(params)
        loss: float | None = super().step(closure)
        for param, old in zip(params, before, strict=True):
            size = self.state[param]["exp_avg"].abs().flatten()
            most = max(1, round(self.fraction * size.numel()))
            bar = size.kthvalue(size.numel() - most + 1).values
            param.copy_(torch.where(size.view_as(param) >= bar, param, old))
        return loss


class MoFO(Method):
    """Momentum-filtered AdamW (Chen et al. 2024, arXiv 2407.20999)."""

    def prepare(self, model: nn.Module, *, fraction: float = 0.15, **options: Any) -> nn.Module:
        self.fraction = fraction
        return super().prepare(model, **options)

    def make(self, lr: float) -> Optimizer:
        made = FilteredAdamW(self.params, lr=lr, weight_decay=0.0)
        made.fraction = self.fraction
        return made


class Half(Method):
    """Half of the matrices of each block, drawn once; all else is frozen.

    After half fine-tuning (Hui et al. 2024, arXiv 2404.18466).
    """

    def prepare(self, model: nn.Module, *, seed: int = 0, **options: Any) -> nn.Module:
        draw = torch.Generator().manual_seed(seed)
        layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        chosen = torch.randperm(len(layers), generator=draw)[: len(layers) // 2].tolist()
        for param in model.parameters():
            param.requires_grad_(False)
        for place in chosen:
            for param in layers[place].parameters():
                param.requires_grad_(True)
        return super().prepare(model, **options)


class LoRA(Method):
    """Low-rank adapters on all linear layers of the blocks (Hu et al. 2021, arXiv 2106.09685)."""

    def prepare(self, model: nn.Module, *, rank: int = 8, **options: Any) -> nn.Module:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise UserError(
                f"method 'lora' needs peft ({error}); pip install .[finetune]"
            ) from error
        inner = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "." in n]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=inner)
        wrapped: nn.Module = get_peft_model(super().prepare(model, **options), config)
        return wrapped

    @torch.no_grad()
    def weights(self) -> list[Tensor]:
        """The pretrained model's, with the adapters added in."""
        found = []
        layers = dict(self.model.get_base_model().named_modules())  # type: ignore[operator]
        for name, param in self.model.get_base_model().named_parameters():  # type: ignore[operator]
            if "lora_" in name:
                continue
            weight = param.detach()
            layer = layers.get(name.removesuffix(".base_layer.weight"))
            if name.endswith(".base_layer.weight") and layer is not None:
                weight = weight + layer.get_delta_weight("default")
            found.append(weight)
        return found


class WiSE(Method):
    """Weights between the pretrained and AdamW's last (Wortsman et al. 2021, arXiv 2109.01903)."""

    averages: ClassVar[bool] = True


class FAPM(Method):
    """AdamW's change, of which a share of the elements is kept (Huang et al. 2025, 2509.08255).

    Those of each tensor that have changed much and, next to their pretrained size, little.
    """

    averages: ClassVar[bool] = True

    @torch.no_grad()
    def give_back(self, start: Sequence[Tensor], share: float) -> None:
        for param, first in zip(self.model.parameters(), start, strict=True):
            changed, size = (param - first).abs(), first.abs()
            score = changed - size.mean() * changed / size.clamp_min(torch.finfo(size.dtype).tiny)
            kept = score.flatten().topk(round(share * score.numel()), sorted=False).indices
            pruned = first.flatten().clone()
            pruned[kept] = param.flatten()[kept]
            param.copy_(pruned.view_as(param))


class PlainMuon(Method):
    """torch.optim.Muon for matrices, Adam for the rest."""

    def make(self, lr: float) -> Optimizer:
        return Muon(self.params, lr)


__all__ = [
    "EWC", "FAPM", "L2SP", "SPD", "WEIGHT_DECAY", "Half", "LoRA", "MoFO", "PlainMuon", "WiSE",
]  # fmt: skip
