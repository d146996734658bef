"""The adaptive threshold that the whole optimizer shares: is the data still what it was?

It sees one number a step, the norm of the gradient over all parameters, and keeps running
statistics of it. It knows nothing of tensors or parameters. Its state is a flat dict of floats, so
that it travels inside ``param_groups`` through ``state_dict``, ``deepcopy``, pickling and
``torch.load(weights_only=True)``.
"""

import math
from typing import NamedTuple

ThresholdState = dict[str, float]


class Verdict(NamedTuple):
    """What one gradient norm says."""

    surprising: bool  # above the threshold: no evidence should be gathered from this step
    change: float | None  # the mean surprise of a change that this step confirms


# Steps of a regime that its statistics pass over: a run, or what follows a change, begins loud.
SETTLE = 10
# Steps of a regime before its statistics can raise an alarm: the refractory period.
WARMUP = 30
# A change of regime lasts, an outlying batch does not: surprising steps that count to this much
# make a change. A step counts 1 at the threshold and 1 more for each doubling beyond it, up to a
# bound that no single step can confirm with; an ordinary step takes 1 back. Until it is decided,
# steps are held to the norm that aroused suspicion, not to statistics that rise with them.
CONFIRMATIONS, LARGEST_COUNT = 4.5, 3.0


def new_threshold() -> ThresholdState:
    """State before the first step. All values are floats; counts are whole numbers."""
    return {
        "steps": 0.0,  # steps in this regime
        "mean": 0.0,  # of the gradient norm, over this regime
        "variance": 0.0,
        "initial": 0.0,  # the norm as the regime began
        "unit": 0.0,  # the mean norm as the first regime ended: evidence is in units of it
        "held": 0.0,  # the norm that is surprising, while there is suspicion
        "suspicion": 0.0,  # what surprising steps count, less ordinary ones; never below 0
        "suspected": 0.0,  # the sum of their surprises, by count
        "surprise": 1.0,
        "threshold": 1.0,
        "pending_steps": 0.0,  # steps that the pending evidence has gathered
        "consolidations": 0.0,
        "unheard": 0.0,  # the norm of a step that has not been judged yet; 0: there is none
        "room": 1.0,  # what the last consolidation scaled all evidence by, see plasticity.py
    }


def observe_norm(
    state: ThresholdState, norm: float, *, tau0: float, alpha: float, beta: float
) -> Verdict:
    """Take in the gradient norm of one step; say whether the regime has changed.

    The surprise ``rho = norm / mean`` is compared with ``tau = tau0 + alpha * std / mean``. With
    ``tau0 = 1`` this is the test ``norm > mean + alpha * std``.

    Args:
        state: from :func:`new_threshold`; changed in place.
        norm: finite and positive.
        tau0: threshold at no noise, at least 1.
        alpha: standard deviations by which a surprising norm exceeds the mean.
        beta: decay of the statistics; the last ``1 / (1 - beta)`` steps count.

    Returns:
        Whether the norm is surprising and, at the one step that confirms a change, the mean
        surprise since it began. The caller consolidates and then calls :func:`restart`.
    """
    mean, ready = state["mean"], is_ready(state)
    surprise, threshold = 1.0, _threshold(state, tau0, alpha)
    if mean > 0.0:
        surprise = norm / mean
        state["surprise"], state["threshold"] = surprise, threshold

    state["held"] = limit(state, tau0=tau0, alpha=alpha)
    surprising = ready and norm > state["held"]
    if surprising:
        count = min(1.0 + math.log2(norm / state["held"]), LARGEST_COUNT)
        state["suspicion"] += count
        state["suspected"] += count * surprise
        if state["suspicion"] >= CONFIRMATIONS:
            return Verdict(True, state["suspected"] / state["suspicion"])
    elif state["suspicion"] > 0.0:
        left = max(0.0, state["suspicion"] - 1.0)
        state["suspected"] *= left / state["suspicion"]
        state["suspicion"] = left

    # A surprising norm enters at the threshold: an outlier can't blow up the statistics, and heavy
    # tails can't be trimmed out of them either.
    record_norm(state, min(norm, threshold * mean) if ready else norm, beta=beta)
    return Verdict(surprising, None)


def limit(state: ThresholdState, *, tau0: float, alpha: float) -> float:
    """The norm above which the next step is surprising, once statistics may raise an alarm."""
    if state["suspicion"] > 0.0:
        return state["held"]
    return _threshold(state, tau0, alpha) * state["mean"]


def _threshold(state: ThresholdState, tau0: float, alpha: float) -> float:
    """tau, in units of the mean."""
    noise = math.sqrt(state["variance"]) / state["mean"] if state["mean"] > 0.0 else 0.0
    return tau0 + alpha * noise


def is_ready(state: ThresholdState) -> bool:
    """Whether statistics may raise an alarm."""
    return state["steps"] >= WARMUP and state["mean"] > 0.0


def may_confirm(state: ThresholdState) -> bool:
    """Whether the next norm, if large enough, confirms a change."""
    return state["suspicion"] + LARGEST_COUNT >= CONFIRMATIONS


def record_norm(state: ThresholdState, norm: float, *, beta: float) -> None:
    """Take a norm into the statistics of the regime, and raise no alarm."""
    mean = state["mean"]
    steps = state["steps"] = state["steps"] + 1.0
    if steps <= 5.0:
        state["initial"] = max(state["initial"], norm)
    weight = max(1.0 - beta, 1.0 / max(1.0, steps - SETTLE))
    delta = norm - mean
    state["mean"] = mean + weight * delta
    state["variance"] = (1.0 - weight) * (state["variance"] + weight * delta * delta)


def decline(state: ThresholdState) -> float:
    """How far the gradient norm has fallen in this regime: initial over present mean, at least 1.

    Stands in for the surprise where a consolidation is asked for and no change was seen.
    """
    return max(1.0, state["initial"] / state["mean"]) if state["mean"] > 0.0 else 1.0


def restart(state: ThresholdState) -> None:
    """Begin a regime: forget the statistics, count one consolidation, keep what is reported."""
    names = ("unit", "surprise", "threshold", "consolidations", "room")
    kept = {name: state[name] for name in names}
    state.update(new_threshold())
    state.update(kept)
    state["consolidations"] += 1.0
