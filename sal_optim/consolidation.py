"""What a consolidation does to an optimizer: evidence is settled, the last update taken back.

When to consolidate is for ``threshold.py``; what it makes of one parameter's state is in
``state.py``.
"""

from typing import TYPE_CHECKING, Any

import torch

from sal_optim import stability
from sal_optim.evidence import GRANULARITIES
from sal_optim.pieces import Work, pieces
from sal_optim.plasticity import make_room
from sal_optim.state import absorb
from sal_optim.threshold import restart

if TYPE_CHECKING:
    from sal_optim.optimizer import SALOptimizer
    from sal_optim.protection import Protection

# The pending sums are halved with their step count when they reach this many steps: their mean
# stays, no sum outgrows the precision of float32, and a regime's distant past fades.
PENDING_HORIZON = 65536.0

# Evidence is gathered, and weights are pulled, on every fourth step: a regime is many steps long,
# and what these read and write in memory costs a quarter.
INTERVAL = 4

# The most that evidence is weighted by where every update has size 1: such updates do not shrink
# as a regime settles, so that a pull of any size, once firmer than they are, never lets go.
LARGEST_WEIGHT = 10.0


def count_pending(protection: "Protection") -> None:
    """One more step is gathered."""
    threshold = protection._threshold()
    if threshold["pending_steps"] >= PENDING_HORIZON:
        halve_pending(protection)
    threshold["pending_steps"] += 1.0


def halve_pending(protection: "Protection") -> None:
    """Halve the pending sums and the number of their steps."""
    protection._threshold()["pending_steps"] /= 2.0
    for group in protection._groups():
        for param in group["params"]:
            state = protection._state_of(param)
            for name in state:
                if name.startswith("pending") or name.endswith("_pending"):
                    state[name].mul_(0.5)


def consolidate(protection: "Protection", surprise: float) -> None:
    """Turn pending evidence into evidence, weighted by how large the gradient became.

    Evidence is in units of the gradient norm that the first regime had settled at, so that it is
    free of the scale of the loss, and that of one regime compares with that of another.

    Args:
        protection: whose state is changed.
        surprise: the gradient norm at the change over its mean before, at least 1.
    """
    threshold = protection._threshold()
    steps = threshold["pending_steps"]
    if steps == 0.0:
        return
    if threshold["unit"] == 0.0:
        threshold["unit"] = threshold["mean"]
    if protection._unit_update:
        weight = min(surprise, LARGEST_WEIGHT)
    else:
        weight = surprise * (threshold["mean"] / threshold["unit"] if threshold["unit"] else 1.0)
    for group in protection._groups():
        for param in group["params"]:
            state = protection._state_of(param)
            if "evidence_weight" not in state:
                continue
            absorb(param, state, group, weight / steps, threshold["consolidations"])
            state["evidence_weight"] = group["retention"] * state["evidence_weight"] + weight
            if group["protection"] > 0.0:
                for name in protection._momenta:
                    _zero(state.get(name))
    threshold["room"] = make_room(protection)
    restart(threshold)


def _zero(value: Any) -> None:
    """Set a tensor, or all tensors of a container, to zero."""
    if isinstance(value, torch.Tensor):
        value.zero_()
    elif isinstance(value, dict):
        for item in value.values():
            _zero(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _zero(item)


def take_back(optimizer: "SALOptimizer", group: dict[str, Any], items: list[Work]) -> None:
    """Undo the last update, the one by which a change that is now confirmed first did damage.

    The moments still hold it, so that no copy of the weights is needed.
    """
    if group["protection"] == 0.0:
        return
    moved = [item for item in items if item.step > 1.0 and not item.fresh]
    lr, granularity = float(group["lr"]), GRANULARITIES[group["granularity"]]
    for item in moved:
        item.protected = item.owner["evidence_weight"] > 0.0
    for piece in pieces(group, moved):
        steps = [item.step - 1.0 for item in piece.works]
        numbers = optimizer._numbers(group, -lr, steps)
        factors = [float(factor) for factor in numbers[-1]]
        for params, _, state in piece.parts():
            update = optimizer._last_update(optimizer._rule(group, False), state, numbers)
            if update is None:
                return
            divisors = list(update.denominators or [torch.ones_like(param) for param in params])
            if piece.works[0].protected:
                evidence = granularity.evidence(state, params)
                divisors = stability.resistance(
                    evidence, group["protection"], sizes=divisors, activity=None
                )
            torch._foreach_addcdiv_(params, update.numerators, divisors, factors)
