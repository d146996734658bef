"""The change detector that all of an optimizer's parameters share: is the data still what it was?

It sees one number at a time of each signal, such as the norm of the gradient over all parameters,
and keeps running statistics of it. It knows nothing of parameters. Its state is a flat dict of
floats, so that it travels inside ``param_groups`` through ``state_dict``, ``deepcopy``, pickling
and ``torch.load(weights_only=True)``.

The threshold is the published one of Self-Alignment Learning, ``tau = tau0 + alpha * std / mean``.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

DetectorState = dict[str, float]
Settings = Mapping[str, Any]  # of the protection: tau0, alpha and stats_beta


# A change lasts, an outlying batch does not: surprising steps that count to this much make a
# change. A step counts 1 at the threshold and 1 more for each doubling beyond it, up to a bound
# that no single step can confirm with; an ordinary step takes 1 back. Until it is decided, steps
# are held to the norm that aroused suspicion, not to statistics that rise with them.
CONFIRMATIONS, LARGEST_COUNT = 4.5, 3.0


class Signal(NamedTuple):
    """A number by which a change of the data is told, and how its statistics are kept."""

    prefix: str  # of its keys in the detector's state
    settle: float  # samples of a segment that statistics pass over
    warmup: float  # samples of a segment before statistics can raise an alarm
    largest: float = LARGEST_COUNT  # the most that one sample counts


# Of a gradient norm: a run, or what follows a change, begins loud; then a refractory period.
GRAD_NORM = Signal("", 10.0, 30.0)
# Of the mean of some gradient norms (``pooled.py``), in the same segments.
POOLED = Signal("pooled_", 0.0, 30.0)
# Of the novelty (``novelty.py``), which is a ratio and begins as it goes on.
NOVELTY = Signal("novelty_", 0.0, 8.0)
# Of the loss along the way from the anchor (``descent.py``), which raises no alarm.
SLOPE = Signal("slope_", 0.0, 8.0)
SIGNED = ("slope_mean",)  # all other numbers are 0 or more
# Of what a training loop tells (``told.py``): positive numbers, one a step, larger where the data
# is new. A change that is told puts protection at its whole strength, and takes three loud steps: a
# bad batch that is shown twice is no other data.
TOLD = {
    "loss": Signal("loss_", 10.0, 30.0, CONFIRMATIONS / 3.0),
    "norm": Signal("norm_", 10.0, 30.0, CONFIRMATIONS / 3.0),
}


class Verdict(NamedTuple):
    """What one number says."""

    surprising: bool  # above the threshold: no importance should be gathered from this step
    change: bool  # this number confirms a change of the data


# What is kept of each signal.
STATISTICS = (
    "steps",  # samples in this segment, the stretch since the last detected change
    "mean",
    "variance",
    "held",  # the number that is surprising, while there is suspicion
    "suspicion",  # what surprising samples count, less ordinary ones; never below 0
)


def new_detector() -> DetectorState:
    """State before the first step. All values are floats; counts are whole numbers."""
    return {
        # From the first step, told or not: a distributed checkpoint loads what is there alone.
        **{
            signal.prefix + name: 0.0
            for signal in (GRAD_NORM, NOVELTY, POOLED, SLOPE, *TOLD.values())
            for name in STATISTICS
        },
        "pool": 0.0,  # the sum of the last norms, and how many they are
        "pool_steps": 0.0,
        "novelty": 0.0,  # the last one
        "downhill": 0.0,  # steep slopes in a row
        "told_recent": 0.0,  # the mean of the last ten losses or so, none above the threshold
        "calm": 0.0,  # 1 where this step's loss was told, and losses are no larger than they were
        "told_sum": 0.0,  # of the losses that this window was told, and how many they are
        "told_steps": 0.0,
        "told_before": 0.0,  # the mean of those of the window before
        "heard": 0.0,  # scalars that had a gradient in the step before
        "total": 0.0,  # steps of the whole run
        "since": 0.0,  # steps since the last consolidation
        "last": 0.0,  # the gradient norm of the step before
        "leap": 0.0,  # the norm that the last detected change exceeded, while it may yet pass
        "unit": 0.0,  # the largest lasting norm since the first consolidation
        "surprise": 1.0,
        "threshold": 1.0,
        "consolidations": 0.0,
        "own": 0.0,  # the share of importance that is of this segment
        "begun": 0.0,  # consolidations with which protection does not rise
        "begun_told": 0.0,  # the same, by the loss that is told; 0 once it rises
        "firm": 0.0,  # 1 once gradients left what is known, or a task's end was declared
        "changes": 0.0,  # consolidations at a detected change
        "observed": 0.0,  # 1 where what is pending was observed, not trained on
    }


def observe(
    state: DetectorState, value: float, settings: Settings, signal: Signal = GRAD_NORM
) -> Verdict:
    """Take in one number of a signal; say whether the data has changed.

    The surprise ``rho = value / mean`` is compared with ``tau = tau0 + alpha * std / mean``. With
    ``tau0 = 1`` this is the test ``value > mean + alpha * std``.

    Args:
        state: from :func:`new_detector`; changed in place.
        value: finite and positive.
        settings: ``tau0``, the threshold at no noise; ``alpha``, the standard deviations by which a
            surprising number exceeds the mean; ``stats_beta``, the decay of the statistics.

    Returns:
        Whether the number is surprising, and whether it confirms a change. The caller then calls
        :func:`begin_segment`.
    """
    at = signal.prefix
    mean, ready = state[at + "mean"], is_ready(state, signal)
    tau = _threshold(state, settings, signal)
    if mean > 0.0 and signal is GRAD_NORM:
        state["surprise"], state["threshold"] = value / mean, tau
    state[at + "held"] = held = _held(state, tau, signal)
    surprising = ready and value > held
    if surprising:
        state[at + "suspicion"] += min(1.0 + math.log2(value / held), signal.largest)
    else:
        state[at + "suspicion"] = max(state[at + "suspicion"] - 1.0, 0.0)
    if state[at + "suspicion"] >= CONFIRMATIONS:
        return Verdict(True, True)
    # A surprising number enters at the threshold: an outlier can't blow up the statistics, and
    # heavy tails can't be trimmed out of them either.
    value = min(value, tau * mean) if ready else value
    record(state, value, beta=settings["stats_beta"], signal=signal)
    return Verdict(surprising, False)


def limit(state: DetectorState, settings: Settings, signal: Signal = GRAD_NORM) -> float:
    """What the next number must exceed to be surprising; infinite before statistics may say so."""
    if not is_ready(state, signal):
        return math.inf
    return _held(state, _threshold(state, settings, signal), signal)


def is_ready(state: DetectorState, signal: Signal = GRAD_NORM) -> bool:
    """Whether statistics may raise an alarm."""
    return state[signal.prefix + "steps"] >= signal.warmup and state[signal.prefix + "mean"] > 0.0


def is_suspicious(state: DetectorState) -> bool:
    """Whether any signal has been surprising, and nothing is confirmed yet."""
    return any(value > 0.0 for name, value in state.items() if name.endswith("suspicion"))


def record(state: DetectorState, value: float, *, beta: float, signal: Signal = GRAD_NORM) -> None:
    """Take a number into the statistics of the segment, and raise no alarm."""
    at = signal.prefix
    state[at + "steps"] += 1.0
    weight = max(1.0 / max(state[at + "steps"] - signal.settle, 1.0), 1.0 - beta)
    delta = value - state[at + "mean"]
    state[at + "mean"] += weight * delta
    state[at + "variance"] = (1.0 - weight) * (state[at + "variance"] + weight * delta * delta)


def begin_segment(state: DetectorState, signal: Signal = GRAD_NORM) -> None:
    """Forget the statistics of the segment that has ended; keep counts and what is reported."""
    state.update({signal.prefix + name: 0.0 for name in STATISTICS})
    if signal is GRAD_NORM:
        state["pool"] = state["pool_steps"] = state["own"] = 0.0
        begin_segment(state, POOLED)


def _held(state: DetectorState, tau: float, signal: Signal) -> float:
    """The number that aroused suspicion, or without any, ``tau`` times the mean."""
    at = signal.prefix
    return state[at + "held"] if state[at + "suspicion"] > 0.0 else tau * state[at + "mean"]


def _threshold(state: DetectorState, settings: Settings, signal: Signal) -> float:
    """tau, in units of the mean."""
    mean = state[signal.prefix + "mean"]
    std = math.sqrt(state[signal.prefix + "variance"])
    return float(settings["tau0"] + settings["alpha"] * (std / mean if mean > 0.0 else 0.0))
