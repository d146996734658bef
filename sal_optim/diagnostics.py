"""What SAL does, as numbers for a logger: fractions of scalars, threshold, surprise, drift.

Reads the protection, never changes it, and speaks to no other process: on sharded parameters the
fractions and the drift are those of the local part.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from sal_optim.norms import squared_norms
from sal_optim.pieces import plain
from sal_optim.stability import PROTECTED, VOLATILE

if TYPE_CHECKING:
    from sal_optim.protection import Protection


# Elements of a tensor from which its drift is told: reading all would take a tenth of a step.
SAMPLE = 1 << 13


@dataclass(slots=True)
class Spectrum:
    """Fractions of scalars by stability. They change only when evidence or protection does."""

    key: tuple[float, ...]
    protected: float = 0.0
    volatile: float = 1.0
    mean_gate: float = 1.0
    innovation_cost: float = 0.0


class Counts(NamedTuple):
    """Scalars of one parameter by stability, the sum of their gates, and that of s²."""

    size: int
    protected: int
    volatile: int
    gate: float
    held: float = 0.0


def diagnose(protection: "Protection") -> dict[str, float]:
    """The flat dict that :meth:`Protection.diagnostics` returns.

    - ``protected``, ``neutral``, ``volatile``: fractions of scalars whose stability s, at mean
      activity, is above 2/3, between, and below 1/3; they sum to 1.
    - ``mean_gate``: the mean of ``1 - s``: the fraction of an update that the gate lets through.
    - ``innovation_cost``: the root of the mean of ``s**2``, which is norm(s·u) / norm(u), what the
      gate holds back of an update u over all of it, where the elements of u are of one size, as
      Lion's are and Adam's nearly are.
    - ``surprise``, ``threshold``: the last gradient norm over its mean, and what that was held to.
    - ``consolidations``: their number, those asked for included.
    - ``drift``: ``norm(w - anchor) / norm(anchor)``, how far the weights are from the anchor, the
      mean of the consolidated weights, relative to its size; 0 before the first consolidation and
      where no anchor is kept (``pull=0``). Of large tensors a sample is taken.
    """
    threshold = protection._threshold()
    spectrum = _spectrum(protection, threshold["consolidations"])
    return {
        "protected": spectrum.protected,
        "neutral": max(0.0, 1.0 - spectrum.protected - spectrum.volatile),
        "volatile": spectrum.volatile,
        "mean_gate": spectrum.mean_gate,
        "innovation_cost": spectrum.innovation_cost,
        "threshold": threshold["threshold"],
        "surprise": threshold["surprise"],
        "consolidations": threshold["consolidations"],
        "drift": total_drift(protection),
    }


def _spectrum(protection: "Protection", consolidations: float) -> Spectrum:
    groups = protection._groups()
    counts = [len(group["params"]) for group in groups]
    protections = [group["protection"] for group in groups]
    key = (consolidations, *counts, *protections)
    if protection._spectrum is None or protection._spectrum.key != key:
        protection._spectrum = _measure(protection, Spectrum(key))
    return protection._spectrum


def _measure(protection: "Protection", spectrum: Spectrum) -> Spectrum:
    found = [
        count(protection, param) for group in protection._groups() for param in group["params"]
    ]
    size = sum(counts.size for counts in found)
    if size:
        spectrum.protected = sum(counts.protected for counts in found) / size
        spectrum.volatile = sum(counts.volatile for counts in found) / size
        spectrum.mean_gate = sum(counts.gate for counts in found) / size
        spectrum.innovation_cost = math.sqrt(sum(counts.held for counts in found) / size)
    return spectrum


def count(protection: "Protection", param: Tensor) -> Counts:
    """The scalars of one parameter, by stability."""
    size = plain(param.detach()).numel()
    if protection._state_of(param).get("evidence_weight", 0.0) == 0.0:
        return Counts(size, 0, size, float(size))
    s = protection.stability(param)
    protected, volatile = int((s > PROTECTED).sum()), int((s < VOLATILE).sum())
    return Counts(size, protected, volatile, float((1.0 - s).sum()), float(s.square().sum()))


def total_drift(protection: "Protection") -> float:
    """How far all parameters together are from their anchors."""
    return drift(protection, (p for group in protection._groups() for p in group["params"]))


def drift(protection: "Protection", params: Iterable[Tensor]) -> float:
    """How far parameters together are from their anchors, relative to the anchors' size."""
    moved, anchors = [], []
    for param in params:
        state, values = protection._state_of(param), plain(param.detach())
        if "anchor" in state and state["evidence_weight"] > 0.0 and values.numel():
            weights, anchor = _sample(values), _sample(plain(state["anchor"]))
            # A sample of a large tensor stands for the whole of it.
            scale = math.sqrt(values.numel() / weights.numel())
            anchors.append(anchor * scale)
            moved.append((weights - anchor) * scale)
    if not moved:
        return 0.0
    numerator, denominator = squared_norms(moved).item(), squared_norms(anchors).item()
    if not (math.isfinite(numerator) and denominator > 0.0):
        return 0.0
    return math.sqrt(numerator / denominator)


def _sample(tensor: Tensor) -> Tensor:
    """At most ``2 * SAMPLE`` elements of a tensor, evenly spread; all of a small one."""
    stride = max(1, tensor.numel() // SAMPLE)
    return tensor.flatten()[::stride] if stride > 1 else tensor
