"""Novelty: the share of the gradient that lies where earlier data said nothing.

Importance is an estimate of where the gradients of the data so far have their energy. Gradients of
the same data keep to it; those of other data leave it, whatever their length. So a share of the
gradient tells a change of the data where the norm does not: under clipping, in small batches,
where tasks blend into each other.
"""

from sal_optim.detection.change_detector import NOVELTY, DetectorState, begin_segment, observe
from sal_optim.detection.descent import breaks_through

# The threshold on it. The share has little noise, and no heavy tails.
SETTINGS = {"tau0": 1.25, "alpha": 2.0, "stats_beta": 0.95}
# The first consolidation is of a network that only begins to learn, and soon says little.
LEAST_CONSOLIDATIONS = 2.0


def listens(state: DetectorState) -> bool:
    """Whether the share is to be measured: until it has once told of a change."""
    return state["firm"] == 0.0 and state["consolidations"] >= LEAST_CONSOLIDATIONS


def hear(state: DetectorState, damped: float, norm: float) -> bool:
    """Judge one gradient; return whether it confirms that the data is not what it was.

    Args:
        damped: norm of the gradient whose parts are divided by 1 + their importance.
        norm: that of the gradient itself.
    """
    if not (damped > 0.0 and 0.0 < norm < float("inf")):
        return False
    state["novelty"] = share = (damped / norm) ** 2
    verdict = observe(state, share, SETTINGS, NOVELTY)
    calm, state["calm"] = state["calm"], 0.0
    if verdict.change:
        begin_segment(state, NOVELTY)
    # A network that learns something at last has other gradients, and a loss that falls.
    return verdict.change and not calm and not breaks_through(state)
