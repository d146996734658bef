"""What a consolidation does: what was gathered becomes importance, and the anchor moves by it.

When to consolidate is for ``clock.py`` and the change detector; the mathematics of one tensor is in
``importance/``.
"""

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from sal_optim.detection.change_detector import DetectorState
from sal_optim.importance import State
from sal_optim.protection import anchor
from sal_optim.protection.block import Group, kind_of_param, local_state
from sal_optim.protection.clock import shares
from sal_optim.sharding.dtensor import plain
from sal_optim.utils.autocasting import exact
from sal_optim.utils.rounding import dither

# What importance so far counts for in the anchor's mean. 0 recentres on the latest weights, as the
# online Laplace approximation does, and lets the oldest tasks erode; 1 is the minimum of one
# penalty a task, as in EWC, and drags the latest task back. Weights that were trained for long on
# one data have come to rest against the penalty, and are that minimum already: after these steps
# the memory falls with the square of their number.
ANCHOR_MEMORY, REST = 0.2, 1000.0

# Windows of the clock that a segment counts as for the anchor, at least. Late in a run windows are
# longer than a task, and what was just learned would be dragged back.
WINDOWS = 2.0


def anchor_memory(steps: float, window: float = 0.0) -> float:
    """What importance so far counts for in the anchor's mean, in [0, 1].

    Args:
        steps: of the segment so far.
        window: steps of a window of the clock where the segment ends; else 0.
    """
    steps = max(steps, 1.0)
    return ANCHOR_MEMORY * min(1.0, REST / steps) ** 2 / max(1.0, WINDOWS * window / steps)


def consolidate_param(
    param: Tensor,
    state: State,
    group: Group,
    usual: float,
    detector: DetectorState,
    memory: float,
    own: float = 0.0,
) -> float | None:
    """Merge what is pending of one parameter; return what it counts for, None if nothing is.

    Args:
        usual: gathered steps of a window of the clock.
        detector: with the count of consolidations, by which sums of low precision are rounded.
        memory: what importance so far counts for in the anchor's mean.
        own: the share of importance so far that is surely of the data that ends here.
    """
    gathered = state.get("pending_steps", 0.0)
    if gathered == 0.0:
        _draw_on(param, state, detector, memory, own)
        return None
    if group["pull"] > 0.0 and "anchor" not in state:
        state.update(anchor.begun(param, group))
    local, values = local_state(state), plain(param.detach())
    merged = dict(local)
    if "anchor" in local:
        known, values = _known_and_new(local, values)
        merged["anchor"] = values.clone() if state["evidence_weight"] == 0.0 else known
    new, old, weight = shares(
        gathered,
        usual,
        state["evidence_weight"],
        group["retention"],
        observed=detector["observed"] > 0.0,
    )
    kind = kind_of_param(param, group)
    at = dither(detector["consolidations"])
    kind.merge(merged, values, new=new / gathered, old=old, memory=memory, at=at)
    if "anchor" in local:
        found = _lerped(merged["anchor"], values, memory, own)
        anchor.write(local, found, at, param)
    state["evidence_weight"], state["pending_steps"] = weight, 0.0
    return new


def _known_and_new(local: State, values: Tensor) -> tuple[Tensor, Tensor]:
    """The anchor so far, and the weights that it may go to.

    Weights that are not finite never become an anchor; nothing is read from the device.
    """
    known = anchor.read(local, values.dtype).nan_to_num_(0.0, 0.0, 0.0)
    return known, torch.where(values.isfinite(), values, known)


def _lerped(anchor: Tensor, values: Tensor, memory: float, own: float) -> Tensor:
    """An anchor after importance of which a share is of the weights' own data.

    The kind of importance moves it by what it has just gained. What the same data brought before
    is known as a share of all, and not by direction.
    """
    if own == 0.0:
        return anchor
    return torch.lerp(anchor, values.to(anchor.dtype), own / (own + memory * (1.0 - own)))


def _draw_on(
    param: Tensor, state: State, detector: DetectorState, memory: float, own: float
) -> None:
    """Move the anchor of a segment that ends where the clock has just consolidated."""
    if own == 0.0 or "anchor" not in state:
        return
    local = local_state(state)
    known, values = _known_and_new(local, plain(param.detach()))
    found = _lerped(known, values, memory, own)
    anchor.write(local, found, dither(detector["consolidations"]), param)


@exact
def draw_back(param: Tensor, state: State, group: Group, strength: float) -> None:
    """Move a held parameter toward its anchor by ``k / (1 + k)``, k = ``strength`` * importance."""
    if "anchor" in state:
        kind = kind_of_param(param, group)
        values, local = plain(param.detach()), local_state(state)
        # A run that has diverged comes back: what is not finite goes to the anchor.
        local["anchor"] = anchor.read(local, values.dtype)
        values.copy_(torch.where(values.isfinite(), values, local["anchor"]))
        kind.draw(local, values, strength)


def importance_of(param: Tensor, state: State, group: Group, damping: float) -> Tensor:
    """Importance of each element of the real local parameter; 0 where there is none.

    With a damping it is importance as the step counts it.
    """
    if is_lazy(param):
        raise ValueError(
            "Invalid param value: an uninitialized parameter; run the model once, which gives it a "
            "shape"
        )
    real = plain(param.detach())
    if state.get("evidence_weight", 0.0) == 0.0:
        return torch.zeros_like(real)
    return kind_of_param(param, group).elements(local_state(state), real, damping)
