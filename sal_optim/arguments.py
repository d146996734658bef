"""The arguments that all of the family share: collecting, checking and documenting them."""

from typing import Any

from sal_optim.evidence import GRANULARITIES
from sal_optim.utils import checks

# What the constructors of the family and of the layer document alike.
PROTECTION_ARGUMENTS = """
        protection: how firmly what was learned is held, at least 0; 0 is the base optimizer. Read
            in each step, from ``param_groups``, like ``lr`` and ``weight_decay``.
        pull: how much firmer the pull toward the anchor is than the gate; 0 keeps no anchor and
            saves its memory.
        tau0: threshold on the surprise where the gradient norm has no noise, at least 1.
        alpha: standard deviations of the gradient norm that the threshold adds.
        stats_beta: decay of the gradient norm's statistics, in [0, 1).
        consolidate_every: also consolidate whenever a regime has lasted this many steps, for data
            that changes gradually.
        retention: what a consolidation keeps of the evidence before it, in [0, 1].
        plasticity: the mean gate that a consolidation leaves at least, in [0, 1): where evidence
            would hold more, all of it is scaled down. 0 lets it add up for ever.
        granularity: of the evidence: ``"element"``, ``"factored"`` (row and column means),
            ``"tensor"``, or ``"kronecker"``: by direction on both sides of a matrix, which holds
            most, with ``protection=0.01, pull=50``, and takes matrix products in a fourth of the
            steps. Sharded parameters (DTensor) need ``"element"``.
        rank: directions that ``"kronecker"`` keeps of each side of a matrix, at least 1; the others
            count by their mean. Fixed once there is evidence.
        state_dtype: floating dtype of evidence and anchor, such as ``torch.bfloat16``. Default:
            float32 for evidence (float64 beside float64), the parameter's for the anchor."""

SHARED = (
    PROTECTION_ARGUMENTS
    + """
        foreach: update lists of tensors at once. Default: lists on an accelerator, slices that
            fit a cache on a CPU.
        maximize: go up the gradient.
        capturable: let a CUDA graph hold the step: decisions are made on the device, and
            ``consolidate_if_due()`` is called after each replay. Numbers are built into a graph,
            but for a learning rate that is a tensor on the device.
        differentiable: as in torch.optim; not supported, must be False.
        compile: run the update as a compiled kernel: one call for all tensors on a CPU, built by
            its C++ compiler in about a second.

    Raises:
        TypeError: an argument is of a wrong kind.
        ValueError: an argument is out of its range; the message names it, its value and the range.

    Source of the protection: ``docs/mechanism.md``.
    """
)


def given(scope: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor, from its ``locals()``."""
    return {k: v for k, v in scope.items() if k not in ("self", "params", "__class__")}


def check_shared(group: dict[str, Any]) -> dict[str, Any]:
    """The settings of the protection, converted and checked; raises ValueError or TypeError."""
    every = group["consolidate_every"]
    return {
        "protection": checks.number("protection", group["protection"]),
        "pull": checks.number("pull", group["pull"]),
        "tau0": checks.number("tau0", group["tau0"], low=1.0),
        "alpha": checks.number("alpha", group["alpha"]),
        "stats_beta": checks.number("stats_beta", group["stats_beta"], high=1.0),
        "consolidate_every": None
        if every is None
        else checks.whole("consolidate_every", every, low=1),
        "retention": checks.number("retention", group["retention"], high=1.0, high_open=False),
        "plasticity": checks.number("plasticity", group["plasticity"], high=1.0),
        "granularity": checks.choice("granularity", group["granularity"], list(GRANULARITIES)),
        "rank": checks.whole("rank", group["rank"], low=1),
        "state_dtype": checks.floating_dtype("state_dtype", group["state_dtype"]),
    }
