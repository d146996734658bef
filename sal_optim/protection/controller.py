"""ProtectionController: watches the gradients of an optimizer, consolidates, protects.

The family and ``CommunicationLayer`` each own one. It sees param groups, state and gradients, and
nothing of how the optimizer moves a weight: what it changes is the gradient that a step is given.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sal_optim.detection.change_detector import TOLD, begin_segment
from sal_optim.detection.grad_norm import joined, norms
from sal_optim.importance import State, code_of
from sal_optim.protection import buffers, growing
from sal_optim.protection.block import Block, Group, blocks_of, in_force
from sal_optim.protection.clock import strength
from sal_optim.protection.consolidation import draw_back, importance_of
from sal_optim.protection.diagnostics import diagnose, spectrum
from sal_optim.protection.gradients import (
    batches,
    damped,
    descends,
    norms_of,
    protected,
    regain_norm,
    replace,
)
from sal_optim.protection.judge import Decision, Judge
from sal_optim.protection.silence import agree
from sal_optim.utils import checks
from sal_optim.utils.autocasting import exact
from sal_optim.utils.rounding import MOST, dither, on_host
from sal_optim.utils.warning import warn

# The pending sums are halved with their step count when they reach this many steps: their mean
# stays, and no sum outgrows the precision of float32.
PENDING_HORIZON = 65536.0


class ProtectionController(Judge):
    """Importance, change detector, clock and protection over the groups of one optimizer."""

    def __init__(self, optimizer: Optimizer, settings: Group | None = None) -> None:
        super().__init__(optimizer, settings)
        self._descends = descends(optimizer)
        self._spectrum: tuple[tuple[float, ...], dict[str, float]] | None = None
        self._observed = self._observed_gathered = 0
        self.checked: list[Any] = []  # settings of the groups when they were last checked

    # ---------------------------------------------------------------- the parts of a step

    def collect(self) -> list[Block]:
        """Protected parameters that have a gradient. All is checked before anything changes."""
        owner = "CommunicationLayer" if self.settings else type(self.optimizer).__name__
        blocks = blocks_of(self.groups, self.optimizer.state, self.early, owner)
        known = any(block.state["evidence_weight"] > 0.0 for block in blocks)
        if blocks and agree(self, known=known):
            self.forget()
        return blocks

    def renew(self, decision: Decision, blocks: list[Block]) -> None:
        """Take other gradients in the same step, as of a closure that is evaluated once more."""
        decision.blocks = blocks
        decision.norms = norms([b.grad for b in blocks], [b.sharding for b in blocks])
        decision.replaced.clear()
        if blocks:
            finite = joined(decision.norms).isfinite().all()
            decision.finite = bool(finite) if on_host(finite) else finite

    @exact
    def gather(self, decision: Decision) -> None:
        """Add this step's gradients to what is pending."""
        if self.observing:
            self._observed += 1
            self._observed_gathered += decision.gathers
        if not decision.gathers:
            return
        if decision.slopes:
            self.hear_slope(decision)
        kinds: dict[Any, list[Block]] = {}
        for block in decision.blocks:
            place = (id(block.kind), block.grad.dtype, block.grad.device)
            kinds.setdefault(place, []).append(block)
        for blocks in kinds.values():
            scale, at = decision.scale, dither(blocks[0].state["pending_steps"])
            if isinstance(scale, Tensor):
                scale = scale.to(blocks[0].grad.device, non_blocking=True)
            states, grads = [b.local for b in blocks], [b.grad for b in blocks]
            blocks[0].kind.accumulate(states, grads, scale, at)
        for block in decision.blocks:
            block.state["pending_steps"] += 1.0
            if block.local is not block.state:  # distributed
                block.state["layout"] = code_of(block.kind)
            if block.state["pending_steps"] >= PENDING_HORIZON:
                _halve_pending(block)

    @exact
    def protect(self, decision: Decision) -> None:
        """Give the step protected gradients; :meth:`finish` puts the others back."""
        if decision.finite is False:
            return  # the base optimizer takes it as it does without protection
        held = batches(decision.blocks)
        if decision.listens and held:
            self._listen(held, decision)
        share = strength(decision.detector) if held else 0.0
        if share == 0.0:
            return
        grads = [grad for blocks in held for grad in self.protected(blocks, decision, share)]
        blocks = [block for batch in held for block in batch]
        if self._descends:
            regain_norm(blocks, grads, decision)
        for block, grad in zip(blocks, grads, strict=True):
            if isinstance(decision.finite, Tensor):
                grad = torch.where(decision.finite.to(grad.device), grad, block.grad)
            decision.replaced.append(replace(block, grad))

    def _listen(self, held: list[list[Block]], decision: Decision) -> None:
        """Have the judge hear how much of the gradient is where earlier data said nothing."""
        grads = [grad for blocks in held for grad in damped(blocks)]
        blocks = [block for batch in held for block in batch]
        damped_norms = norms(grads, [block.sharding for block in blocks])
        self.hear_novelty(damped_norms, norms_of(blocks, decision))

    def protected(self, blocks: Sequence[Block], decision: Decision, share: float) -> list[Tensor]:
        """The gradients that blocks of one group and kind are given."""
        return protected(blocks, decision, share=share, descends=self._descends)

    def finish(self, decision: Decision) -> None:
        """Put gradients back, measure the step, and let state be where checkpoints look."""
        for param, grad in decision.replaced:
            param.grad = grad
        decision.replaced.clear()
        if self.observing:
            return  # no step was taken
        if self.early:
            self.settle_early()
        if decision.before:
            self.measure(decision)

    # ---------------------------------------------------------------- what users call

    @torch.no_grad()
    def consolidate(self, model: nn.Module | None = None) -> None:
        """Declare that a task ends here; see ``SALOptimizer.consolidate``."""
        if model is not None:
            buffers.keep(self.optimizer.param_groups, model)
        self.settle()
        self.merge(ended=True, own=self.detector["own"])
        if self.detector["consolidations"] > 0.0:
            self.detector["firm"] = 1.0
        begin_segment(self.detector)

    @torch.no_grad()
    def tell(self, numbers: dict[str, Any]) -> None:
        """Hear what the training loop knows; see ``SALOptimizer.tell``."""
        heard: dict[str, Tensor] = {}
        for name, number in numbers.items():
            checks.choice("signal", name, list(TOLD))
            if isinstance(number, Real) and not math.isfinite(number):
                continue  # a run that diverges is not ended here
            if not isinstance(number, Tensor):
                # Not in the default dtype, which may have two bytes.
                value = checks.number(name, number, low=-math.inf)
                number = torch.tensor(value, dtype=torch.float32, device="cpu")
            elif number.numel() != 1 or number.is_complex():
                raise ValueError(
                    f"Invalid {name} value: a tensor of shape {tuple(number.shape)}, "
                    f"{number.dtype}; {name} must be one real number"
                )
            heard[name] = number.detach()
        for name, told in heard.items():
            if not self.observing:
                self.take_told(name, told)

    @contextlib.contextmanager
    def observe(self) -> Iterator[None]:
        """A context in which steps gather importance and move nothing."""
        self.settle()
        outside, self.observing = self.observing, True
        steps, gathered = self._observed, self._observed_gathered
        try:
            yield
        finally:
            self.observing = outside
        protects = any(group["protection"] > 0.0 for group in self.groups)
        if self._observed == steps:
            warn(
                "observe() saw no step(), so nothing was gathered; call step() after each backward"
            )
        elif self._observed_gathered == gathered and protects:
            warn(
                "observe() gathered nothing: no step() saw a gradient that is finite and not zero; "
                "call backward() before each, of parameters that require gradients"
            )

    @torch.no_grad()
    def restore(self, strength: float, model: nn.Module | None = None) -> None:
        """Draw all weights back to their anchors; see ``SALOptimizer.restore``."""
        strength = min(checks.number("strength", strength), MOST)
        self.check_anchors()
        kept = [] if model is None else buffers.kept_for(self.optimizer.param_groups, model)
        held = list(self.held())
        if not any("anchor" in state for _, _, state in held):
            why = "an anchor is first kept by a consolidation with a pull above 0"
            why = why if held else "there was no consolidation yet"
            warn(
                f"restore() changed nothing: {why}; call consolidate() after steps of what should "
                "be kept"
            )
        for param, group, state in held:
            draw_back(param, state, group, strength)
        if strength > 0.0:
            for buffer, value in kept:
                buffer.copy_(value)

    def check_anchors(self) -> None:
        """Refuse :meth:`restore` where a group keeps no anchors; raises ValueError."""
        if any(group["pull"] == 0.0 for group in self.groups):
            raise ValueError(
                "Invalid pull value: 0.0; restore() draws weights to anchors, which are kept with "
                "a pull above 0"
            )

    @exact
    @torch.no_grad()
    def grow(self, old: Tensor, new: Tensor) -> None:
        """Put a parameter with more rows in another's place; see ``SALOptimizer.grow``."""
        self.settle()
        growing.grow(self, old, new)
        self._spectrum = None

    @exact
    @torch.no_grad()
    def take_over(self, old: Tensor, state: State, new: Tensor) -> None:
        """The same where a framework has put ``new`` into the place of ``old`` by itself.

        Args:
            old: that was a parameter.
            state: that the optimizer had of it.
            new: a parameter, whose first rows are those of ``old``.
        """
        self.settle()
        growing.move(self, old, state, new)
        self._spectrum = None

    @exact
    @torch.no_grad()
    def importance(self, param: Tensor, share: float = 0.0) -> tuple[Tensor, Group]:
        """Importance of each element, in the shape of the real local parameter, and its group.

        With a share of the protection it is importance as a step under it counts it.
        """
        for group in self.groups:
            if any(param is candidate for candidate in group["params"]):
                damping = in_force(group, share)
                return importance_of(param, self.state_of(param), group, damping), group
        raise ValueError(
            f"Invalid param value: a {type(param).__name__} of shape "
            f"{tuple(getattr(param, 'shape', ()))}; param must be one of this optimizer's "
            "parameters"
        )

    def stability(self, param: Tensor) -> Tensor:
        """The stability of each element of a parameter, in [0, 1); see ``SALOptimizer``."""
        share = strength(self.detector)
        importance, group = self.importance(param, share)
        weighted = importance * in_force(group, share)
        return weighted / (weighted + 1.0)

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """What the protection does, as finite floats; see ``diagnostics.py``."""
        self.settle()
        key = self._spectrum_key()
        if self._spectrum is None or self._spectrum[0] != key:
            self._spectrum = key, spectrum(self)
        return diagnose(self, self._spectrum[1])

    def _spectrum_key(self) -> tuple[float, ...]:
        """What the fractions depend on: importance, and how strongly it counts."""
        key: list[float] = []
        for group in self.groups:
            key += [group["protection"], len(group["params"])]
            key += [self.state_of(p).get("evidence_weight", 0.0) for p in group["params"]]
        return (self.detector["consolidations"], strength(self.detector), *key)

    def forget(self) -> None:
        """Drop what an instance keeps beside its state."""
        super().forget()
        self._spectrum = None


def _halve_pending(block: Block) -> None:
    block.state["pending_steps"] /= 2.0
    for name, value in block.local.items():
        if "pending" in name and isinstance(value, Tensor):
            value.mul_(0.5)
