"""SALOptimizer: one ``step()`` for the family.

A subclass names an optimizer of ``torch.optim`` beside this class and takes that one's update as it
is: fused, foreach or for-loop, complex, with a tensor as learning rate. What is protected is the
gradient that the update is given. See ``CONTRIBUTING.md`` for how a base optimizer is added.
"""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from sal_optim.checkpoint.loading import checking
from sal_optim.checkpoint.validation import fitted, is_own
from sal_optim.config import SHARED_BY_ALL, check_alike, check_protection
from sal_optim.protection import buffers
from sal_optim.protection.base import Protection
from sal_optim.protection.controller import ProtectionController
from sal_optim.protection.fused import MOMENTS, fused, loss_scale_of, refuse_capture
from sal_optim.protection.holder import own_detector
from sal_optim.utils import checks

# Settings of the protection, which the base optimizer's constructor does not know.
PROTECTION_SETTINGS = (
    "protection", "pull", "importance", "rank", "consolidate_every", "retention", "tau0", "alpha",
    "stats_beta", "state_dtype",
)  # fmt: skip


class SALOptimizer(Protection, Optimizer):
    """Base of the family, to be named before an optimizer of ``torch.optim``.

    Args:
        params: parameters, named parameters or param groups, as in torch.optim.
        settings: all arguments of the subclass's constructor, by name.
    """

    # The base optimizer's state tensors, without which it can't go on from a checkpoint.
    _moments: tuple[str, ...] = ()
    # Its state that is of another shape than the parameter.
    _numbers: tuple[str, ...] = ("step",)

    def __init__(self, params: Any, settings: dict[str, Any]) -> None:
        protection = check_protection({n: settings[n] for n in PROTECTION_SETTINGS})
        base = {n: v for n, v in settings.items() if n not in PROTECTION_SETTINGS}
        self._protection_defaults = protection
        super().__init__(params, **self._checked_base(base))
        self.defaults.update(protection)

    def _moments_of(self, param: Tensor, group: dict[str, Any]) -> tuple[str, ...]:
        """Those of one parameter, where a base does not treat all alike."""
        return self._moments

    # ---------------------------------------------------------------- settings

    def _checked_base(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The base optimizer's settings, converted where text or a list stands for a number."""
        checked = dict(settings)
        if checks.flag("differentiable", checked.get("differentiable", False)):
            raise ValueError(
                f"Invalid differentiable value: True; {type(self).__name__} updates in place, so "
                "differentiable must be False"
            )
        if "lr" in checked:
            checked["lr"] = checks.learning_rate(checked["lr"])
        if "betas" in checked:
            checked["betas"] = checks.betas(checked["betas"])
        for name in ("eps", "weight_decay", "momentum"):
            if name in checked:
                label = "epsilon value" if name == "eps" else None
                checked[name] = checks.number(name, checked[name], label=label)
        if "dampening" in checked:
            checked["dampening"] = checks.number(
                "dampening", checked["dampening"], high=1.0, high_open=False
            )
        flags = ("amsgrad", "nesterov", "maximize", "capturable", "decoupled_weight_decay")
        for name in flags:
            if name in checked:
                checked[name] = checks.flag(name, checked[name])
        for name in ("foreach", "fused"):
            if checked.get(name) is not None:
                checked[name] = checks.flag(name, checked[name])
        return checked

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; its settings are checked as the constructor's are."""
        if isinstance(param_group, dict):
            defaults = {**self._protection_defaults, **self.defaults}
            if self.param_groups:
                defaults |= {name: self.param_groups[0][name] for name in SHARED_BY_ALL}
            own_detector(param_group)
            known = {n: v for n, v in param_group.items() if n in defaults}
            merged = {**defaults, **known}
            checked = {**self._checked_base(merged), **check_protection(merged)}
            for name in (*known, *PROTECTION_SETTINGS):
                param_group[name] = checked.get(name, merged[name])
            if self.param_groups:
                check_alike(param_group, self.param_groups[0])
        super().add_param_group(param_group)

    # ---------------------------------------------------------------- checkpoints

    @property
    def controller(self) -> ProtectionController:  # type: ignore[override]
        """Made anew where it is missing: a copy has state, groups and defaults alone."""
        found: ProtectionController | None = vars(self).get("_own_controller")
        if found is None:
            found = self._own_controller = ProtectionController(self)
            # State of the protection alone would keep the base optimizer from making its own.
            for param, state in list(self.state.items()):
                if self._moments and state and all(is_own(name) for name in state):
                    found.early[param] = self.state.pop(param)
        return found

    def _of_others(self, state: dict[str, Any]) -> dict[str, Any]:
        """What is not the base's: the protection's, and what a subclass or a wrapper keeps."""
        base = {*self._moments, *MOMENTS, *self._numbers}
        return {name: value for name, value in state.items() if name not in base}

    def __repr__(self) -> str:
        """As in ``torch.optim``, without what the groups hold that is no setting."""
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {index}")
            shown = sorted(group.keys() - {"params", "threshold", buffers.KEY})
            lines += [f"    {name}: {group[name]}" for name in shown]
        return "\n".join([*lines, ")"])

    def __getstate__(self) -> dict[str, Any]:
        controller = self.controller
        controller.settle()  # what is underway arrives
        state: dict[str, Any] = super().__getstate__()
        early = {param: {**own, **self.state.get(param, {})}
                 for param, own in controller.early.items() if own}  # fmt: skip
        state["state"] = {**state["state"], **early}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch.optim expects its own state wherever there is any.
        early = {
            param: own
            for param, own in state["state"].items()
            if self._moments and len(self._of_others(own)) == len(own)
        }
        others = {param: own for param, own in state["state"].items() if param not in early}
        super().__setstate__({**state, "state": others})
        self.state = defaultdict(dict, {**self.state, **early})
        vars(self).pop("_own_controller", None)
        self._protection_defaults = {n: self.defaults[n] for n in PROTECTION_SETTINGS}
        for group in self.param_groups:
            # A checkpoint of torch.optim, or of an older version, lacks newer keys.
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def state_dict(self) -> dict[str, Any]:
        """As in ``torch.optim``; the change detector's state is in the param groups."""
        controller = self.controller
        controller.settle()
        _ = controller.detector
        handle = self.register_state_dict_post_hook(controller.complete, prepend=True)
        try:
            found: dict[str, Any] = super().state_dict()
        finally:
            handle.remove()
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state made by ``state_dict`` of this class, or of its base in ``torch.optim``.

        Statistics keep the precision that they were saved in. Nothing is changed when an error is
        raised.

        Raises:
            KeyError: a part of ``state_dict`` is missing.
            ValueError: groups, or shapes of state tensors, do not fit this optimizer.
            RuntimeError: it is called inside of :meth:`observe`.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"state_dict is a {type(state_dict).__name__}; it must be a dict")
        if self.controller.observing:
            raise RuntimeError("load_state_dict() inside of observe(): load before, or after it")
        handles = checking(self, functools.partial(fitted, self))
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()
        vars(self).pop("_own_controller", None)

    # ---------------------------------------------------------------- the step

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    # Its decisions are the host's: torch.compile runs it as it is.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step, or in :meth:`observe`, gather importance from one.

        Args:
            closure: reevaluates the model and returns the loss; called with gradients enabled.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        refuse_capture(self)
        controller = self.controller  # made now if it is missing, which sets state aside
        self._check_groups()
        blocks = controller.collect()
        rate = max((float(group["lr"]) for group in self.param_groups), default=0.0)
        decision = controller.decide(blocks, rate=rate, loss_scale=loss_scale_of(self))
        controller.gather(decision)
        if controller.observing:
            return loss
        controller.protect(decision)
        try:
            with fused(self) if decision.replaced else contextlib.nullcontext():
                self._base_step()
        finally:
            controller.finish(decision)
        return loss

    def _check_groups(self) -> None:
        """Refuse what was changed since and does not fit; begin anew where moments were deleted."""
        if self._settings() != self.controller.checked:
            for group in self.param_groups:
                for name, value in self._protection_defaults.items():
                    group.setdefault(name, value)  # one that was appended by hand
                group.update(check_protection(group))
                check_alike(group, self.param_groups[0])
            self.controller.checked = self._settings()
        deleted = [
            param
            for group in self.param_groups
            for param in group["params"]
            if self.state.get(param) and self._lacks_moments(param, group)
            if param.grad is not None  # or the base passes over it
        ]
        for param in deleted:
            kept = self._of_others(self.state.pop(param))
            if kept:
                self.controller.early.setdefault(param, {}).update(kept)

    def _lacks_moments(self, param: Tensor, group: dict[str, Any]) -> bool:
        """Whether they were deleted; a ValueError where a parameter was cast and they were not."""
        state, needed = self.state[param], self._moments_of(param, group)
        name = (*needed, "momentum_buffer")[0]
        moment = state.get(name)
        grad = param if param.grad is None else param.grad
        cast = moment is not None and moment.dtype not in (param.dtype, grad.dtype)
        if cast and group["protection"] > 0.0:
            raise ValueError(
                f"Invalid params value: the state {name!r} is of {moment.dtype}, its parameter of "
                f"{param.dtype}; when a parameter is cast, delete its entry of optimizer.state"
            )
        # One with others than it needs had another update so far, as in Muon.
        others = set(self._moments) - set(needed)
        return not (state.keys() >= set(needed) or state.keys() & others)

    def _settings(self) -> list[Any]:
        return [group.get(name) for group in self.param_groups for name in PROTECTION_SETTINGS]

    def _base_step(self) -> None:
        """The base optimizer's own step, without hooks, which belong to this one."""
        mro = type(self).__mro__
        for cls in mro[mro.index(SALOptimizer) + 1 :]:
            if "step" in vars(cls):
                step = vars(cls)["step"]
                # torch wraps a class's step in hooks when that class is first used by itself.
                (step.__wrapped__ if getattr(step, "hooked", False) else step)(self)
                return
        raise NotImplementedError(f"{type(self).__name__} has no base optimizer")
