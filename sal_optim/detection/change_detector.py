"""The change detector that all of an optimizer's parameters share: is the data still what it was?

It sees one number a step, the norm of the gradient over all parameters, and keeps running
statistics of it. It knows nothing of parameters. Its state is a flat dict of floats, so that it
travels inside ``param_groups`` through ``state_dict``, ``deepcopy``, pickling and
``torch.load(weights_only=True)``.

The threshold is the published one of Self-Alignment Learning, ``tau = tau0 + alpha * std / mean``.
"""

import math
from typing import Any, NamedTuple

DetectorState = dict[str, float]


class Verdict(NamedTuple):
    """What one gradient norm says."""

    surprising: bool  # above the threshold: no importance should be gathered from this step
    change: bool  # this step confirms a change of the data


# Steps of a segment that its statistics pass over: a run, or what follows a change, begins loud.
SETTLE = 10
# Steps of a segment before its statistics can raise an alarm: the refractory period.
WARMUP = 30
# A change lasts, an outlying batch does not: surprising steps that count to this much make a
# change. A step counts 1 at the threshold and 1 more for each doubling beyond it, up to a bound
# that no single step can confirm with; an ordinary step takes 1 back. Until it is decided, steps
# are held to the norm that aroused suspicion, not to statistics that rise with them.
CONFIRMATIONS, LARGEST_COUNT = 4.5, 3.0


def new_detector() -> DetectorState:
    """State before the first step. All values are floats; counts are whole numbers."""
    return {
        "steps": 0.0,  # in this segment, the stretch since the last detected change
        "total": 0.0,  # steps of the whole run
        "since": 0.0,  # steps since the last consolidation
        "mean": 0.0,  # of the gradient norm, over this segment
        "variance": 0.0,
        "last": 0.0,  # the norm of the step before
        "unit": 0.0,  # the largest lasting norm since the first consolidation
        "held": 0.0,  # the norm that is surprising, while there is suspicion
        "suspicion": 0.0,  # what surprising steps count, less ordinary ones; never below 0
        "surprise": 1.0,
        "threshold": 1.0,
        "consolidations": 0.0,
        "firm": 0.0,  # 1 once a change was detected or a task's end declared
        "changes": 0.0,  # consolidations at a detected change
        "unheard": 0.0,  # the norm of a step that has not been judged yet; 0: there is none
    }


def observe_norm(
    state: DetectorState, norm: float, *, tau0: float, alpha: float, beta: float
) -> Verdict:
    """Take in the gradient norm of one step; say whether the data has changed.

    The surprise ``rho = norm / mean`` is compared with ``tau = tau0 + alpha * std / mean``. With
    ``tau0 = 1`` this is the test ``norm > mean + alpha * std``.

    Args:
        state: from :func:`new_detector`; changed in place.
        norm: finite and positive.
        tau0: threshold at no noise, at least 1.
        alpha: standard deviations by which a surprising norm exceeds the mean.
        beta: decay of the statistics; the last ``1 / (1 - beta)`` steps count.

    Returns:
        Whether the norm is surprising, and whether it confirms a change. The caller then
        consolidates and calls :func:`begin_segment`.
    """
    mean, ready = state["mean"], is_ready(state)
    tau = _threshold(state, tau0, alpha)
    if mean > 0.0:
        state["surprise"], state["threshold"] = norm / mean, tau
    state["held"] = held = _held(state, tau)
    surprising = ready and norm > held
    if surprising:
        state["suspicion"] += min(1.0 + math.log2(norm / held), LARGEST_COUNT)
    else:
        state["suspicion"] = max(state["suspicion"] - 1.0, 0.0)
    if state["suspicion"] >= CONFIRMATIONS:
        return Verdict(True, True)
    # A surprising norm enters at the threshold: an outlier can't blow up the statistics, and heavy
    # tails can't be trimmed out of them either.
    record_norm(state, min(norm, tau * mean) if ready else norm, beta=beta)
    return Verdict(surprising, False)


def limit(state: DetectorState, *, tau0: float, alpha: float) -> float:
    """The norm above which the next step is surprising; infinite before statistics may say so."""
    return _held(state, _threshold(state, tau0, alpha)) if is_ready(state) else math.inf


def is_ready(state: DetectorState) -> bool:
    """Whether statistics may raise an alarm."""
    return state["steps"] >= WARMUP and state["mean"] > 0.0


def record_norm(state: DetectorState, norm: float, *, beta: float) -> None:
    """Take a norm into the statistics of the segment, and raise no alarm."""
    state["steps"] += 1.0
    weight = max(1.0 / max(state["steps"] - SETTLE, 1.0), 1.0 - beta)
    delta = norm - state["mean"]
    state["mean"] += weight * delta
    state["variance"] = (1.0 - weight) * (state["variance"] + weight * delta * delta)


def begin_segment(state: DetectorState) -> None:
    """Forget the statistics of the segment that has ended; keep counts and what is reported."""
    fresh = new_detector()
    state.update({n: fresh[n] for n in ("steps", "mean", "variance", "held", "suspicion")})


def _held(state: dict[str, Any], tau: float) -> float:
    """The norm that aroused suspicion, or without any, ``tau`` times the mean."""
    held: float = state["held"] if state["suspicion"] > 0.0 else tau * state["mean"]
    return held


def _threshold(state: DetectorState, tau0: float, alpha: float) -> float:
    """tau, in units of the mean."""
    mean = state["mean"]
    return tau0 + alpha * (math.sqrt(state["variance"]) / mean if mean > 0.0 else 0.0)
