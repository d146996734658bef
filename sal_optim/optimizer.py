"""SALOptimizer: the one ``step()`` of the family, and what callers may ask of it.

A base optimizer (``adam.py``, ``sgd.py``, ``lion.py``) supplies its update direction; everything
else happens here: gathering parameters, moving them, checkpoints. Watching gradients and
consolidating is in ``protection.py``, the mathematics in ``stability.py``, ``evidence.py`` and
``threshold.py``; cutting the work into cache-sized pieces is in ``pieces.py``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sal_optim import checks, kronecker, native
from sal_optim.arguments import check_shared
from sal_optim.checkpoint import Checkpoint, check_ready
from sal_optim.compiled import advance_compiled
from sal_optim.consolidation import INTERVAL, take_back
from sal_optim.distributed import refuse_factored
from sal_optim.evidence import GRANULARITIES
from sal_optim.fitting import fitted
from sal_optim.fused import fits
from sal_optim.pieces import Piece, Work, pieces, work_on
from sal_optim.protection import FORESEEN, GroupedWork, Protection, Survey
from sal_optim.rounding import Number, dither, on
from sal_optim.state import State, prepare, pull_by_direction
from sal_optim.threshold import new_threshold
from sal_optim.update import Direction, Numbers, Plan, Rule, Tensors, Whole, advance

# The defaults of the family, found by the benchmark: docs/experiments.md.
PROTECTION, PULL, PLASTICITY = 0.1, 5.0, 0.4


class SALOptimizer(Protection, Optimizer):
    """Base of the family: any update direction, protected by evidence.

    A subclass names its state in ``_moments`` and returns its update from :meth:`_direction`;
    see ``CONTRIBUTING.md``.

    Args:
        params: parameters, named parameters or param groups, as in torch.optim.
        defaults: all settings of the subclass, the shared ones (``arguments.py``) included.
    """

    # State tensors of the base optimizer, shaped and typed like the parameter.
    _moments: ClassVar[tuple[str, ...]] = ()
    # Whether the update depends on the step count, so that moments are of no use without it.
    _bias_correction: ClassVar[bool] = False

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
    ) -> None:
        super().__init__(params, self._checked(defaults))
        self.param_groups[0]["threshold"] = new_threshold()

    # ---------------------------------------------------------------- what a base optimizer gives

    def _rule(self, group: dict[str, Any], fresh: bool) -> Rule:
        """The constants of the base optimizer's rule; ``fresh``: its moments are new."""
        raise NotImplementedError

    def _numbers(
        self, group: dict[str, Any], lr: float, steps: list[float]
    ) -> tuple[list[float], ...]:
        """What the rule needs that changes with the step, one number a tensor each."""
        return ([-lr] * len(steps),)

    def _gain(self, group: dict[str, Any]) -> float:
        """How far a lasting gradient moves a parameter in a step, relative to lr times itself."""
        return 1.0

    @staticmethod
    def _direction(
        rule: Rule, state: Tensors, grads: list[Tensor], numbers: tuple[Sequence[Number], ...]
    ) -> Direction:
        """Advance the moments in ``state`` by ``grads`` and return the base optimizer's update.

        A pure function of lists of tensors of one device and dtype, but for the moments that it
        advances in place. Must not write into ``grads``.
        """
        raise NotImplementedError

    @staticmethod
    def _last_update(
        rule: Rule, state: Tensors, numbers: tuple[Sequence[Number], ...]
    ) -> Direction | None:
        """The update of the step before, from the moments as it left them; None if they can't say.

        ``numbers`` are those of that step.
        """
        return None

    def _whole(self, group: dict[str, Any], lr: float, steps: list[Tensor]) -> Whole | None:
        """The base optimizer's step by a kernel of torch; None where there is none."""
        return None

    def _base(self, group: dict[str, Any], fresh: bool) -> native.Base | None:
        """The rule as ``native.cpp`` knows it; None where it does not."""
        return None

    def _decoupled(self, group: dict[str, Any]) -> bool:
        """Whether weight decay acts on the parameter, not through the gradient."""
        raise NotImplementedError

    def _check_base(self, group: dict[str, Any]) -> dict[str, Any]:
        """The base optimizer's own settings, converted; raises ValueError or TypeError."""
        return {}

    # ---------------------------------------------------------------- construction and checkpoints

    def _checked(self, group: dict[str, Any]) -> dict[str, Any]:
        """Settings converted and checked, whether they are defaults or one param group's."""
        for name, why in (
            ("capturable", "reads the gradient norm on the host"),
            ("differentiable", "updates in place"),
        ):
            if checks.flag(name, group[name]):
                raise ValueError(
                    f"Invalid {name} value: {group[name]}; {type(self).__name__} {why}, so "
                    f"{name} must be False"
                )
        foreach = group["foreach"]
        checked = {
            "lr": checks.learning_rate(group["lr"], foreach=foreach),
            "weight_decay": checks.number("weight_decay", group["weight_decay"]),
            **check_shared(group),
            "maximize": checks.flag("maximize", group["maximize"]),
            "foreach": None if foreach is None else checks.flag("foreach", foreach),
            "compile": checks.flag("compile", group["compile"]),
        }
        return {**group, **checked, **self._check_base(group)}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; its settings are checked as the constructor's are."""
        if isinstance(param_group, dict):
            settings = self._checked({**self.defaults, **param_group})
            param_group.update({name: settings[name] for name in param_group if name != "params"})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            refuse_factored(group["granularity"], group["params"])
        except ValueError:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._spectrum = None
        for group in self.param_groups:
            # A checkpoint of torch.optim, or of an older version, lacks newer keys.
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        self._threshold()

    def __getstate__(self) -> dict[str, Any]:
        self._fetch()
        state: dict[str, Any] = super().__getstate__()
        return state

    def state_dict(self) -> dict[str, Any]:
        """As in ``torch.optim``; the threshold's state is in the first param group."""
        self._fetch()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state made by ``state_dict`` of this class, or of its base in ``torch.optim``.

        Statistics keep the precision that they were saved in. Nothing is changed when an error is
        raised.

        Raises:
            KeyError: ``state_dict`` lacks ``"state"`` or ``"param_groups"``.
            ValueError: groups, or shapes of state tensors, do not fit this optimizer.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"state_dict is a {type(state_dict).__name__}; it must be a dict")
        with Checkpoint(self, functools.partial(fitted, self)).captured():
            super().load_state_dict(state_dict)
        self._drop()

    # ---------------------------------------------------------------- the step

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step, or in :meth:`observe`, gather evidence from one.

        Args:
            closure: reevaluates the model and returns the loss; called with gradients enabled.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Nothing may have changed when an error is raised, so all is checked before any of it.
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    check_ready(self, group, param)
        work = [(group, self._collect(group)) for group in self.param_groups]
        for group, items in work:
            base = self._base(group, items[0].fresh) if group["compile"] and items else None
            if base is not None:
                native.serve(items, base)
        moves = any(float(group["lr"]) != 0.0 for group in self.param_groups)
        # A kernel takes the norm as it updates, where that is not too late.
        ahead = self._looks_ahead(work)
        compiled = any(group["compile"] for group in self.param_groups)
        late = compiled and not ahead and self._foreseen()
        if ahead:
            survey = self._survey_ahead(work, moves=moves)
        else:
            survey = FORESEEN if late else self._survey(work, moves=moves)
        for group, items in work:
            for item in items:
                item.protected = group["protection"] > 0.0 and item.owner["evidence_weight"] > 0.0
            for piece in pieces(group, items):
                self._advance(piece, survey)
        if late:
            self._survey(work, moves=moves)
        return loss

    def _looks_ahead(self, work: GroupedWork) -> bool:
        """Whether to go on before the norm is known: on an accelerator, reading it is a wait."""
        if self._observing:
            return False
        return any(item.param.device.type != "cpu" for _, items in work for item in items)

    def _collect(self, group: dict[str, Any]) -> list[Work]:
        """The group's parameters that have a gradient, with their state, step counts advanced."""
        moments = self._moment_names(group)
        found = []
        for param in group["params"]:
            if param.grad is not None:
                state = self.state[param]
                found.append((param, state, prepare(param, state, group, moments)))
        if found and not self._observing:
            torch._foreach_add_([state["step"] for _, state, _ in found], 1.0)
        return [
            work_on(param, state, group, step=float(state["step"]), fresh=fresh)
            for param, state, fresh in found
        ]

    def _moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self._moments

    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.param_groups
        return groups

    def _state_of(self, param: Tensor) -> State:
        state: State = self.state.get(param, {})
        return state

    def _threshold_owner(self) -> dict[str, Any]:
        first: dict[str, Any] = self.param_groups[0]
        return first

    def _take_back(self, work: GroupedWork) -> None:
        for group, items in work:
            take_back(self, group, items)

    def _advance(self, piece: Piece, survey: Survey) -> None:
        """One step of one piece: gather evidence, move the parameters."""
        group, work = piece.group, piece.works[0]
        lr, decay, decoupled = float(group["lr"]), group["weight_decay"], self._decoupled(group)
        pull = group["protection"] * group["pull"] * self._gradient_unit(survey.size) * INTERVAL
        plan = Plan(
            direction=self._direction,
            granularity=GRANULARITIES[group["granularity"]],
            activity=self._activity,
            maximize=group["maximize"],
            decays=decoupled and decay > 0.0,
            gathers=survey.gathers,
            moves=not self._observing,
            protected=work.protected,
            pulled=survey.pulls and group["pull"] > 0.0 and work.sides is None,
        )
        base: tuple[list[float], ...] = ()
        if plan.moves:
            base = self._numbers(group, lr, [item.step for item in piece.works])
        factors = base[-1] if plan.decays and base else []
        numbers = Numbers(
            base=base,
            decay=lr * decay,
            decay_shares=[-lr * decay / factor if factor else 0.0 for factor in factors],
            coupled_decay=0.0 if decoupled else decay,
            protection=group["protection"],
            stiffness=lr * self._gain(group) * pull,
            scale=on(survey.scale, work.param.device),
            gathered=on(survey.gathered, work.param.device),
            rounding=dither(self._threshold()["pending_steps"]),
        )
        rule = self._rule(group, work.fresh)
        if plan.gathers:
            for item in piece.works:
                if item.sides is not None:
                    kronecker.gather(item.sides, item.grad, numbers.gathered, numbers.rounding)
        served = self._base(group, work.fresh) if piece.library is not None else None
        if served is not None:
            piece.library.advance(plan, served, piece.works, numbers)
        elif not (piece.compiled and advance_compiled(plan, rule, work, numbers)):
            self._advance_eagerly(piece, plan, rule, numbers)
        if plan.moves and plan.protected and survey.pulls and group["pull"] > 0.0:
            for place, item in enumerate(piece.works):
                if item.sides is not None:
                    size = self._update_size(rule, item, tuple([c[place]] for c in base))
                    pull_by_direction(item, numbers.stiffness / size)

    def _update_size(self, rule: Rule, item: Work, numbers: tuple[list[float], ...]) -> Number:
        """The root of the mean square of what the base optimizer divides an update by."""
        last = self._last_update(rule, {n: [t] for n, t in item.state.items()}, numbers)
        if last is None or last.denominators is None:
            return 1.0
        norm: Tensor = torch.linalg.vector_norm(last.denominators[0])
        mean: Tensor = norm / max(1.0, item.param.numel()) ** 0.5
        return mean

    def _advance_eagerly(self, piece: Piece, plan: Plan, rule: Rule, numbers: Numbers) -> None:
        """By torch's kernel or by the rule, in slices or lists."""
        group, whole = piece.group, None
        if plan.protected and plan.moves and fits(piece.works, self._moment_names(group)):
            lr = float(group["lr"])
            whole = self._whole(group, lr, [item.owner["step"] for item in piece.works])
        for params, grads, state in piece.parts():
            advance(plan, rule, params, grads, state, numbers, whole)
