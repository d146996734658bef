"""The adaptive threshold that the whole optimizer shares: is the data still what it was?

It sees one number a step, the norm of the gradient over all parameters, and keeps running
statistics of it. It knows nothing of parameters. Its state is a flat dict of floats, so that it
travels inside ``param_groups`` through ``state_dict``, ``deepcopy``, pickling and
``torch.load(weights_only=True)``. The arithmetic takes 0-dim tensors as well, and reads none of
them: so it runs on an accelerator, inside a CUDA graph (``captured.py``).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sal_optim.utils.rounding import Number

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


class Judgement(NamedTuple):
    """What one gradient norm says, before it enters the statistics; booleans may be tensors."""

    surprising: Any
    confirmed: Any  # it confirms a change
    bounded: Number  # the norm as it should enter


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
    found = judge_norm(state, norm, tau0=tau0, alpha=alpha)
    if found.confirmed:
        return Verdict(True, state["suspected"] / state["suspicion"])
    record_norm(state, found.bounded, beta=beta)
    return Verdict(found.surprising, None)


def judge_norm(state: dict[str, Any], norm: Number, *, tau0: float, alpha: float) -> Judgement:
    """The first half of :func:`observe_norm`; its arguments."""
    mean, ready = state["mean"], is_ready(state)
    known, tau = mean > 0.0, _threshold(state, tau0, alpha)
    surprise = _pick(known, norm / _positive(mean), 1.0)
    state["surprise"] = _pick(known, surprise, state["surprise"])
    state["threshold"] = _pick(known, tau, state["threshold"])

    state["held"] = held = _held(state, tau)
    surprising = ready & (norm > held)
    doubt = state["suspicion"]
    count = _smaller(1.0 + _log2(_larger(norm / _positive(held), 1.0)), LARGEST_COUNT)
    calmer = _larger(doubt - 1.0, 0.0)
    state["suspicion"] = suspicion = _pick(surprising, doubt + count, calmer)
    state["suspected"] = _pick(
        surprising,
        state["suspected"] + count * surprise,
        state["suspected"] * (calmer / _positive(doubt)),
    )
    # A surprising norm enters at the threshold: an outlier can't blow up the statistics, and heavy
    # tails can't be trimmed out of them either.
    bounded = _pick(ready, _smaller(norm, tau * mean), norm)
    return Judgement(surprising, suspicion >= CONFIRMATIONS, bounded)


def limit(state: dict[str, Any], *, tau0: float, alpha: float) -> Any:
    """The norm above which the next step is surprising, once statistics may raise an alarm."""
    return _held(state, _threshold(state, tau0, alpha))


def _held(state: dict[str, Any], tau: Any) -> Any:
    """The norm that aroused suspicion, or without any, ``tau`` times the mean."""
    return _pick(state["suspicion"] > 0.0, state["held"], tau * state["mean"])


def _threshold(state: dict[str, Any], tau0: float, alpha: float) -> Any:
    """tau, in units of the mean."""
    mean = state["mean"]
    return tau0 + alpha * _pick(mean > 0.0, _root(state["variance"]) / _positive(mean), 0.0)


def is_ready(state: dict[str, Any]) -> Any:
    """Whether statistics may raise an alarm."""
    return (state["steps"] >= WARMUP) & (state["mean"] > 0.0)


def may_confirm(state: ThresholdState) -> bool:
    """Whether the next norm, if large enough, confirms a change."""
    return state["suspicion"] + LARGEST_COUNT >= CONFIRMATIONS


def record_norm(state: dict[str, Any], norm: Number, *, beta: float) -> None:
    """Take a norm into the statistics of the regime, and raise no alarm."""
    mean, initial = state["mean"], state["initial"]
    steps = state["steps"] = state["steps"] + 1.0
    state["initial"] = _pick(steps <= 5.0, _larger(initial, norm), initial)
    weight = _larger(1.0 / _larger(steps - SETTLE, 1.0), 1.0 - beta)
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


# The same of floats and of 0-dim tensors, of which none is read.


def _pick(condition: Any, yes: Any, no: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


def _larger(value: Any, other: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clamp_min(other)
    return value if value > other else other


def _smaller(value: Any, other: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clamp_max(other)
    return value if value < other else other


def _positive(value: Any) -> Any:
    """The value as a divisor; where it is 0, the quotient is not used."""
    return _pick(value > 0.0, value, 1.0)


def _root(value: Any) -> Any:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def _log2(value: Any) -> Any:
    return value.log2() if isinstance(value, Tensor) else math.log2(value)
