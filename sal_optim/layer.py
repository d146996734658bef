"""CommunicationLayer: the protection of the family, around any ``torch.optim.Optimizer``.

The optimizer is a black box: the layer gives it protected gradients, by torch's own step hooks, and
puts the others back. It owns the same controller as the family. Importance lives in the optimizer's
``state``, the change detector in its param groups, so that both travel in its ``state_dict()``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sal_optim import config
from sal_optim.checkpoint.frame import StateDict
from sal_optim.checkpoint.loading import checking, without_early
from sal_optim.checkpoint.validation import fitted_around
from sal_optim.importance import State
from sal_optim.optimizer import SALOptimizer
from sal_optim.protection.base import Protection
from sal_optim.protection.controller import ProtectionController
from sal_optim.protection.fused import loss_scale_of
from sal_optim.protection.holder import own_detector
from sal_optim.protection.judge import Decision
from sal_optim.utils import checks


class CommunicationLayer(Protection):
    __doc__ = f"""Protection around any optimizer that has torch's step hooks.

    It hooks itself in on construction; nothing else changes: ``optimizer.step()``, schedulers,
    ``state_dict()`` and ``load_state_dict()`` are used as before. Until the first consolidation
    parameters move exactly as the optimizer moves them. A layer built around a new optimizer before
    ``load_state_dict`` resumes exactly; a copied or pickled layer has a copy of its optimizer.

    ``protection`` is read in each step from the optimizer's ``param_groups``, where it may differ
    by group; the other settings are the layer's.

    Args:
        optimizer: any ``torch.optim.Optimizer`` but those of this package, which are protected.{
        config.PROTECTION_ARGUMENTS
    }
        unit_update: deprecated, without effect: gradients are protected, whatever is made of them.
        momenta: deprecated, without effect.
        plasticity: deprecated, without effect.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        protection: float = config.PROTECTION,
        *,
        pull: float = config.PULL,
        importance: config.Kind = "kronecker",
        rank: int = config.RANK,
        consolidate_every: config.Clock = "auto",
        retention: float = config.RETENTION,
        tau0: float = config.TAU0,
        alpha: float = config.ALPHA,
        stats_beta: float = config.STATS_BETA,
        state_dtype: torch.dtype | str | None = None,
        granularity: str | None = None,
        plasticity: float | None = None,
        unit_update: bool | None = None,
        momenta: Sequence[str] | None = None,
    ) -> None:
        self._settings = config.check_protection(config.given(locals()))
        _check_optimizer(optimizer)
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            own_detector(group)
        self.controller = ProtectionController(optimizer, self._settings)
        _ = self.controller.groups  # each has its protection now
        self._decision: Decision | None = None
        self._waiting: dict[Tensor, State] = {}  # of a checkpoint, see _fitted
        self._left: list[Tensor | None] = []  # the gradients that the optimizer was given
        self._handles = [
            *checking(optimizer, self._fitted),
            optimizer.register_load_state_dict_post_hook(self._loaded),
            optimizer.register_state_dict_pre_hook(lambda _: self.controller.settle()),
            optimizer.register_state_dict_post_hook(self.controller.complete, prepend=True),
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def __reduce__(self) -> Any:
        self.controller.settle()
        return _rebuilt, (self.optimizer, self._settings, self.controller.early)

    def __repr__(self) -> str:
        own = [group["protection"] for group in self.controller.groups]
        now = {**self._settings, "protection": own[0] if len({*own}) == 1 else own}
        settings = ", ".join(f"{name}={value!r}" for name, value in now.items())
        return f"CommunicationLayer({type(self.optimizer).__name__}, {settings})"

    def remove(self) -> None:
        """Take the layer off; the optimizer then steps as if it had never been there."""
        if self._handles:
            for group in self.optimizer.param_groups:
                # Another layer has a protection of its own; that of a group stays.
                if group.get("protection") == self._settings["protection"]:
                    del group["protection"]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # ---------------------------------------------------------------- around a step

    # Decisions are the host's: torch.compile runs both hooks as they are.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Begin; a class whose step calls its parent's has this called twice a step."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            if self._decision is None or [*map(id, self._left)] != [*map(id, self._gradients())]:
                self._decision = None  # of a step that raised an error
                self._begin()
            return None
        if isinstance(closure, partial) and closure.func == self._evaluated:
            return None
        self._decision = None
        evaluated = partial(self._evaluated, closure)
        if len(args) > 1:
            return (args[0], evaluated, *args[2:]), kwargs
        return args, {**kwargs, "closure": evaluated}

    def _evaluated(self, closure: Callable[[], Any]) -> Any:
        loss = closure()
        self._begin()
        return loss

    def _gradients(self) -> list[Tensor | None]:
        return [param.grad for group in self.optimizer.param_groups for param in group["params"]]

    @torch.no_grad()
    def _begin(self) -> None:
        """Judge the gradients of this step, and have the optimizer see protected ones."""
        controller = self.controller
        known = self._decision
        blocks = controller.collect()
        if known is None:
            # Of an optimizer that has none, or has text there, it is not known to be 0.
            rates = [group.get("lr") for group in self.optimizer.param_groups]
            known_rates = [float(r) for r in rates if isinstance(r, (int, float, Tensor))]
            rate = max(known_rates, default=1.0 if rates else 0.0)
            known = controller.decide(blocks, rate=rate, loss_scale=loss_scale_of(self.optimizer))
            controller.gather(known)
        else:  # a closure that is evaluated once more in the same step
            controller.renew(known, blocks)
        self._decision = known
        if controller.observing:
            # Optimizers pass over parameters that have no gradient.
            for group in self.optimizer.param_groups:
                for param in group["params"]:
                    if param.grad is not None:
                        known.replaced.append((param, param.grad))
                        param.grad = None
        else:
            controller.protect(known)
        self._left = self._gradients()

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        known, self._decision = self._decision, None
        self._left.clear()
        if known is not None:
            self.controller.finish(known)

    # ---------------------------------------------------------------- the published two lines

    def analyze(self, model: nn.Module) -> None:
        """Do nothing that ``step()`` does not do: the first of the two lines as published.

        Raises:
            ValueError: the optimizer has none of the parameters of ``model``.
        """
        checks.model(model, self.optimizer.param_groups)

    def protect(self, model: nn.Module) -> None:
        """Do nothing either: the second of the two lines as published; see :meth:`analyze`."""
        self.analyze(model)

    # ---------------------------------------------------------------- checkpoints

    def _fitted(self, state_dict: StateDict) -> StateDict:
        found = fitted_around(self.optimizer, self.controller.groups, state_dict)
        # What the optimizer would take for its own.
        found, self._waiting = without_early(self.optimizer, found)
        return found

    def _loaded(self, _: Any) -> None:
        self.controller.early.clear()
        self.controller.early.update(self._waiting)
        self._waiting = {}
        self.controller.forget()
        self._decision = None


def layer_of(optimizer: Optimizer) -> CommunicationLayer | None:
    """The layer around an optimizer; None if there is none."""
    hooks: dict[int, Callable[..., Any]] = getattr(optimizer, "_optimizer_step_pre_hooks", {})
    for hook in hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, CommunicationLayer):
            return owner
    return None


def _rebuilt(
    optimizer: Optimizer, settings: dict[str, Any], early: dict[Tensor, State]
) -> CommunicationLayer:
    """A copy of a layer, with what it gathered before the optimizer's first step."""
    found = CommunicationLayer(optimizer, **settings)
    found.controller.early.update(early)
    return found


def _check_optimizer(optimizer: Any) -> None:
    allowed = "optimizer must be a torch.optim.Optimizer"
    checks.optimizer(optimizer)
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"Invalid optimizer value: a {type(optimizer).__name__} without step hooks; {allowed} "
            "that calls Optimizer.__init__; where it wraps another one, put the layer around that"
        )
    if isinstance(optimizer, SALOptimizer) or layer_of(optimizer) is not None:
        raise ValueError(
            f"Invalid optimizer value: this {type(optimizer).__name__} is protected already; "
            f"{allowed} that is not"
        )
