"""CommunicationLayer: the protection of the family, around any ``torch.optim.Optimizer``.

The optimizer is a black box: the layer sees its gradients before a step and its weights before and
after, by torch's own step hooks (``around.py``). What the family reads from its own moments is
measured (``measured.py``), and the last update is taken back by a copy, kept while a change is
suspected. Statistics live in the optimizer's ``state``, the threshold in its first param group.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sal_optim.arguments import PROTECTION_ARGUMENTS, check_shared, given
from sal_optim.around import Around
from sal_optim.checkpoint import (
    Checkpoint,
    StateDict,
    check_statistics,
    check_tensor,
    fitted_threshold,
    paired,
)
from sal_optim.kronecker import RANK
from sal_optim.optimizer import PLASTICITY, PROTECTION, PULL
from sal_optim.protection import Group, Protection
from sal_optim.state import State
from sal_optim.utils import checks


class CommunicationLayer(Around):
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
        rank: int = RANK,
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
        self._early = {}
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
