"""CommunicationLayer: the protection of the family, around any ``torch.optim.Optimizer``.

The optimizer is a black box: the layer sees its gradients before a step and its weights before and
after, by torch's own step hooks. What the family reads from its own moments is measured
(``measured.py``), and the last update is taken back by a copy, kept while a change is suspected.
Statistics live in the optimizer's ``state``, the threshold in its first param group.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sal_optim import checks
from sal_optim.arguments import PROTECTION_ARGUMENTS, check_shared, given
from sal_optim.checkpoint import (
    Checkpoint,
    StateDict,
    check_ready,
    check_statistics,
    check_tensor,
    fitted_threshold,
    paired,
)
from sal_optim.distributed import refuse_factored
from sal_optim.measured import gather, hold, measure_gradient, measure_update, prepare_norms
from sal_optim.optimizer import PLASTICITY, PROTECTION, PULL
from sal_optim.pieces import Work, plain, work_on
from sal_optim.protection import Group, GroupedWork, Protection, Survey
from sal_optim.rounding import dither
from sal_optim.state import State, prepare_evidence


class CommunicationLayer(Protection):
    __doc__ = f"""Protection around any optimizer that has torch's step hooks.

    It hooks itself in on construction; nothing else changes: ``optimizer.step()``, schedulers,
    ``state_dict()`` and ``load_state_dict()`` are used as before. Until the first consolidation,
    and where there is no evidence, parameters move exactly as the optimizer moves them. A layer
    built around a new optimizer before ``load_state_dict`` resumes exactly; a copied or unpickled
    optimizer needs a layer of its own. A step needs memory for one copy of the weights, state
    beyond the optimizer's is 12 bytes a parameter by default.

    ``protection`` is read in each step from the optimizer's ``param_groups``, where it may differ
    by group; the other settings are the layer's.

    Args:
        optimizer: any ``torch.optim.Optimizer`` but those of this package, which are protected.{
        PROTECTION_ARGUMENTS
    }
        unit_update: every update has the size of the learning rate, whatever the gradient's, as in
            Lion and signSGD. Protection then follows the activity, as in ``SALLion``.
        momenta: names in the optimizer's state of running means of the gradient, which are set to
            zero when the data changes. An optimizer that keeps weights under one of these names,
            such as AccSGD, needs ``momenta=()``.

    Raises:
        TypeError: an argument is of a wrong kind, or the optimizer has no step hooks.
        ValueError: an argument is out of its range; the optimizer is protected already.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        protection: float = PROTECTION,
        *,
        pull: float = PULL,
        tau0: float = 1.0,
        alpha: float = 4.0,
        stats_beta: float = 0.98,
        consolidate_every: int | None = None,
        retention: float = 1.0,
        plasticity: float = PLASTICITY,
        granularity: str = "element",
        state_dtype: torch.dtype | str | None = None,
        unit_update: bool = False,
        momenta: Sequence[str] = ("exp_avg", "momentum_buffer"),
    ) -> None:
        self._settings = check_shared(given(locals()))
        self._unit_update = checks.flag("unit_update", unit_update)
        self._momenta = checks.names("momenta", momenta)
        self._activity = self._unit_update
        _check_optimizer(optimizer)
        self.optimizer = optimizer
        # Evidence gathered before the optimizer's first step: many initialise their own state
        # where they find none, so nothing may be there before.
        self._early: dict[Tensor, State] = {}
        self._forget_step()
        self._handles = [
            *Checkpoint(optimizer, self._fitted).attach(),
            optimizer.register_load_state_dict_post_hook(self._loaded),
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        """Take the layer off; the optimizer then steps as if it had never been there."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # ---------------------------------------------------------------- parameters and their state

    def _groups(self) -> list[Group]:
        groups = []
        for group in self.optimizer.param_groups:
            protection = group.setdefault("protection", self._settings["protection"])
            own = {"protection": checks.number("protection", protection)}
            groups.append({**self._settings, **own, "params": group["params"]})
        return groups

    def _state_of(self, param: Tensor) -> State:
        state: State | None = self.optimizer.state.get(param)
        return state if state else self._early.get(param, {})

    def _threshold_owner(self) -> Group:
        first: Group = self.optimizer.param_groups[0]
        return first

    def _own_state(self, param: Tensor, group: Group) -> State:
        state: State = self.optimizer.state.get(param) or self._early.setdefault(param, {})
        if "evidence_weight" not in state:
            refuse_factored(group["granularity"], [param])
        prepare_evidence(param, state, group)
        prepare_norms(param, state)
        return state

    def _collect(self, group: Group) -> list[Work]:
        items = []
        for param in group["params"]:
            if param.grad is not None:
                state = self._own_state(param, group)
                own = {
                    name: value
                    for name, value in state.items()
                    if name.startswith(("pending", "evidence", "anchor", "gradient_norm"))
                }
                items.append(work_on(param, own, group, step=0.0, fresh=False))
        return items

    # ---------------------------------------------------------------- before and after a step

    def _forget_step(self) -> None:
        self._survey_now: Survey | None = None
        self._surveyed: tuple[weakref.ref[Tensor], int] | None = None
        self._work: GroupedWork = []
        self._before_step: dict[Tensor, Tensor] = {}
        self._hidden: list[tuple[Tensor, Tensor]] = []

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._begin()
            return None
        self._copy_weights(every=True)
        begun = False

        def evaluated() -> Any:
            nonlocal begun
            loss = closure()
            if not begun:
                begun = True
                self._begin()
            return loss

        if len(args) > 1:
            return (args[0], evaluated, *args[2:]), kwargs
        return args, {**kwargs, "closure": evaluated}

    @torch.no_grad()
    def _begin(self) -> None:
        """Watch the gradients of this step, if that is not done, and keep the weights."""
        if self._survey_now is None or self._surveyed != self._mark():
            self._watch()
        if self._observing:
            # Optimizers pass over parameters that have no gradient.
            self._hidden = [
                (param, param.grad)
                for group in self.optimizer.param_groups
                for param in group["params"]
                if param.grad is not None
            ]
            for param, _ in self._hidden:
                param.grad = None
        else:
            self._copy_weights()

    @torch.no_grad()
    def _watch(self) -> None:
        """Pass the gradients to the threshold and gather evidence from them."""
        groups = self._groups()
        for group in groups:
            for param in group["params"]:
                check_ready(self, group, param)
        work = [(group, self._collect(group)) for group in groups]
        loss_scale = _number(getattr(self.optimizer, "grad_scale", None), 1.0)
        moves = any(_number(g.get("lr"), 1.0) != 0.0 for g in self.optimizer.param_groups)
        survey = self._survey(work, moves=moves, loss_scale=loss_scale)
        for group, items in work:
            for item in items:
                if survey.scale:
                    measure_gradient(item, group, loss_scale)
                if survey.gathers:
                    gather(item, group, survey.scale, dither(self._threshold()["pending_steps"]))
        self._work, self._survey_now, self._surveyed = work, survey, self._mark()

    def _mark(self) -> tuple[weakref.ref[Tensor], int] | None:
        """Tells the gradients that are there now from those of another backward pass."""
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    return weakref.ref(param.grad), param.grad._version
        return None

    @torch.no_grad()
    def _copy_weights(self, every: bool = False) -> None:
        for group in self._groups():
            for param in group["params"]:
                wanted = param.grad is not None or (every and param.requires_grad)
                if group["protection"] > 0.0 and wanted and param not in self._before_step:
                    self._before_step[param] = param.detach().clone()

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        if self._observing:
            for param, grad in self._hidden:
                param.grad = grad
            self._forget_step()
            return
        if self._survey_now is None:
            self._watch()  # a closure that the optimizer did not call
        for param, early in self._early.items():
            self.optimizer.state[param].update(early)
        self._early.clear()
        survey = self._survey_now
        if survey is not None and not _number(getattr(self.optimizer, "found_inf", None), 0.0):
            for group, items in self._work:
                for item in items:
                    before = self._before_step.get(item.whole)
                    if before is not None:
                        self._hold(group, item, before, survey)
        self._forget_step()

    def _hold(self, group: Group, item: Work, before: Tensor, survey: Survey) -> None:
        """Protect one parameter from the update that the optimizer made to it."""
        state, old = self._state_of(item.whole), plain(before)
        if survey.scale:
            measure_update(item.param, old, state, group)
        if survey.surprising:
            state["previous"] = before
        else:
            state.pop("previous", None)
        if state["evidence_weight"] > 0.0:
            hold(
                item,
                old,
                state,
                group,
                scale=survey.scale,
                unit=self._gradient_unit(survey.size),
                active=self._activity,
                unit_update=self._unit_update,
                pulls=survey.pulls,
            )

    def _take_back(self, work: GroupedWork) -> None:
        for group, items in work:
            for item in items:
                state = self._state_of(item.whole)
                if group["protection"] > 0.0 and "previous" in state:
                    # As data: Adahessian is still to differentiate a graph that holds the weights.
                    item.param.data.copy_(plain(state["previous"]))

    # ---------------------------------------------------------------- the published two lines

    def analyze(self, model: nn.Module) -> None:
        """Take in the gradients of this step; to be called between ``backward`` and ``step``.

        What the hooks do anyway, spelled out: with or without it, a step is the same. Without a
        ``step`` after it, evidence is gathered from a batch and nothing moves.

        Raises:
            TypeError: ``model`` is no module.
            ValueError: the optimizer has none of the parameters of ``model``.
        """
        checks.model(model, self.optimizer.param_groups)
        self._watch()

    def protect(self, model: nn.Module) -> None:
        """Protect the weights as they are now from the next ``step``; see :meth:`analyze`.

        Raises:
            TypeError: ``model`` is no module.
            ValueError: the optimizer has none of the parameters of ``model``.
        """
        checks.model(model, self.optimizer.param_groups)
        self._copy_weights()

    # ---------------------------------------------------------------- checkpoints

    def _fitted(self, state_dict: StateDict) -> StateDict:
        groups, saved = self._groups(), state_dict.get("param_groups", [])
        sizes = [len(group.get("params", ())) for group in saved]
        if sizes != [len(group["params"]) for group in groups]:
            return state_dict  # torch says what is wrong
        if "threshold" in saved[0]:
            where = "state_dict['param_groups'][0]['threshold']"
            first = {**saved[0], "threshold": fitted_threshold(where, saved[0]["threshold"])}
            state_dict = {**state_dict, "param_groups": [first, *saved[1:]]}
        owners = [group for group in groups for _ in group["params"]]
        for index, param, state in paired(self.optimizer, state_dict):
            if isinstance(state, dict):
                where = f"the state of parameter {index}"
                check_statistics(where, param, owners[index], dict(state))
                if "previous" in state:
                    label = f"{where}, 'previous',"
                    check_tensor(label, "previous", state["previous"], tuple(param.shape), param)
        return state_dict

    def _loaded(self, _: Any) -> None:
        self._early.clear()
        self._spectrum = None
        self._forget_step()


def layer_of(optimizer: Optimizer) -> CommunicationLayer | None:
    """The layer around an optimizer; None if there is none."""
    hooks: dict[int, Callable[..., Any]] = getattr(optimizer, "_optimizer_step_pre_hooks", {})
    for hook in hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, CommunicationLayer):
            return owner
    return None


def _check_optimizer(optimizer: Any) -> None:
    allowed = "optimizer must be a torch.optim.Optimizer"
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"Invalid optimizer value: a {type(optimizer).__name__}; {allowed}")
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"Invalid optimizer value: a {type(optimizer).__name__} without step hooks; {allowed} "
            "that calls Optimizer.__init__; where it wraps another one, put the layer around that"
        )
    if isinstance(optimizer, Protection) or layer_of(optimizer) is not None:
        raise ValueError(
            f"Invalid optimizer value: this {type(optimizer).__name__} is protected already; "
            f"{allowed} that is not"
        )


def _number(value: Any, default: float) -> float:
    return default if value is None else float(value)
