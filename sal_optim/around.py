"""Around each step of an optimizer: what the layer takes in before it, and holds back after it.

The optimizer is a black box that calls torch's step hooks; where settings, state and checkpoints
are kept is for ``communication.py``.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sal_optim.checkpoint import check_ready
from sal_optim.distributed import refuse_factored
from sal_optim.kronecker import SIDES
from sal_optim.measured import gather, hold, measure_gradient, measure_update, prepare_norms
from sal_optim.pieces import Work, plain, work_on
from sal_optim.protection import Group, GroupedWork, Protection, Survey
from sal_optim.state import State, prepare_evidence
from sal_optim.utils.rounding import dither


class Around(Protection):
    """Protection that watches another optimizer's steps and corrects what they did."""

    optimizer: Optimizer
    # Evidence gathered before the optimizer's first step: many initialise their own state where
    # they find none, so nothing may be there before.
    _early: dict[Tensor, State]

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
                    gather(
                        item, group, float(survey.scale), dither(self._threshold()["pending_steps"])
                    )
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
                scale=float(survey.scale),
                unit=float(survey.unit),
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
                    if name.startswith(("pending", "evidence", "anchor", "gradient_norm", *SIDES))
                }
                items.append(work_on(param, own, group, step=0.0, fresh=False))
        return items


def _number(value: Any, default: float) -> float:
    return default if value is None else float(value)
