"""SALOptimizer: the one ``step()`` of the family, and what callers may ask of it.

A base optimizer (``adam.py``, ``sgd.py``, ``lion.py``) supplies its update direction; everything
else happens here: gathering parameters, moving them, checkpoints. Watching gradients and
consolidating is in ``protection.py``, the mathematics in ``stability.py``, ``evidence.py`` and
``threshold.py``; cutting the work into cache-sized pieces is in ``pieces.py``, and what of it steps
keep for the next one in ``kept.py``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sal_optim import kronecker, native
from sal_optim.arguments import check_shared
from sal_optim.captured import DeviceThreshold
from sal_optim.checkpoint import Checkpoint, check_ready
from sal_optim.compiled import advance_compiled
from sal_optim.consolidation import INTERVAL, take_back
from sal_optim.distributed import refuse_factored
from sal_optim.evidence import GRANULARITIES
from sal_optim.fitting import fitted
from sal_optim.fused import fits
from sal_optim.kept import Kept
from sal_optim.pieces import Piece, Work, work_on
from sal_optim.protection import FORESEEN, GroupedWork, Protection, Survey
from sal_optim.state import State, prepare, pull_by_direction
from sal_optim.threshold import new_threshold
from sal_optim.update import Direction, Numbers, Plan, Rule, Tensors, Whole, advance
from sal_optim.utils import checks
from sal_optim.utils.rounding import Number, dither, on

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
        self, group: dict[str, Any], lr: Number, steps: Sequence[Number]
    ) -> tuple[list[Number], ...]:
        """What the rule needs that changes with the step, one number a tensor each.

        In captured steps, ``steps`` holds one vector that counts for all of them.
        """
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

    def _whole(self, group: dict[str, Any], lr: float, piece: Piece) -> Whole | None:
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
        if checks.flag("differentiable", group["differentiable"]):
            raise ValueError(
                f"Invalid differentiable value: {group['differentiable']}; {type(self).__name__} "
                "updates in place, so differentiable must be False"
            )
        foreach, capturable = group["foreach"], checks.flag("capturable", group["capturable"])
        checked = {
            "lr": checks.learning_rate(group["lr"], foreach=bool(foreach) and not capturable),
            "capturable": capturable,
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
        group, first = self.param_groups[-1], self.param_groups[0]
        try:
            refuse_factored(group["granularity"], group["params"])
            if group["capturable"] != first["capturable"]:
                raise ValueError(
                    f"Invalid capturable value: {group['capturable']}; all param groups share a "
                    f"threshold, so capturable must be {first['capturable']} as in the first"
                )
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
        capturing = self._capturing()
        kept = self._still_kept()
        for mine in kept:
            for param in mine.group["params"]:
                if param.grad is not None and not mine.holds(param, self.state.get(param)):
                    check_ready(self, mine.group, param)
        if self.param_groups[0]["capturable"]:
            self._step_captured(kept, capturing)
        else:
            self._step_watched(kept)
        self._kept = kept
        return loss

    def _step_watched(self, kept: list[Kept]) -> None:
        """A step whose norm the host looks at, in it or in the next one."""
        work = [(mine.group, self._collect(mine)) for mine in kept]
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
        for mine, (group, items) in zip(kept, work, strict=True):
            for item in items:
                item.protected = group["protection"] > 0.0 and item.owner["evidence_weight"] > 0.0
            for piece in mine.pieces(items):
                self._advance(piece, survey)
        if late:
            self._survey(work, moves=moves)
        for mine, (_, items) in zip(kept, work, strict=True):
            mine.let_go(items)

    def _step_captured(self, kept: list[Kept], capturing: bool) -> None:
        """A step of which nothing is read, that a CUDA graph may hold."""
        if not capturing:
            self._settle()
        self._place_threshold(capturing)
        work = [(mine.group, self._collect(mine)) for mine in kept]
        moves: bool | Tensor = False
        for group in self.param_groups:
            moves = (self._lr(group) != 0.0) | moves
        survey = self._survey_captured(work, moves=moves)
        for mine, (group, items) in zip(kept, work, strict=True):
            for item in items:
                # A replay does the same before and after a first consolidation.
                item.protected = group["protection"] > 0.0
            for piece in mine.pieces(items):
                self._advance(piece, survey)
            mine.let_go(items)
        if not capturing and self._captured is not None:
            self._captured.send()

    def consolidate_if_due(self) -> None:
        """To be called after each replay of a CUDA graph that holds a step.

        A replay runs none of the code that consolidates. This does it where the steps before the
        last call have confirmed a change; it waits for these alone, and without ``capturable=True``
        does nothing. ``step()``, outside a graph, does it by itself.
        """
        if self._captured is not None:
            with torch.no_grad():
                self._settle()
                self._captured.send()

    def _place_threshold(self, capturing: bool) -> None:
        """Have the threshold's state where the parameters are.

        Raises:
            RuntimeError: in a capture, before a first step.
            ValueError: parameters are on several devices.
        """
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if capturing and any("evidence_weight" not in self.state.get(p, {}) for p in params):
            raise RuntimeError(
                f"{type(self).__name__}: state would be created inside a CUDA graph; take a step "
                "before the capture"
            )
        devices = {param.device for param in params}
        if self._captured is not None:
            devices.add(self._captured.device)
        if len(devices) > 1:
            raise ValueError(
                f"Invalid capturable value: True, with parameters on "
                f"{', '.join(sorted(map(str, devices)))}; with capturable they must be on one "
                "device"
            )
        if self._captured is None and devices:
            self._captured = DeviceThreshold(self._threshold(), devices.pop())

    def _capturing(self) -> bool:
        """Whether this step is recorded into a CUDA graph.

        Raises:
            RuntimeError: it is, and ``capturable`` is False.
        """
        first = self.param_groups[0]
        if not first["params"] or not first["params"][0].is_cuda:
            return False
        capturing = torch.cuda.is_current_stream_capturing()
        if capturing and not first["capturable"]:
            raise RuntimeError(
                f"Invalid capturable value: False; a step of {type(self).__name__} can be part of "
                "a CUDA graph with capturable=True"
            )
        return capturing

    def _lr(self, group: dict[str, Any]) -> Number:
        """The learning rate, as a tensor where it is one that a graph reads anew."""
        lr = group["lr"]
        where = None if self._captured is None else self._captured.device
        if isinstance(lr, Tensor) and lr.device == where:
            return lr.reshape(())
        return float(lr)

    def _looks_ahead(self, work: GroupedWork) -> bool:
        """Whether to go on before the norm is known: on an accelerator, reading it is a wait."""
        if self._observing:
            return False
        return any(not items[0].param.is_cpu for _, items in work if items)

    def _still_kept(self) -> list[Kept]:
        """What the step before has found out about each group, as far as that still holds.

        Taken off the instance: a step that fails leaves nothing of it.
        """
        kept: list[Kept] = vars(self).pop("_kept", [])
        if [id(mine.group) for mine in kept] != [id(group) for group in self.param_groups]:
            kept = [Kept(group) for group in self.param_groups]
        for mine in kept:
            mine.under(self._moment_names(mine.group))
        return kept

    def _collect(self, kept: Kept) -> list[Work]:
        """The group's parameters that have a gradient, with their state, step counts advanced."""
        group, works = kept.group, []
        moments = self._moment_names(group)
        for param in group["params"]:
            grad = param.grad
            if grad is not None:
                work = kept.work(param, grad)
                if work is None:
                    state = self.state[param]
                    fresh = prepare(param, state, group, moments)
                    work = work_on(param, state, group, step=0.0, fresh=fresh)
                    kept.keep(work)
                works.append(work)
        if works and not self._observing:
            torch._foreach_add_([work.owner["step"] for work in works], 1.0)
        for work in works:
            step = work.owner["step"]
            work.step = step if group["capturable"] else float(step)
        return works

    def _moved(self) -> GroupedWork:
        """As they are before a next step: step counts are that one's."""
        return [
            (
                group,
                [
                    work_on(param, state, group, step=float(state["step"]) + 1.0, fresh=False)
                    for param in group["params"]
                    if param.grad is not None and (state := self.state.get(param))
                ],
            )
            for group in self.param_groups
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
        lr, decay, decoupled = self._lr(group), group["weight_decay"], self._decoupled(group)
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
        sided = [(place, item) for place, item in enumerate(piece.works) if item.sides is not None]
        whole = self._kernel(piece, plan)
        base: tuple[list[Number], ...] = ()
        shares: list[Number] = []
        if plan.moves and (whole is None or piece.compiled or sided):
            base, shares = self._own_numbers(piece, lr, lr * decay if plan.decays else None)
        device = work.param.device
        pull = group["protection"] * group["pull"] * on(survey.unit, device) * INTERVAL
        numbers = Numbers(
            base=base,
            decay=lr * decay,
            decay_shares=shares,
            coupled_decay=0.0 if decoupled else decay,
            protection=group["protection"],
            stiffness=lr * self._gain(group) * pull,
            scale=on(survey.scale, device),
            gathered=on(survey.gathered, device),
            rounding=dither(self._live()["pending_steps"]),
        )
        rule = self._rule(group, work.fresh)
        if plan.gathers:
            for _, item in sided:
                assert item.sides is not None
                kronecker.gather(item.sides, item.grad, numbers.gathered, numbers.rounding)
        served = self._base(group, work.fresh) if piece.library is not None else None
        if served is not None:
            piece.library.advance(plan, served, piece.works, numbers)
        elif not (piece.compiled and advance_compiled(plan, rule, work, numbers)):
            if plan.gathers and not plan.granularity.sliceable:
                _, grads, state = piece.lists()
                plan.granularity.gather(state, grads, numbers.gathered, numbers.rounding)
                plan = plan._replace(gathers=False)
            for params, grads, state in piece.parts():
                advance(plan, rule, params, grads, state, numbers, whole)
        if plan.moves and plan.protected and survey.pulls and group["pull"] > 0.0:
            for place, item in sided:
                size = self._update_size(rule, item, tuple([c[place]] for c in base))
                pull_by_direction(item, numbers.stiffness / size)

    def _own_numbers(
        self, piece: Piece, lr: Number, decayed: Number | None
    ) -> tuple[tuple[list[Number], ...], list[Number]]:
        """The base optimizer's numbers of a step, and what decays in units of its factors.

        Lists of one number a tensor; of captured steps, computed on the device for all tensors.
        """
        group, count = piece.group, len(piece.works)
        steps = [item.step for item in piece.works]
        if not isinstance(steps[0], Tensor):
            base = self._numbers(group, lr, steps)
            if decayed is None:
                return base, []
            return base, [_share(decayed, factor) for factor in base[-1]]
        together = torch.stack(steps).to(self._live()["steps"].dtype)  # type: ignore[arg-type]
        columns = [column[0] for column in self._numbers(group, lr, [together])]
        base = tuple(_each(number, count) for number in columns)
        return base, [] if decayed is None else _each(_share(decayed, columns[-1]), count)

    def _update_size(self, rule: Rule, item: Work, numbers: tuple[list[Number], ...]) -> Number:
        """The root of the mean square of what the base optimizer divides an update by."""
        last = self._last_update(rule, {n: [t] for n, t in item.state.items()}, numbers)
        if last is None or last.denominators is None:
            return 1.0
        norm: Tensor = torch.linalg.vector_norm(last.denominators[0])
        mean: Tensor = norm / max(1.0, item.param.numel()) ** 0.5
        return mean

    def _kernel(self, piece: Piece, plan: Plan) -> Whole | None:
        """The kernel of torch by which a protected step is taken, if there is one that fits."""
        group = piece.group
        if not (plan.protected and plan.moves) or group["capturable"] or piece.library is not None:
            return None
        if not fits(piece, self._moment_names(group)):
            return None
        return self._whole(group, float(group["lr"]), piece)


def _share(decayed: Number, factor: Number) -> Number:
    """The decay in units of an update's factor; 0 where nothing moves."""
    if isinstance(factor, Tensor):
        return torch.where(factor == 0.0, 0.0, -decayed / factor)
    return -decayed / factor if factor else 0.0


def _each(number: Number, count: int) -> list[Number]:
    """One number for each of so many tensors, from a vector of as many or from one for all."""
    if isinstance(number, Tensor) and number.dim():
        return list(number.unbind())
    return [number] * count
