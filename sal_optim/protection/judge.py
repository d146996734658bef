"""Judge: what the gradients of a step say of the data, and what the step is to do about it.

On an accelerator the norms of a step are judged in the next one, so that nothing waits for them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sal_optim.detection import descent, novelty, pooled, told
from sal_optim.detection.change_detector import (
    NOVELTY,
    DetectorState,
    begin_segment,
    is_ready,
    limit,
    observe,
    record,
)
from sal_optim.detection.grad_norm import joined, norms, to_host
from sal_optim.protection import anchor
from sal_optim.protection.block import Block, Group
from sal_optim.protection.clock import (
    INTERVAL,
    LEAST,
    MEASURED,
    UNIT_RETENTION,
    hear_learning,
    hear_norm,
    is_due,
    is_turn,
    window,
)
from sal_optim.protection.consolidation import anchor_memory, consolidate_param
from sal_optim.protection.holder import Holder
from sal_optim.protection.silence import Patience
from sal_optim.protection.statistics import track
from sal_optim.utils.autocasting import exact
from sal_optim.utils.rounding import MOST, Number, on_host


@dataclass(slots=True)
class Decision:
    """What a step does beside the base optimizer's update."""

    blocks: list[Block]
    settings: Group  # that hold for all groups
    detector: DetectorState
    gathers: bool = False
    penalizes: bool = False
    listens: bool = False  # to the novelty of its gradients
    slopes: bool = False  # whether to measure the slope from the anchor
    measures: bool = False  # how far the step moves each tensor
    scale: Number = 0.0  # 1 / root mean square of all gradients; 0 if they are not to be gathered
    unit: float = 0.0  # the size of one scalar's gradient, in which the penalty is measured
    finite: bool | Tensor = True  # whether all gradients are
    loss_scale: float = 1.0  # that the gradients still carry, as with a fused GradScaler
    norms: list[Tensor] = field(default_factory=list)  # of each block's gradient
    before: list[tuple[Block, Tensor]] = field(default_factory=list)  # weights, if it measures
    replaced: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # gradients to put back


# Takes numbers that have reached the host. It is given the judge, and does not keep it.
Take = Callable[["Judge", list[float]], None]


class Judge(Holder):
    """Hears the signals of one optimizer, and consolidates where they or the clock ask for it."""

    def __init__(self, optimizer: Optimizer, settings: Group | None = None) -> None:
        super().__init__(optimizer, settings)
        self._patience = Patience()
        self.observing = False  # whether steps gather and move nothing
        self._told = told.Told()
        # Numbers on their way to the host, and who takes them when they have arrived.
        self._underway: list[tuple[Tensor, Any, Take]] = []

    def decide(self, blocks: list[Block], *, rate: float, loss_scale: float = 1.0) -> Decision:
        """Judge this step's gradients; consolidate where that is due.

        Args:
            rate: the largest learning rate of all groups; at 0 a step moves nothing.
            loss_scale: factor that the gradients still carry.
        """
        self.settle()
        self._hear_told()
        settings: Group = self.groups[0] if blocks else {}
        detector = self.detector
        decision = Decision(blocks, settings, detector, loss_scale=loss_scale)
        if not blocks:
            groups = [] if self.observing else self.groups
            if any(group["protection"] > 0.0 and group["params"] for group in groups):
                self._patience.count_idle(detector, groups[0]["consolidate_every"])
            return decision
        decision.norms = norms([b.grad for b in blocks], [b.sharding for b in blocks])
        size = sum(block.size for block in blocks)
        self._hear_size(decision, size)
        if self.observing or all(on_host(norm) for norm in decision.norms):
            self._decide_now(decision, size, rate)
        else:
            self._decide_ahead(decision, size, rate)
        decision.unit = detector["unit"] / math.sqrt(max(1, size))
        if not self.observing:
            if is_due(detector, settings["consolidate_every"]):
                self.merge()
            self._patience.count(detector, settings["consolidate_every"])
            if decision.measures:
                decision.before = [(block, block.values.clone()) for block in blocks]
        return decision

    def _hear_size(self, decision: Decision, size: int) -> None:
        """Begin a segment where parameters join all that had a gradient the step before.

        As a layer that is unfrozen: the norm is of more than it was, and the layers above soon see
        other features, but the data is what it was. It is not where gradients of the others leap
        in that step, too, or where some leave, as another task's head does.
        """
        blocks, detector = decision.blocks, decision.detector
        heard = detector["heard"]
        if self.observing or not 0.0 < heard < size:
            return
        known = [block.state["grad_norm_mean"] > 0.0 for block in blocks]
        if heard == sum(block.size for block in compress(blocks, known)):
            before = joined(list(compress(decision.norms, known))).norm()
            if float(before) <= limit(detector, decision.settings) * decision.loss_scale:
                begin_segment(detector)
                begin_segment(detector, NOVELTY)

    def _decide_now(self, decision: Decision, size: int, rate: float) -> None:
        values = [float(norm) / decision.loss_scale for norm in decision.norms]
        total = math.sqrt(sum(value * value for value in values))
        decision.finite = math.isfinite(total)
        # A zero gradient, a non-finite one or a zero learning rate tells nothing about the data.
        if not (0.0 < total < math.inf and (rate != 0.0 or self.observing)):
            return
        ordinary = self._hear(total, size, decision.settings, decision.detector)
        if self.observing:
            decision.detector["observed"] = 1.0
        track([b.state for b in decision.blocks], values, decision.settings["stats_beta"])
        self._schedule(decision, decision.detector["total"], ordinary)
        decision.gathers = decision.gathers or (self.observing and ordinary)
        decision.scale = min(math.sqrt(size) / (total * decision.loss_scale), MOST)

    def _decide_ahead(self, decision: Decision, size: int, rate: float) -> None:
        settings, detector = decision.settings, decision.detector
        vector = joined(decision.norms)
        total = vector.square().sum().sqrt()
        decision.finite = total.isfinite()
        known = (total > 0.0) & decision.finite
        if rate == 0.0:
            return

        # The step that is judged later is the detector's next.
        self._schedule(decision, detector["total"] + 1.0, not pooled.suspects(detector))
        most = limit(detector, settings)
        # No more than these: gradients are not kept until the next step.
        params, gathers = [block.param for block in decision.blocks], decision.gathers

        def hear(judge: Judge, values: list[float]) -> None:
            total = math.sqrt(sum(value * value for value in values))
            if gathers and not 0.0 < total <= most:
                judge._take_back(params)
            if total > 0.0:
                judge._hear(total, size, settings, detector)
                judge._track(params, values, settings["stats_beta"])

        self.send(torch.where(known, vector / decision.loss_scale, 0.0), hear)
        ordinary = known & (total <= most * decision.loss_scale)
        decision.scale = torch.where(ordinary, math.sqrt(size) / total, 0.0)

    def _schedule(self, decision: Decision, step: float, ordinary: bool) -> None:
        after = is_turn(step - 1.0, INTERVAL)
        decision.penalizes, decision.gathers = is_turn(step, INTERVAL), ordinary and after
        decision.measures = is_turn(step - 2.0, MEASURED)
        decision.listens = after and novelty.listens(decision.detector)
        every = decision.settings["consolidate_every"]
        calm = decision.gathers and not self.observing
        decision.slopes = calm and descent.listens(decision.detector, every)

    def _hear(self, norm: float, size: int, settings: Group, detector: DetectorState) -> bool:
        """Pass the norm to the detector, consolidate at a change; is the step ordinary?

        Args:
            norm: of the gradient of so many scalars.
        """
        detector["heard"] = float(size)
        if self.observing:
            record(detector, norm, beta=settings["stats_beta"])
            return True
        detector["total"] += 1.0
        detector["since"] += 1.0
        most = limit(detector, settings)
        verdict = observe(detector, norm, settings)
        if verdict.change:
            held = detector["held"]
            self._changed(detector, firm=not is_ready(detector, NOVELTY))
            detector["leap"] = held
            # The first norm of the new segment opens its statistics.
            verdict = observe(detector, norm, settings)
        elif pooled.hear(detector, min(norm, most), settings):
            self._changed(detector, firm=not is_ready(detector, NOVELTY))
        hear_norm(detector, norm)
        if verdict.surprising:
            descent.interrupt(detector)
        return not (verdict.surprising or pooled.suspects(detector))

    def _changed(self, detector: DetectorState, *, firm: bool) -> None:
        """Consolidate what has ended."""
        if firm:
            detector["firm"] = 1.0
        if self.merge(ended=True):
            detector["changes"] += 1.0
        begin_segment(detector)

    def hear_novelty(self, damped: list[Tensor], whole: list[Tensor]) -> None:
        """Pass on norms of gradients, damped and whole, of the parameters that have importance."""

        def hear(judge: Judge, values: list[float]) -> None:
            if novelty.hear(judge.detector, values[0], values[1]):
                judge.detector["firm"] = 1.0

        self.send(torch.stack([joined(damped).norm(), joined(whole).norm()]), hear)

    def hear_slope(self, decision: Decision) -> None:
        """Hear whether the loss still falls along the way from the anchor."""
        blocks = [block for block in decision.blocks if block.state["evidence_weight"] > 0.0]
        held = [block for block in blocks if "anchor" in block.local]
        if not held:
            if blocks:  # without anchors nothing says that the network learns
                descent.hear(decision.detector, 0.0, 1.0, 1.0)
            return
        moved = anchor.distances([b.local for b in held], [b.values for b in held])
        grads = [-b.grad if b.group.get("maximize") else b.grad for b in held]
        numbers = descent.measured(grads, moved, [b.sharding for b in held])
        norm = joined(decision.norms).norm().to(numbers.device)
        if isinstance(decision.scale, Tensor):
            # Of an outlier, which is known on the accelerator alone, nothing is heard.
            norm = norm * (decision.scale > 0.0).to(norm.device)
        numbers = torch.cat([numbers, norm.to(numbers.dtype).reshape(1)])
        self.send(numbers, lambda judge, values: descent.hear(judge.detector, *values))

    def take_told(self, name: str, number: Tensor) -> None:
        """Take a number that the training loop tells, 0-dim, for the next step to hear."""
        self.send(number.reshape(1), lambda judge, values: judge._told.add(name, values[0]))

    def _hear_told(self) -> None:
        detector = self.detector
        for name, mean in self._told.means():
            change = bool(self.groups) and told.hear(detector, name, mean, self.groups[0])
            if change and is_ready(detector):
                self._changed(detector, firm=True)
            elif change or told.bears_out(detector):
                # A segment has just begun: what it has gathered is of the data that the signal
                # tells of, and no end of it.
                detector["firm"] = 1.0

    def measure(self, decision: Decision) -> None:
        """Take the lengths of the steps that led here from the weights before."""
        beta = decision.settings["stats_beta"]
        # A closure that was evaluated again may have had gradients of other parameters.
        blocks, before = map(list, zip(*decision.before, strict=True))
        steps = list(torch._foreach_sub([block.values for block in blocks], before))
        lengths = joined(norms(steps, [block.sharding for block in blocks]))
        params = [block.param for block in blocks]
        self.send(lengths, lambda judge, found: judge._track(params, found, beta, update=True))

    def _track(
        self, params: Sequence[Tensor], values: list[float], beta: float, *, update: bool = False
    ) -> None:
        # What was early in the step before is the optimizer's state by now; some may be deleted.
        known = [
            (state, value)
            for param, value in zip(params, values, strict=True)
            if "grad_norm_mean" in (state := self.state_of(param))
        ]
        track([state for state, _ in known], [value for _, value in known], beta, update=update)

    def _take_back(self, params: Sequence[Tensor]) -> None:
        """Count a step no longer that has gathered zeros, as its norm was one to pass over."""
        for param in params:
            state = self.state_of(param)
            if state.get("pending_steps", 0.0) >= 1.0:
                state["pending_steps"] -= 1.0

    @exact
    def merge(self, *, ended: bool = False, own: float = 0.0) -> bool:
        """Merge what was gathered by all parameters; return whether there was anything.

        Args:
            ended: what was gathered is the end of a segment, which counts whole however short.
            own: the share of importance so far that is surely of the data that ends here.
        """
        detector, groups = self.detector, self.groups
        if not groups:  # all were deleted
            return False
        every = groups[0]["consolidate_every"]
        usual = window(detector, every)
        usual = (min(usual, LEAST) if ended else usual) / INTERVAL
        memory = anchor_memory(detector["steps"], window(detector, every or "auto") if ended else 0)
        counted, wider = [], False
        for group in groups:
            for param in group["params"]:
                state = self.state_of(param)
                if group["protection"] > 0.0 and state:
                    known = state.get("evidence_weight", 0.0) > 0.0
                    merged = consolidate_param(param, state, group, usual, detector, memory, own)
                    counted += [] if merged is None else [merged]
                    wider = wider or not (known or merged is None)
        detector["since"] = 0.0
        if wider:  # and so is what novelty is measured on
            begin_segment(detector, NOVELTY)
        if counted:
            least = min(counted)
            detector["own"] = detector["own"] * (1.0 - least) + least
            detector["observed"] = 0.0
            unit = detector["unit"] * UNIT_RETENTION if detector["consolidations"] > 0.0 else 0.0
            detector["unit"] = max(unit, detector["mean"])
            detector["consolidations"] += 1.0
            if ended:
                descent.begin(detector)
                told.begin_window(detector)
            else:
                fall = told.close_window(detector)
                hear_learning(detector, descent.descent(detector), fall)
        return bool(counted)

    def send(self, numbers: Tensor, take: Take) -> None:
        """Have numbers taken: at once where they are on the host, or else at the next step."""
        self._underway.append((*to_host(numbers), take))
        if on_host(numbers):
            self.settle()

    def settle(self) -> None:
        """Take what has been underway since the step before."""
        underway, self._underway = self._underway, []
        for host, event, take in underway:
            if event is not None:
                event.synchronize()
            take(self, host.tolist())

    def forget(self) -> None:
        """Drop what is underway, and what was told."""
        self._underway.clear()
        self._told.clear()
