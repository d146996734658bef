"""Controls that could prove SAL wrong: if one does as well, its mechanism is not what helps.

Three are SAL with other importance in the place of its own, wherever a gradient is protected; what
is gathered, the clock, the change detector and the anchors stay SAL's:

- random: the same values along random directions; of vectors, at random elements.
- shuffled: the same directions, and their values in another order; of vectors, the elements.
- uniform: the mean of all importance everywhere, which makes the penalty an L2 to the anchors.

Directions and orders are drawn once for a run, from the run's seed.

Matched trains a second network by SAL on the same batches; the network that is measured is the base
optimizer's, its update scaled to the length of SAL's: the learning rate that SAL amounts to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from benchmarks.methods.base import Method
from benchmarks.methods.sal import SAL, build
from benchmarks.streams import Batch, masked
from sal_optim.importance import Importance
from sal_optim.importance.kronecker import Kronecker
from sal_optim.protection.block import Block, Group, kind_of_param, local_state
from sal_optim.protection.controller import ProtectionController
from sal_optim.protection.judge import Decision

State = dict[str, Any]
UNBOUNDED = Kronecker(room=math.inf)


class Substituting(ProtectionController):
    """A controller that protects by other importance than what was gathered.

    Args:
        optimizer: of sal_optim.
        substitute: what is shown in the place of a parameter's state.
    """

    def __init__(
        self, optimizer: Optimizer, substitute: Callable[[Substituting, Tensor, State], State]
    ) -> None:
        super().__init__(optimizer)
        self.substitute = substitute
        self.drawn: dict[tuple[Tensor, str], Tensor] = {}
        self._shown: dict[Tensor, State] = {}
        self._consolidations = 0.0

    def shown(self, param: Tensor, state: State) -> State:
        """The state with other importance, made anew after each consolidation."""
        if self.detector["consolidations"] != self._consolidations:
            self._shown.clear()
            self._consolidations = self.detector["consolidations"]
        if param not in self._shown:
            self._shown[param] = self.substitute(self, param, state)
        anchor = {"anchor": state["anchor"]} if "anchor" in state else {}
        return {**self._shown[param], **anchor}

    def once(self, param: Tensor, name: str, draw: Callable[[], Tensor]) -> Tensor:
        """What is drawn at the first call, at every call."""
        if (param, name) not in self.drawn:
            self.drawn[param, name] = draw()
        return self.drawn[param, name]

    def protected(self, blocks: Sequence[Block], decision: Decision, share: float) -> list[Tensor]:
        shown = [
            replace(block, local=self.shown(block.param, block.local), kind=_unbounded(block.kind))
            for block in blocks
        ]
        return super().protected(shown, decision, share)

    def importance(self, param: Tensor, share: float = 0.0) -> tuple[Tensor, Group]:
        found, group = super().importance(param, share)
        state = self.state_of(param)
        if state.get("evidence_weight", 0.0) == 0.0:
            return found, group
        shown = self.shown(param, local_state(state))
        damping = float(group["protection"]) * share
        kind = _unbounded(kind_of_param(param, group))
        return kind.elements(shown, param.detach(), damping), group


def _unbounded(kind: Importance) -> Importance:
    """A control holds as firmly as it can: a bound would disarm the one that holds everywhere."""
    return UNBOUNDED if isinstance(kind, Kronecker) else kind


def _reordered(controller: Substituting, param: Tensor, name: str, value: Tensor) -> Tensor:
    """The values of a tensor in an order that is drawn once."""
    order = controller.once(param, name, lambda: torch.randperm(value.numel()))
    return torch.take(value, order).view_as(value)


def _orthonormal(shape: Sequence[int]) -> Tensor:
    """Random columns of length 1 at right angles."""
    found: Tensor = torch.linalg.qr(torch.randn(tuple(shape))).Q
    return found


def at_random(controller: Substituting, param: Tensor, state: State) -> State:
    """The same values along random orthonormal directions of the same number."""
    if "left_basis" not in state:
        return shuffled(controller, param, state)
    found = {n: value for n, value in state.items() if n.endswith("_values")}
    for name in ("left_basis", "right_basis"):
        found[name] = controller.once(param, name, partial(_orthonormal, state[name].shape))
    return found


def shuffled(controller: Substituting, param: Tensor, state: State) -> State:
    """The values of the directions that are kept in another order; without them, the elements."""
    found: State = {}
    for name, value in state.items():
        if name.endswith("_values"):
            mixed = _reordered(controller, param, name, value[:-1])
            found[name] = torch.cat([mixed, value[-1:]])
        elif name.endswith("_basis"):
            found[name] = value
        elif name.startswith("evidence") and isinstance(value, Tensor):
            found[name] = _reordered(controller, param, name, value)
    return found


def uniform(controller: Substituting, param: Tensor, state: State) -> State:
    """The mean over all scalars of the optimizer, everywhere."""
    total, size = 0.0, 0
    for group in controller.groups:
        for other in group["params"]:
            own = controller.state_of(other)
            if own.get("evidence_weight", 0.0) > 0.0:
                kind: Importance = kind_of_param(other, group)
                total += float(kind.elements(local_state(own), other.detach()).sum())
                size += other.numel()
    mean = total / max(1, size)
    found: State = {}
    for name, value in state.items():
        if name.endswith("_basis"):
            found[name] = value
        elif name in ("left_values", "evidence_column"):
            found[name] = torch.ones_like(value)
        elif name == "right_values":
            # Importance is left times right over the sum of the left side, its rows.
            found[name] = torch.full_like(value, mean * param.shape[0])
        elif name.startswith("evidence") and isinstance(value, Tensor):
            found[name] = torch.full_like(value, mean)
    return found


class Substitute(SAL):
    """SAL that protects by importance of another kind."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        controller = Substituting(optimizer, self.substitute)
        optimizer._own_controller = controller  # type: ignore[attr-defined]

    @staticmethod
    def substitute(controller: Substituting, param: Tensor, state: State) -> State:
        """What is shown in the place of a parameter's state."""
        raise NotImplementedError


class Random(Substitute):
    """SAL's values along random directions."""

    substitute = staticmethod(at_random)


class Shuffled(Substitute):
    """The values in another order."""

    substitute = staticmethod(shuffled)


class Uniform(Substitute):
    """One value everywhere."""

    substitute = staticmethod(uniform)


@torch.no_grad()
def distance(now: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """‖now - before‖ over all tensors."""
    return float(sum((a - b).square().sum() for a, b in zip(now, before, strict=True)) ** 0.5)


class Matched(Method):
    """A base optimizer whose update is as long as that of SAL beside it."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, *, base: str = "adam", **options: Any
    ) -> None:
        super().__init__(model, optimizer)
        lr = optimizer.param_groups[0]["lr"]
        self.twin = build(copy.deepcopy(model), base, lr, **options)
        self.before: list[Tensor] = []
        self.twin_before: list[Tensor] = []

    def before_step(self, batch: Batch) -> None:
        twin = self.twin
        logits = masked(twin.model(batch.x), batch.mask)
        twin.optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(logits, batch.y))
        if self.clip is not None:
            nn.utils.clip_grad_norm_(twin.params, self.clip)
        self.before = [p.detach().clone() for p in self.params]
        self.twin_before = [p.detach().clone() for p in twin.params]
        twin.optimizer.step()

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        own = distance(self.params, self.before)
        scale = distance(self.twin.params, self.twin_before) / own if own else 0.0
        for p, old in zip(self.params, self.before, strict=True):
            p.copy_(torch.lerp(old, p, scale))
