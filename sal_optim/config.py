"""Every setting of the protection, once: its default, its range and what it means."""

from typing import Any, Literal

from sal_optim.importance import IMPORTANCE
from sal_optim.utils import checks
from sal_optim.utils.warning import warn

Kind = Literal["kronecker", "diagonal", "factored"]
Clock = int | Literal["auto"] | None

# Defaults of the family, chosen on tuning seeds and validation data: docs/experiments.md.
PROTECTION, PULL = 10.0, 1.2
# A sign leaves no room beside a firm damping: less of it, and a stronger penalty.
LION_PROTECTION, LION_PULL = 3.0, 7.0
RETENTION, RANK = 0.95, 16
TAU0, ALPHA, STATS_BETA = 1.0, 4.0, 0.98
# Settings that hold for all groups together, since the detector and the clock are shared.
SHARED_BY_ALL = ("tau0", "alpha", "stats_beta", "consolidate_every")
# What `granularity` was called until 0.1.
OLD_KINDS = {"element": "diagonal", "tensor": "diagonal", "factored": "factored"}

# What the constructors of the family and of the layer document alike.
PROTECTION_ARGUMENTS = """
        protection: how firmly gradients are damped where earlier data depends on a weight, at least
            0; 0 is the base optimizer, bit for bit. Read in each step, from ``param_groups``.
        pull: strength of the penalty toward the anchor, relative to ``protection``; 0 keeps no
            anchor and saves its memory.
        importance: of a matrix: ``"kronecker"`` (factors of low rank), ``"diagonal"`` (a number an
            element), or ``"factored"`` (row and column means). Vectors are diagonal. A matrix
            that is sharded over processes has the importance of each of its parts.
        rank: directions that ``"kronecker"`` keeps of each side of a matrix, at least 1; the others
            count by their mean. Fixed once there is importance.
        consolidate_every: ``"auto"``: after as many steps as a tenth of the run so far, 60 at
            least; a number of steps; None: no clock, but detected changes and ``consolidate()``
            alone.
        retention: what a full consolidation keeps of the importance before it, in [0, 1].
        tau0: threshold on the surprise where the gradient norm has no noise, at least 1.
        alpha: standard deviations of the gradient norm that the threshold adds.
        stats_beta: decay of the gradient norm's statistics, in [0, 1).
        state_dtype: dtype of importance and anchor, such as ``torch.bfloat16``. Kronecker factors
            are kept in float32 at least. ``torch.int8``: anchors of matrices in eight bits, with a
            scale a row, and all else as with bfloat16. Default: float32 for importance (float64
            beside float64), the parameter's for the anchor.
        granularity: deprecated name of ``importance``; ``"element"`` is ``"diagonal"``."""

SHARED = (
    PROTECTION_ARGUMENTS
    + """
        plasticity: deprecated, without effect: importance is a mean, so that it does not add up.
        compile: deprecated, without effect: the update is torch's own.

    ``foreach``, ``maximize``, ``capturable``, ``differentiable`` and ``fused`` are those of
    torch.optim, where the class has them; ``differentiable`` must be False.

    Source of the protection: ``docs/mechanism.md``.
    """
)


def given(scope: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor, from its ``locals()``; deprecated ones are resolved."""
    found = {k: v for k, v in scope.items() if k not in ("self", "params", "__class__")}
    granularity = found.pop("granularity", None)
    if granularity is not None:
        found["importance"] = kind_of_granularity(granularity)
        _deprecated("granularity", f"use importance={found['importance']!r}")
    for name in ("plasticity", "unit_update", "momenta"):
        if found.pop(name, None) is not None:
            _deprecated(name, "it has no effect")
    if found.pop("compile", False):
        _deprecated("compile", "it has no effect: the update is torch's own; try fused=True")
    return found


def kind_of_granularity(granularity: Any) -> str:
    """The kind of importance that the old name stands for; raises ValueError for an unknown one."""
    allowed = [*OLD_KINDS, "kronecker"]
    name = checks.choice("granularity", granularity, allowed)
    return OLD_KINDS.get(name, name)


def _deprecated(name: str, instead: str) -> None:
    warn(f"{name} is deprecated and will be removed in 0.3.0; {instead}", FutureWarning)


def check_protection(group: dict[str, Any]) -> dict[str, Any]:
    """The settings of the protection, converted and checked; raises ValueError or TypeError."""
    every = group["consolidate_every"]
    if every is not None and every != "auto":
        allowed = "consolidate_every must be 'auto', None or a whole number >= 1"
        every = checks.whole("consolidate_every", every, low=1, allowed=allowed)
    return {
        "protection": checks.number("protection", group["protection"]),
        "pull": checks.number("pull", group["pull"]),
        "importance": checks.choice("importance", group["importance"], list(IMPORTANCE)),
        "rank": checks.whole("rank", group["rank"], low=1),
        "consolidate_every": every,
        "retention": checks.number("retention", group["retention"], high=1.0, high_open=False),
        "tau0": checks.number("tau0", group["tau0"], low=1.0),
        "alpha": checks.number("alpha", group["alpha"]),
        "stats_beta": checks.number("stats_beta", group["stats_beta"], high=1.0),
        "state_dtype": checks.state_dtype("state_dtype", group["state_dtype"]),
    }


def check_alike(group: dict[str, Any], first: dict[str, Any]) -> None:
    """Refuse a group that has its own of what holds for all groups; raises ValueError."""
    for name in SHARED_BY_ALL:
        if group[name] != first[name]:
            raise ValueError(
                f"Invalid {name} value: {group[name]!r} in one param group; the detector and the "
                f"clock are shared by all groups, so {name} must be {first[name]!r} as in the first"
            )
