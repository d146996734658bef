"""What SAL does, as numbers for a logger: fractions of scalars, threshold, surprise, drift.

Reads the protection, never changes it, and speaks to no other process: on sharded parameters the
fractions and the drift are those of the local part.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from sal_optim.detection.descent import descent
from sal_optim.protection import anchor
from sal_optim.protection.block import local_state
from sal_optim.protection.statistics import published_stability
from sal_optim.sharding.dtensor import plain

if TYPE_CHECKING:
    from sal_optim.protection.controller import ProtectionController

# A scalar is protected above the first, volatile below the second bound of its stability.
PROTECTED, VOLATILE = 2 / 3, 1 / 3

# Elements of a tensor from which its drift is told: reading all would take a tenth of a step.
SAMPLE = 1 << 13


class Counts(NamedTuple):
    """Scalars of one parameter by stability, the sum of their gates, and that of s²."""

    size: int
    protected: int
    volatile: int
    gate: float
    held: float = 0.0

    def shares(self) -> dict[str, float]:
        """Fractions, which sum to 1, and the mean gate; of no scalars all is free."""
        size, protected, volatile, gate, _ = self if self.size else (1, 0, 1, 1.0, 0.0)
        return {
            "protected": protected / size,
            "neutral": (size - protected - volatile) / size,
            "volatile": volatile / size,
            "mean_gate": gate / size,
        }


def spectrum(controller: "ProtectionController") -> dict[str, float]:
    """Fractions of scalars by stability. They change only when importance or protection does."""
    found = [count(controller, param) for group in controller.groups for param in group["params"]]
    total = Counts(*map(sum, zip(Counts(0, 0, 0, 0.0), *found, strict=True)))
    return {**total.shares(), "innovation_cost": math.sqrt(total.held / max(1, total.size))}


def diagnose(controller: "ProtectionController", spectrum: dict[str, float]) -> dict[str, float]:
    """The flat dict that ``diagnostics()`` returns.

    - ``protected``, ``neutral``, ``volatile``: fractions of scalars whose stability s is above 2/3,
      between, and below 1/3; they sum to 1.
    - ``mean_gate``: the mean of ``1 - s``: the fraction of a gradient that is let through.
    - ``innovation_cost``: the root of the mean of ``s**2``, which is norm(s·g) / norm(g) of a
      gradient g whose elements are of one size.
    - ``surprise``, ``threshold``: the last gradient norm over its mean, and what that was held to.
    - ``descent``: by how many of its standard deviations, 0.05 at least, the mean cosine of the
      gradient and the way from the anchor is below 0 (0 until it is known); where it is above 1
      the network still learns, and protection that nothing has called for waits.
    - ``consolidations``: their number, by the clock, at changes and by ``consolidate()``;
      ``changes``: those at a detected change.
    - ``drift``: ``norm(w - anchor) / norm(anchor)``; 0 before the first consolidation and where no
      anchor is kept (``pull=0``). Of large tensors a sample is taken.
    - ``published_stability``: the mean over tensors of ``1 / (1 + delta_w * g_norm)``.
    """
    detector = controller.detector
    states = [controller.state_of(p) for group in controller.groups for p in group["params"]]
    published = [published_stability(state) for state in states if state.get("delta_w", 0.0) > 0.0]
    return {
        **spectrum,
        "threshold": detector["threshold"],
        "surprise": detector["surprise"],
        "descent": descent(detector) or 0.0,
        "consolidations": detector["consolidations"],
        "changes": detector["changes"],
        "drift": total_drift(controller),
        "published_stability": sum(published) / len(published) if published else 1.0,
    }


def count(controller: "ProtectionController", param: Tensor) -> Counts:
    """The scalars of one parameter, by stability."""
    size = 0 if is_lazy(param) else plain(param.detach()).numel()
    if controller.state_of(param).get("evidence_weight", 0.0) == 0.0 or not size:
        return Counts(size, 0, size, float(size))
    s = controller.stability(param)
    protected, volatile = int((s > PROTECTED).sum()), int((s < VOLATILE).sum())
    return Counts(size, protected, volatile, float((1.0 - s).sum()), float(s.square().sum()))


def total_drift(controller: "ProtectionController") -> float:
    """How far all parameters together are from their anchors."""
    return drift(controller, (p for group in controller.groups for p in group["params"]))


def drift(controller: "ProtectionController", params: Iterable[Tensor]) -> float:
    """How far parameters together are from their anchors, relative to the anchors' size."""
    moved = size = 0.0
    for param in params:
        state = controller.state_of(param)
        held = "anchor" in state and state["evidence_weight"] > 0.0
        if held and (values := plain(param.detach())).numel():
            kept = anchor.read(local_state(state), values.dtype)
            weights, there = _sample(values), _sample(kept)
            # A sample of a large tensor stands for the whole of it.
            scale = values.numel() / weights.numel()
            moved += scale * float(torch.linalg.vector_norm((weights - there).float())) ** 2
            size += scale * float(torch.linalg.vector_norm(there.float())) ** 2
    return math.sqrt(moved / size) if math.isfinite(moved) and size > 0.0 else 0.0


def _sample(tensor: Tensor) -> Tensor:
    """At most ``2 * SAMPLE`` elements of a tensor, evenly spread; all of a small one."""
    stride = max(1, tensor.numel() // SAMPLE)
    return tensor.flatten()[::stride] if stride > 1 else tensor
