"""When to consolidate without having noticed a change, and how much such a consolidation counts.

The automatic clock needs no tuning: an interval is a tenth of the run so far. So tasks of 300 steps
and of 100,000 have as many consolidations, and importance fades with age as a power of it. This
file knows numbers alone.
"""

from typing import Any

from sal_optim.detection.change_detector import DetectorState, is_suspicious

# The automatic interval: a share of the run so far, and the least number of steps.
SHARE, LEAST = 0.1, 60

# What a full window leaves of the penalty's unit beyond the present gradient: where the data stays
# the same the penalty then weakens with the gradients, and a change of the data raises it at once.
UNIT_RETENTION = 0.8

# Consolidations of the clock until protection has its whole strength, where nothing has yet said
# that the data changes: a network that only begins to learn is not to be held.
RAMP = 32

# Of a network that still learns: the descent, in standard deviations of the slope, and the share
# by which a loss that is told falls over a window. There protection no longer rises; beyond it it
# falls, down to none.
LEARNING = 1.0
FALLING = 0.05

# Importance is gathered, and the penalty applied, on one step in four: a segment is many steps
# long, and what these read and write in memory costs a quarter.
INTERVAL = 4
# How far a step moves each tensor is measured less often still: it is for reports.
MEASURED = 16
# Steps after which these are a step later than before.
SHIFT = 61


def is_turn(step: float, every: int) -> bool:
    """Whether a step is one in ``every``, and once in ``SHIFT`` steps one later.

    So a training loop that has a period, such as two data sets in turn, has each part heard.
    """
    return (step - (step + SHIFT // 2 - 1) // SHIFT) % every == 0.0


def window(state: DetectorState, every: Any) -> float:
    """Steps from one consolidation of the clock to the next; 0 where there is no clock.

    Args:
        every: a number of steps, ``"auto"``, or None for never.
    """
    if every == "auto":
        return max(LEAST, SHARE * state["total"])
    return 0.0 if every is None else float(every)


def is_due(state: DetectorState, every: Any) -> bool:
    """Whether the clock asks for a consolidation; arguments as of :func:`window`."""
    return every is not None and state["since"] >= window(state, every)


def strength(state: DetectorState) -> float:
    """The share of the protection that is in force, in [0, 1].

    It is whole once gradients were seen to leave what is known or a task's end was declared, and
    while a change is suspected, since the first steps on other data do the harm. Until then it
    rises with the clock, by the windows in which the network had learned.
    """
    if state["consolidations"] > 0.0 and (state["firm"] > 0.0 or is_suspicious(state)):
        return 1.0
    begun = max(state["begun"], state["begun_told"])
    return min(1.0, ((state["consolidations"] - begun) / RAMP) ** 2)


def hear_learning(state: DetectorState, descent: float | None, fall: float = 0.0) -> None:
    """Have protection that nothing has called for wait while the network still learns.

    Args:
        descent: at a consolidation of the clock, see :func:`sal_optim.detection.descent.descent`;
            None where that is not known yet, and protection waits.
        fall: share by which the loss that is told has fallen over the window that ends.
    """
    waits = 1.0 if descent is None else max(descent / LEARNING, 0.0)
    count = state["consolidations"]

    def begun(before: float, waits: float) -> float:
        most = count if waits > 1.0 else count - 1.0
        return min(max(before + waits, count - RAMP, 0.0), most)

    if fall > 0.0:
        before = max(state["begun"], state["begun_told"])
        state["begun_told"] = begun(before, max(waits, fall / FALLING))
    state["begun"] = begun(state["begun"], waits)


def hear_norm(state: DetectorState, norm: float) -> None:
    """Set the penalty's unit to what the gradient norm rises to for two steps at least.

    An outlier is none. Two are a detected change; where the very next norm is again below what
    they exceeded, they were a bad batch, and the unit is found anew from this norm on. Other data
    is learned more slowly than that. The change detector has judged the norm before.
    """
    if state["steps"] > 1.0:
        if norm <= state["leap"]:
            state["unit"] = 0.0
        state["leap"] = 0.0
    if state["consolidations"] > 0.0:
        state["unit"] = max(state["unit"], min(norm, state["last"]))
    state["last"] = norm


# The most windows that an observation counts as.
LONGEST = 100.0


def long_run(retention: float) -> float:
    """The sum of weights that many windows come to, which an observation has at once.

    It stands for all that the model learned before. Counting as one window, it would soon be
    outweighed by windows of data that is only half learned, and these would hold the model there.
    """
    return min(LONGEST, 1.0 / max(1.0 - retention, 1.0 / LONGEST))


def shares(
    gathered: float, usual: float, weight: float, retention: float, observed: bool = False
) -> tuple[float, float, float]:
    """How a consolidation of one parameter is weighted: a mean over windows of gathered steps.

    Args:
        gathered: steps that are pending.
        usual: steps of a window of the clock; 0 before there was one.
        weight: the sum of the weights of what is consolidated so far.
        retention: what a full window keeps of it.
        observed: whether what is pending was observed, see :func:`long_run`.

    Returns:
        The weight of the pending mean, that of the importance so far, and the new sum of weights.
        The first two sum to 1, so that importance stays in one unit however many windows there are.
    """
    part = min(1.0, gathered / usual) if usual > 0.0 else 1.0
    part = long_run(retention) if observed else part
    kept = weight * retention**part
    return part / (kept + part), kept / (kept + part), kept + part
