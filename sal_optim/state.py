"""The state of one parameter: what it starts as, and what a consolidation makes of it.

Functions of a parameter, its state and its group's settings. They know nothing of a step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sal_optim import kronecker, stability
from sal_optim.evidence import GRANULARITIES
from sal_optim.pieces import Work, plain
from sal_optim.update import Tensors
from sal_optim.utils.rounding import Number, add, dither, wide

State = dict[str, Any]

# What the evidence of earlier regimes counts for in the anchor's mean. 0 recentres on the latest
# weights, as the online Laplace approximation does, and lets the oldest regimes erode; 1 is the
# minimum of one penalty a regime, as in EWC, and drags the latest regime back.
ANCHOR_MEMORY = 0.1


def prepare(param: Tensor, state: State, group: dict[str, Any], moments: Sequence[str]) -> bool:
    """Create what state is missing, by key: the rest may come from another optimizer.

    Returns whether the base optimizer's moments are new.
    """
    # torch's own loading keeps a step that was saved as a number; a clone may be shared.
    if not isinstance(state.get("step"), Tensor):
        where = param.device if group["capturable"] else None
        count = float(state.get("step", 0.0))
        state["step"] = torch.tensor(count, dtype=torch.float32, device=where)
    fresh = False
    for name in moments:
        if state.get(name) is None:
            state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
            fresh = True
    prepare_evidence(param, state, group)
    return fresh


def prepare_evidence(param: Tensor, state: State, group: dict[str, Any]) -> None:
    """Create what evidence, and what anchor, is missing."""
    if "evidence_weight" not in state:
        state["evidence_weight"] = 0.0
        dtype = _dtype(param, group)
        real = torch.view_as_real(param) if param.is_complex() else param
        for name, shape in GRANULARITIES[group["granularity"]].shapes(real, group["rank"]).items():
            state[name] = (
                torch.zeros_like(real, dtype=dtype)
                if shape == tuple(real.shape)
                else real.new_zeros(shape, dtype=dtype)
            )
    if group["pull"] > 0.0 and "anchor" not in state:
        state["anchor"] = param.detach().clone(memory_format=torch.preserve_format)
        if group["state_dtype"] is not None and not param.is_complex():
            state["anchor"] = state["anchor"].to(_dtype(param, group))


def _dtype(param: Tensor, group: dict[str, Any]) -> torch.dtype:
    if group["state_dtype"] is not None:
        return getattr(torch, group["state_dtype"])  # type: ignore[no-any-return]
    return torch.float64 if param.dtype in (torch.float64, torch.complex128) else torch.float32


def absorb(param: Tensor, state: State, group: dict[str, Any], weight: float, count: float) -> None:
    """Add ``weight`` times the pending evidence of one parameter, and move its anchor.

    The anchor is a mean of the weights at all consolidations, weighted by their evidence.
    ``count``: of consolidations, by which low-precision evidence is rounded.
    """
    granularity, retention = GRANULARITIES[group["granularity"]], group["retention"]
    local = lists(state)
    values = plain(param)
    rotated = directions(state)
    if rotated is not None and values.numel():
        kronecker.settle(
            rotated,
            values,
            local["anchor"][0] if "anchor" in local else None,
            pending=local["pending_row"][0].mean() * values.numel(),
            known=evidence_sum(state, values),
            weight=weight,
            keep=retention,
            memory=ANCHOR_MEMORY,
        )
    elementwise = "anchor" in local and rotated is None
    if elementwise:
        before = granularity.evidence(local, [values])[0] * retention
    for name in [name for name in local if name.startswith("pending")]:
        pending, evidence = local[name][0], local[name.replace("pending", "evidence")][0]
        add(evidence, pending, dither(count), keep=retention, weight=weight)
        pending.zero_()
    if elementwise:
        # Evidence of low rank does not add exactly.
        gained = (granularity.evidence(local, [values])[0] - before).clamp_min_(0.0)
        total = (before * ANCHOR_MEMORY).add_(gained)
        share = gained.div_(total.clamp_min_(torch.finfo(total.dtype).tiny))
        anchor = local["anchor"][0]
        anchor.copy_(torch.lerp(anchor.to(share.dtype), values.to(share.dtype), share))


def directions(state: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The evidence of a matrix by direction, on both sides; None where there is none."""
    if "left_basis" not in state:
        return None
    return {n: plain(t) for n, t in state.items() if n.startswith(kronecker.SIDES)}


def evidence_sum(state: Mapping[str, Any], values: Tensor) -> Tensor:
    """The sum of the evidence of all elements, where it is kept in rows and columns."""
    return plain(state["evidence_row"]).mean() * values.numel()


def draw_back(param: Tensor, state: State, group: dict[str, Any], strength: float) -> None:
    """Move one parameter toward its anchor by ``k / (1 + k)``, k = ``strength`` times evidence."""
    if state.get("evidence_weight", 0.0) == 0.0 or "anchor" not in state or not param.numel():
        return
    values, anchor, sides = plain(param.detach()), plain(state["anchor"]), directions(state)
    if sides is not None:
        kronecker.pull(values, anchor, sides, evidence_sum(state, values), strength)
        return
    evidence = GRANULARITIES[group["granularity"]].evidence(lists(state), [values])
    weights = stability.pull_weights(
        [omega.to(wide(values.dtype)).expand_as(values) for omega in evidence], strength, None
    )
    for weight in weights:
        weight.nan_to_num_(nan=1.0)  # a spring beyond all numbers draws back entirely
    stability.pull([values], [anchor], weights)


def pull_by_direction(item: Work, stiffness: Number) -> None:
    """Pull one matrix toward its anchor by the evidence of its sides, in place."""
    if item.sides is not None and item.param.numel():
        total = evidence_sum(item.state, item.param)
        kronecker.pull(item.param, item.state["anchor"], item.sides, total, stiffness)


def lists(state: State) -> Tensors:
    """One parameter's state as lists of one local real tensor, by name."""
    return {name: [plain(value)] for name, value in state.items() if isinstance(value, Tensor)}
