"""Holder: what an optimizer holds for its protection, and where: groups, state, change detector."""

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sal_optim.detection.change_detector import DetectorState, new_detector
from sal_optim.importance import State
from sal_optim.protection.block import Group
from sal_optim.utils import checks


def own_detector(group: Group) -> None:
    """Copy a group's change detector: the group may be of another optimizer, whose own goes on."""
    if isinstance(group.get("threshold"), dict):
        group["threshold"] = dict(group["threshold"])


class Holder:
    """The groups, the state and the change detector of one optimizer.

    Args:
        optimizer: whose ``state`` and ``param_groups`` hold everything that lasts.
        settings: of the protection, where the groups hold none of their own but ``protection``.
    """

    def __init__(self, optimizer: Optimizer, settings: Group | None = None) -> None:
        # What an optimizer owns holds it weakly, or a deleted one would wait for a collection.
        self._optimizer, self.settings = weakref.ref(optimizer), settings
        # State gathered before a parameter's first step: many optimizers initialise their own
        # where they find none, so nothing may be there before.
        self.early: dict[Tensor, State] = {}

    @property
    def optimizer(self) -> Optimizer:
        """Whose state and groups these are."""
        found = self._optimizer()
        assert found is not None, "the optimizer owns this"
        return found

    @property
    def groups(self) -> list[Group]:
        """Groups of parameters, with the settings of the protection beside the optimizer's."""
        found: list[Group] = self.optimizer.param_groups
        if self.settings is None:
            return found
        merged = []
        for group in found:
            protection = group.setdefault("protection", self.settings["protection"])
            own = {"protection": checks.number("protection", protection)}
            merged.append({**group, **self.settings, **own})
        return merged

    @property
    def detector(self) -> DetectorState:
        """The change detector's state: one dict in all groups, so that it outlives any of them."""
        groups = self.optimizer.param_groups
        found = (group["threshold"] for group in groups if group.get("threshold"))
        state: DetectorState = next(found, {}) or new_detector()
        for group in groups:
            group["threshold"] = state
        return state

    def state_of(self, param: Tensor) -> State:
        """The state of a parameter; empty where there is none. Looking creates nothing."""
        state: State | None = self.optimizer.state.get(param)
        return state if state else self.early.get(param, {})

    def held(self) -> Iterator[tuple[Tensor, Group, State]]:
        """Each parameter that has importance, with its group and its state."""
        for group in self.groups:
            for param in group["params"]:
                state = self.state_of(param)
                if state.get("evidence_weight", 0.0) > 0.0:
                    yield param, group, state

    def complete(self, _: Optimizer, state_dict: dict[str, Any]) -> None:
        """Add state from before parameters' first step to a state dict, and copy its numbers.

        A snapshot that is kept in memory must not go on counting.
        """
        states, groups = state_dict["state"], state_dict["param_groups"]
        states.update({key: dict(own) for key, own in states.items() if isinstance(own, dict)})
        for group, saved in zip(self.optimizer.param_groups, groups, strict=True):
            own_detector(saved)
            for param, key in zip(group["params"], saved["params"], strict=True):
                if self.early.get(param):
                    states[key] = {**self.early[param], **states.get(key, {})}

    def settle_early(self) -> None:
        """Put state that was gathered before a parameter's first step where it belongs.

        That of a parameter without a gradient, such as a frozen one, waits for its first step.
        """
        for param in list(self.early):
            if param.grad is not None or self.optimizer.state.get(param):
                self.optimizer.state[param].update(self.early.pop(param))
