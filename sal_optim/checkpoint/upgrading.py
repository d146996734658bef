"""Checkpoints of 0.1 in today's form: other names of settings, and sums where means are kept now.

What is of today's form is returned as it is.
"""

from typing import Any

from torch import Tensor

from sal_optim.config import RETENTION, kind_of_granularity
from sal_optim.protection.block import NUMBERS, Group
from sal_optim.protection.clock import long_run
from sal_optim.sharding.dtensor import plain
from sal_optim.utils import checks

# The sum of weights that many windows of the clock come to, at the default retention.
LARGEST_WEIGHT = long_run(RETENTION)


def upgraded_group(saved: Group) -> Group:
    """A saved group with today's names of its settings."""
    if "importance" in saved or "granularity" not in saved:
        return saved
    found = {name: value for name, value in saved.items() if name != "granularity"}
    return {**found, "importance": kind_of_granularity(saved["granularity"])}


def upgraded_state(param: Tensor, state: dict[str, Any], detector: Any) -> dict[str, Any]:
    """A parameter's saved state as it is kept today; the saved detector counted pending steps."""
    if "evidence_weight" not in state or "pending_steps" in state:
        return state
    weight = checks.number("evidence_weight", state["evidence_weight"])
    found = dict(state)
    for name, value in state.items():
        if isinstance(value, Tensor) and (name.startswith("evidence") or name.endswith("_values")):
            # Row and column means multiply; rows are then divided by the mean of the columns.
            found[name] = value / weight if weight else value
    if "left_values" in found:
        sums = found.pop("pending_row", None)
        if isinstance(sums, Tensor):
            found["pending_total"] = sums.mean() * plain(param.detach()).numel()
        for name in ("pending_column", "evidence_row", "evidence_column"):
            found.pop(name, None)
    for name, shape in {"row": (-1, 1), "column": (1, -1)}.items():
        for key in (f"pending_{name}", f"evidence_{name}"):
            if isinstance(found.get(key), Tensor):
                found[key] = found[key].reshape(shape)
    for name in ("pending", "evidence"):
        value = found.get(name)
        if isinstance(value, Tensor) and value.dim() == 0:  # a number a tensor
            found[name] = value.expand(plain(param.detach()).shape).clone()
    for name in ("update_norm", "gradient_norm", "previous"):
        found.pop(name, None)
    counted = detector.get("pending_steps", 0.0) if isinstance(detector, dict) else 0.0
    # A sum of steps that were not counted is taken for one step's.
    steps = counted or float(any(name.endswith("pending") for name in found))
    # Its weight was a number of steps, where windows of the clock are counted now.
    found["evidence_weight"] = min(weight, LARGEST_WEIGHT)
    return {**dict.fromkeys(NUMBERS, 0.0), **found, "pending_steps": found.pop("steps", steps)}
