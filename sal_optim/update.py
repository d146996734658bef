"""The update of a step, as one pure function over lists of tensors.

The same code runs eagerly on lists, eagerly on a slice of one tensor, and compiled. It holds no
state: the base optimizer's rule comes in as a function, the numbers of the step as floats or, when
compiled, as 0-dim tensors, so that no value of a schedule is baked in. Symbols are those of
``docs/mechanism.md``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sal_optim import stability
from sal_optim.evidence import Granularity, scaled_gradients
from sal_optim.utils.rounding import Number

Rule = dict[str, Any]
Tensors = dict[str, list[Tensor]]


@dataclass(slots=True)
class Direction:
    """A base optimizer's own update: ``param += factor * numerator / denominator``."""

    numerators: tuple[Tensor, ...] | list[Tensor]
    denominators: list[Tensor] | None  # None: 1
    factors: Sequence[Number]  # one a tensor; minus the step size


DirectionRule = Callable[[Rule, Tensors, list[Tensor], tuple[Sequence[Number], ...]], Direction]


@dataclass(slots=True)
class Gate:
    """What some updates are divided by, held as long as the evidence stays as it is."""

    _made_of: list[float] = field(default_factory=list)
    divisors: list[Tensor] = field(default_factory=list)  # none: they are to be made

    def look(self, state: Tensors, protection: Number) -> None:
        """Let go of divisors that were made of other evidence."""
        names = [name for name in state if name.startswith("evidence")]
        versions = [tensor._version for name in names for tensor in state[name]]
        made_of = [float(protection), *versions]
        if made_of != self._made_of:
            self._made_of, self.divisors = made_of, []


@dataclass(frozen=True, slots=True)
class Whole:
    """A base optimizer's own step, weight decay and all, by one kernel of torch."""

    # By how much it moves parameters with these gradients and this state; new tensors.
    moves: Callable[[list[Tensor], list[Tensor], Tensors], list[Tensor]]
    # What it divided the update by, written into tensors; each in units of a number, returned.
    sizes: Callable[[Tensors, list[Tensor]], list[float]]
    gate: Gate | None = None  # where the memory of divisors is given to it


@dataclass(slots=True)
class Numbers:
    """What changes from step to step."""

    base: tuple[Sequence[Number], ...]  # the base optimizer's, one a tensor each
    decay: Number  # lr * weight_decay
    decay_shares: Sequence[Number]  # the same in units of the update's factors, one a tensor
    coupled_decay: float  # weight decay that acts through the gradient
    protection: Number
    stiffness: Number  # of the pull, before evidence and preconditioner
    scale: Number  # 1 / rms of all gradients
    gathered: Number  # the same, by which evidence is gathered
    rounding: Number  # where sums in bfloat16 are rounded, see rounding.py


class Plan(NamedTuple):
    """What a step does; fixed for a compiled function."""

    direction: DirectionRule
    granularity: Granularity
    activity: bool  # in the gate
    maximize: bool
    decays: bool  # decoupled weight decay
    gathers: bool  # pending evidence
    moves: bool  # parameters
    protected: bool
    pulled: bool  # toward the anchor

    @property
    def hears(self) -> bool:
        """Whether such a step makes use of the norm of its gradients, which has to come first."""
        return self.gathers or self.pulled or self.activity


def advance(
    plan: Plan,
    rule: Rule,
    params: list[Tensor],
    grads: list[Tensor],
    state: Tensors,
    numbers: Numbers,
    whole: Whole | None = None,
) -> None:
    """Gather evidence from ``grads`` and move ``params``, in place.

    Args:
        plan: what is to be done.
        rule: constants of the base optimizer.
        params: real local tensors of one device and dtype.
        grads: their gradients; never written to.
        state: lists, by name, of the state tensors of these parameters.
        numbers: see :class:`Numbers`.
        whole: by which a protected step is taken; None: by the rule of the plan.
    """
    if plan.gathers:
        plan.granularity.gather(state, grads, numbers.gathered, numbers.rounding)
    if not plan.moves:
        return
    if plan.protected and whole is not None:
        _move_whole(plan, params, grads, state, numbers, whole)
        return
    raw = grads
    if plan.maximize:
        grads = list(torch._foreach_neg(grads))
    if numbers.coupled_decay:
        grads = list(torch._foreach_add(grads, params, alpha=numbers.coupled_decay))
    if plan.decays and not plan.protected:
        torch._foreach_mul_(params, 1 - numbers.decay)
    direction = plan.direction(rule, state, grads, numbers.base)
    if plan.protected:
        _move_protected(plan, params, state, direction, raw, numbers)
    elif direction.denominators is None:
        _add_scaled(params, direction.numerators, direction.factors)
    else:
        _add_quotient(params, direction.numerators, direction.denominators, direction.factors)


def _move_protected(
    plan: Plan,
    params: list[Tensor],
    state: Tensors,
    direction: Direction,
    grads: list[Tensor],
    numbers: Numbers,
) -> None:
    evidence = plan.granularity.evidence(state, params)
    weights: list[Tensor] = []
    if plan.pulled:
        # A spring in units of gradients, seen through the preconditioner like any gradient.
        weights = stability.pull_weights(evidence, numbers.stiffness, direction.denominators)
    sizes, numerators = direction.denominators, direction.numerators
    if plan.decays:
        numerators = _with_decay(numerators, params, sizes, numbers.decay_shares)
    activity = None
    if plan.activity:
        activity = scaled_gradients(grads, plan.granularity.dtype(state), numbers.scale)
    divisors = stability.resistance(evidence, numbers.protection, sizes=sizes, activity=activity)
    _add_quotient(params, numerators, divisors, direction.factors)
    if plan.pulled:
        stability.pull(params, state["anchor"], weights)


def _move_whole(
    plan: Plan,
    params: list[Tensor],
    grads: list[Tensor],
    state: Tensors,
    numbers: Numbers,
    whole: Whole,
) -> None:
    """The gate's share of the step that a kernel takes."""
    gate = Gate() if whole.gate is None else whole.gate
    if whole.gate is not None:
        gate.look(state, numbers.protection)
    evidence: list[Tensor] = []
    if plan.pulled or not gate.divisors:
        evidence = [
            omega if omega.dtype == param.dtype else omega.to(param.dtype)
            for omega, param in zip(plan.granularity.evidence(state, params), params, strict=True)
        ]
    moves = whole.moves(params, grads, state)
    if not gate.divisors:
        gate.divisors = stability.resistance(
            evidence, numbers.protection, sizes=None, activity=None
        )
    torch._foreach_addcdiv_(params, moves, gate.divisors)
    if plan.pulled:
        # Moves are done with, and divisors that nobody holds: a cache still has their memory.
        # Asking for as much again makes the allocator give pages back after each pull, and fetch
        # them for the next.
        sizes, units = moves, whole.sizes(state, moves)
        totals = [
            torch.add(
                size,
                omega,
                alpha=float(numbers.stiffness) * unit,
                out=room if whole.gate is None and room.shape == size.shape else None,
            )
            for size, omega, unit, room in zip(sizes, evidence, units, gate.divisors, strict=True)
        ]
        torch._foreach_div_(sizes, totals)
        stability.draw(params, state["anchor"], sizes)


def _with_decay(
    numerators: tuple[Tensor, ...] | list[Tensor],
    params: list[Tensor],
    sizes: list[Tensor] | None,
    shares: Sequence[Number],
) -> list[Tensor]:
    """Numerators, new, by which the parameters decay as well: both moves share one division."""
    if isinstance(shares[0], Tensor):
        decaying = params if sizes is None else torch._foreach_mul(params, sizes)
        moves = torch._foreach_mul(decaying, list(shares))  # type: ignore[arg-type]
        torch._foreach_add_(moves, numerators)
    elif sizes is None:  # without denominators, a list shares its step size
        moves = torch._foreach_add(numerators, params, alpha=shares[0])
    else:
        moves = torch._foreach_addcmul(numerators, params, sizes, shares)  # type: ignore[arg-type]
    return list(moves)


def _add_scaled(
    params: list[Tensor],
    numerators: tuple[Tensor, ...] | list[Tensor],
    factors: Sequence[Number],
) -> None:
    factor = factors[0]  # without denominators, a list shares its step size
    if isinstance(factor, Tensor):
        torch._foreach_add_(params, torch._foreach_mul(numerators, factor))
    else:
        torch._foreach_add_(params, numerators, alpha=factor)


def _add_quotient(
    params: list[Tensor],
    numerators: tuple[Tensor, ...] | list[Tensor],
    denominators: list[Tensor],
    factors: Sequence[Number],
) -> None:
    if isinstance(factors[0], Tensor):
        quotients = torch._foreach_div(numerators, denominators)
        torch._foreach_mul_(quotients, list(factors))  # type: ignore[arg-type]
        torch._foreach_add_(params, quotients)
    else:
        torch._foreach_addcdiv_(params, numerators, denominators, factors)  # type: ignore[arg-type]
