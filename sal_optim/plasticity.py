"""A bound on what is held, so that a network goes on learning however many regimes it has seen.

Every regime adds evidence. Added up for ever it would hold each weight in the end, and a long
stream could teach nothing new. So a consolidation scales all evidence down, where it must, until
the mean gate is at the group's ``plasticity``: old regimes fade as new ones come, and only as much
as these need. This file knows of evidence and its scale, not of when to consolidate.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sal_optim.distributed import Sharding, sharding
from sal_optim.evidence import GRANULARITIES
from sal_optim.pieces import plain
from sal_optim.state import State, lists
from sal_optim.utils.rounding import add, dither

if TYPE_CHECKING:
    from sal_optim.protection import Protection

# The scale is sought between 1 and 2**-DEPTH; each pass over the evidence halves what is left.
DEPTH, PASSES = 32.0, 20
# Elements that are looked at together: bounds the temporaries.
CHUNK = 1 << 20


@torch.no_grad()
def make_room(protection: "Protection") -> float:
    """Scale evidence down until the mean gate is at least the ``plasticity``; return the factor.

    On sharded parameters every process must call it: the mean is taken over all of them.
    """
    least: float = protection._groups()[0]["plasticity"]
    if least == 0.0 or mean_gate(protection, 1.0) >= least:
        return 1.0
    low, high = -DEPTH, 0.0
    for _ in range(PASSES):
        middle = (low + high) / 2.0
        if mean_gate(protection, 2.0**middle) < least:
            high = middle
        else:
            low = middle
    factor: float = 2.0**low
    count = protection._threshold()["consolidations"]
    for _, _, state in _held(protection):
        _scale(state, factor, dither(count + 0.5))
    return factor


def mean_gate(protection: "Protection", scale: float) -> float:
    """The mean of ``1 / (1 + c * scale * Omega)`` over all scalars with evidence; 1 of none."""
    sums: dict[Sharding | None, Tensor] = {}
    for param, group, state in _held(protection):
        real = plain(param.detach())
        evidence = GRANULARITIES[group["granularity"]].evidence(lists(state), [real])[0]
        # Exact, so that processes that add in another order agree; MPS has no float64.
        exact = torch.float32 if evidence.device.type == "mps" else torch.float64
        gates = [
            (1.0 / (1.0 + group["protection"] * scale * part.to(exact))).sum()
            for part in torch.split(evidence.reshape(-1), CHUNK)
        ]
        # One number for a whole tensor stands for all its elements.
        times = real.numel() / max(1, evidence.numel())
        total = sums.setdefault(sharding(param), torch.zeros(2, dtype=torch.float64))
        total[0] += torch.stack(gates).sum().cpu() * times
        total[1] += real.numel()
    gate = size = 0.0
    for where, total in sums.items():
        gathered = total if where is None else where.total(total)
        gate, size = gate + gathered[0].item(), size + gathered[1].item()
    return gate / size if size else 1.0


def _held(protection: "Protection") -> list[tuple[Tensor, dict[str, Any], State]]:
    """Parameters with evidence and protection, with their groups and states."""
    return [
        (param, group, state)
        for group in protection._groups()
        if group["protection"] > 0.0
        for param in group["params"]
        if (state := protection._state_of(param)).get("evidence_weight", 0.0) > 0.0
    ]


def _scale(state: State, factor: float, at: float) -> None:
    local = lists(state)
    for name in [name for name in local if name.startswith("evidence") or name.endswith("_values")]:
        evidence = local[name][0]
        add(evidence, torch.zeros_like(evidence), at, keep=factor)
    state["evidence_weight"] *= factor
