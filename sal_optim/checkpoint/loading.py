"""Loading a checkpoint: nothing half changed, and statistics in the precision they were saved in.

torch casts every loaded float tensor but ``step`` to the dtype of its parameter, so that float32
importance beside bfloat16 weights would lose 16 bits a reload; that is undone here. What a state
dict must be is in ``validation.py``.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sal_optim.checkpoint.frame import StateDict
from sal_optim.checkpoint.validation import STATISTICS, is_own, paired

# Returns the state dict in the form of an optimizer, or raises; changes neither of the two.
Fit = Callable[[StateDict], StateDict]


class Checkpoint:
    """Hooks around ``load_state_dict`` that check a state dict and keep its precision."""

    def __init__(self, optimizer: Optimizer, fit: Fit) -> None:
        self._optimizer = optimizer
        self._fit = fit
        self._loaded: StateDict = {}

    def attach(self) -> tuple[Any, Any]:
        """Check each load after the user's hooks before it, and finish it before theirs.

        A hook of the user's that raises after the load finds the load complete. Returns the
        handles by which the hooks are removed.
        """
        return (
            self._optimizer.register_load_state_dict_pre_hook(self._check),
            self._optimizer.register_load_state_dict_post_hook(self._restore, prepend=True),
        )

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Within, loads are checked and finished."""
        handles = self.attach()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check(self, _: Any, state_dict: StateDict) -> StateDict:
        self._loaded = self._fit(state_dict)
        return self._loaded

    def _restore(self, _: Any) -> None:
        for _index, param, saved in paired(self._optimizer, self._loaded):
            state = self._optimizer.state[param]
            for name, value in saved.items():
                if isinstance(value, Tensor) and name.startswith(STATISTICS):
                    state[name] = _copied(value, param)
        self._loaded = {}


def without_early(
    optimizer: Optimizer, state_dict: StateDict
) -> tuple[StateDict, dict[Tensor, dict[str, Any]]]:
    """A state dict without states of the protection alone, and copies of these by parameter.

    Such a state is of a parameter that the optimizer had not stepped yet.
    """
    states, early = dict(state_dict.get("state", {})), {}
    for saved, group in zip(
        state_dict.get("param_groups", []), optimizer.param_groups, strict=False
    ):
        for key, param in zip(saved.get("params", ()), group["params"], strict=False):
            state = states.get(key)
            if isinstance(state, dict) and state and all(is_own(name) for name in state):
                early[param] = {name: _copied(value, param) for name, value in state.items()}
                del states[key]
    return ({**state_dict, "state": states} if early else state_dict), early


def _copied(value: Any, param: Tensor) -> Any:
    """A tensor on a parameter's device: state dicts share theirs with where they came from."""
    if isinstance(value, Tensor):
        return value.detach().to(device=param.device, copy=True)
    return value
