"""SALOptimizer: the one ``step()`` of the family, and what callers may ask of it.

A base optimizer (``adam.py``, ``sgd.py``, ``lion.py``) supplies its update direction; everything
else happens here: gathering parameters, the shared threshold, consolidation, gate and pull,
checkpoints. The mathematics is in ``stability.py``, ``evidence.py`` and ``threshold.py``; cutting
the work into cache-sized pieces is in ``pieces.py``.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sal_optim import checks, stability
from sal_optim.checkpoint import Checkpoint, check_ready
from sal_optim.compiled import advance_compiled
from sal_optim.consolidation import consolidate, count_pending, take_back
from sal_optim.diagnostics import Spectrum, diagnose
from sal_optim.distributed import aligned, refuse_factored, sharding
from sal_optim.evidence import GRANULARITIES
from sal_optim.norms import gradient_norm
from sal_optim.pieces import Piece, Work, pieces, plain
from sal_optim.rounding import Number, dither
from sal_optim.state import lists, prepare
from sal_optim.threshold import (
    ThresholdState,
    decline,
    new_threshold,
    observe_norm,
    record_norm,
)
from sal_optim.update import Direction, Numbers, Plan, Rule, Tensors, advance

# The defaults of the family, found by the benchmark: docs/experiments.md.
PROTECTION, PULL = 0.1, 10.0


class SALOptimizer(Optimizer):
    """Base of the family: any update direction, protected by evidence.

    A subclass names its state in ``_moments`` and returns its update from :meth:`_direction`;
    see ``CONTRIBUTING.md``.

    Args:
        params: parameters, named parameters or param groups, as in torch.optim.
        defaults: all settings of the subclass, the shared ones (``arguments.py``) included.
    """

    # State tensors of the base optimizer, shaped and typed like the parameter.
    _moments: ClassVar[tuple[str, ...]] = ()
    # Those that are set to zero when the regime changes: they point where the old data led.
    _momenta: ClassVar[tuple[str, ...]] = ()
    # q of the stability's activity, see stability.resistance.
    _activity_exponent: ClassVar[int] = 0
    # Whether an update has size 1 whatever the size of the gradient (sign-based optimizers).
    _unit_update: ClassVar[bool] = False
    # Whether the update depends on the step count, so that moments are of no use without it.
    _bias_correction: ClassVar[bool] = False

    # Never stored on an instance for longer than a call or a ``with`` block: pickling, deepcopy
    # and checkpoints keep ``state``, ``param_groups`` and ``defaults`` alone.
    _observing: bool = False
    _spectrum: Spectrum | None = None

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
            "protection": checks.number("protection", group["protection"]),
            "pull": checks.number("pull", group["pull"]),
            "tau0": checks.number("tau0", group["tau0"], low=1.0),
            "alpha": checks.number("alpha", group["alpha"]),
            "stats_beta": checks.number("stats_beta", group["stats_beta"], high=1.0),
            "consolidate_every": None
            if group["consolidate_every"] is None
            else checks.whole("consolidate_every", group["consolidate_every"], low=1),
            "retention": checks.number("retention", group["retention"], high=1.0, high_open=False),
            "granularity": checks.choice("granularity", group["granularity"], list(GRANULARITIES)),
            "state_dtype": checks.floating_dtype("state_dtype", group["state_dtype"]),
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
        with Checkpoint(self).captured():
            super().load_state_dict(state_dict)

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
        norm, size = gradient_norm([item for _, items in work for item in items])
        moves = any(float(group["lr"]) != 0.0 for group in self.param_groups)
        # A zero gradient, a non-finite one or a zero learning rate tells nothing about the data.
        informative = 0.0 < norm < math.inf and (moves or self._observing)
        gathers = informative and self._listen(norm, work)
        if gathers:
            count_pending(self)
        scale = math.sqrt(size) / norm if informative else 0.0
        for group, items in work:
            for item in items:
                item.protected = group["protection"] > 0.0 and item.owner["evidence_weight"] > 0.0
            for piece in pieces(group, items):
                self._advance(piece, gathers, scale, size)
        return loss

    def _collect(self, group: dict[str, Any]) -> list[Work]:
        """The group's parameters that have a gradient, with their state, step counts advanced."""
        items = []
        for param in group["params"]:
            if param.grad is None:
                continue
            state = self.state[param]
            fresh = prepare(param, state, group, self._moment_names(group))
            if not self._observing:
                state["step"] += 1
            items.append(
                Work(
                    param=plain(param),
                    grad=plain(aligned(param.grad, param)),
                    state={
                        name: plain(value)
                        for name, value in state.items()
                        if name != "step" and isinstance(value, Tensor)
                    },
                    step=float(state["step"]),
                    fresh=fresh,
                    owner=state,
                    sliceable=GRANULARITIES[group["granularity"]].sliceable,
                    total=param.numel() * (2 if param.is_complex() else 1),
                    sharding=sharding(param),
                )
            )
        return items

    def _moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self._moments

    def _threshold(self) -> ThresholdState:
        """The state that belongs to the optimizer as a whole; it lives in the first group."""
        state: ThresholdState = self.param_groups[0].setdefault("threshold", new_threshold())
        return state

    def _listen(self, norm: float, work: list[tuple[dict[str, Any], list[Work]]]) -> bool:
        """Pass the norm to the threshold, consolidate if it says so; is the step ordinary?"""
        first, threshold = self.param_groups[0], self._threshold()
        if self._observing:
            record_norm(threshold, norm, beta=first["stats_beta"])
            return True
        every = first["consolidate_every"]
        if every is not None and threshold["steps"] >= every:
            consolidate(self, decline(threshold))
        settings = {
            "tau0": first["tau0"],
            "alpha": first["alpha"],
            "beta": first["stats_beta"],
        }
        verdict = observe_norm(threshold, norm, **settings)
        if verdict.change is not None:
            for group, items in work:
                take_back(self, group, items)
            consolidate(self, verdict.change)
            # The first norm of the new regime opens its statistics.
            verdict = observe_norm(threshold, norm, **settings)
        return not verdict.surprising

    def _advance(self, piece: Piece, gathers: bool, scale: float, size: int) -> None:
        """One step of one piece: gather evidence, move the parameters."""
        group, work = piece.group, piece.works[0]
        lr, decay, decoupled = float(group["lr"]), group["weight_decay"], self._decoupled(group)
        unit = 1.0 if self._unit_update else self._threshold()["unit"] / math.sqrt(max(size, 1))
        plan = Plan(
            direction=self._direction,
            granularity=GRANULARITIES[group["granularity"]],
            exponent=self._activity_exponent,
            maximize=group["maximize"],
            decays=decoupled and decay > 0.0,
            gathers=gathers,
            moves=not self._observing,
            protected=work.protected,
            pulled=group["pull"] > 0.0,
        )
        numbers = Numbers(
            base=self._numbers(group, lr, [item.step for item in piece.works])
            if plan.moves
            else (),
            decay=lr * decay,
            coupled_decay=0.0 if decoupled else decay,
            protection=group["protection"],
            stiffness=lr * self._gain(group) * group["protection"] * group["pull"] * unit,
            scale=scale,
            rounding=dither(self._threshold()["pending_steps"]),
        )
        rule = self._rule(group, work.fresh)
        if group["compile"] and advance_compiled(plan, rule, work, numbers):
            return
        advance(plan, rule, piece.params, piece.grads, piece.state, numbers)

    # ---------------------------------------------------------------- what users call

    @torch.no_grad()
    def consolidate(self) -> None:
        """Declare that a regime ends here: what was learned is protected from now on.

        Harmless before any step, and when there is nothing new to consolidate.
        """
        consolidate(self, decline(self._threshold()))

    @contextlib.contextmanager
    def observe(self) -> Iterator[None]:
        """A context in which ``step()`` gathers evidence and changes no parameter.

        For a model that arrives trained: run a few batches of what it should keep, with backward
        and ``step()``, then call :meth:`consolidate`.
        """
        self._observing = True
        try:
            yield
        finally:
            self._observing = False

    def stability(self, param: Tensor) -> Tensor:
        """The stability s of each element of a parameter at mean activity, in [0, 1).

        Args:
            param: a parameter of this optimizer.

        Returns:
            A new tensor of the shape of ``param``; 0 is free to move, near 1 is held.
        """
        for group in self.param_groups:
            if any(param is candidate for candidate in group["params"]):
                state = self.state.get(param, {})
                real = plain(param.detach())
                if state.get("evidence_weight", 0.0) == 0.0:
                    return torch.zeros_like(real)
                local = lists(state)
                evidence = GRANULARITIES[group["granularity"]].evidence(local, [real])[0]
                s = stability.stability(evidence, group["protection"])
                return s.expand_as(real).clone()
        raise ValueError(
            f"Invalid param value: a tensor of shape {tuple(param.shape)}; param must be one of "
            "this optimizer's parameters"
        )

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """What SAL does, as finite floats for any logger; see :mod:`sal_optim.diagnostics`."""
        return diagnose(self)
