"""Loading a checkpoint: nothing half changed, and statistics in the precision they were saved in.

torch casts every loaded float tensor but ``step`` to the dtype of its parameter, so that float32
importance beside bfloat16 weights would lose 16 bits a reload; that is undone here. What a state
dict must be is in ``validation.py``.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sal_optim.checkpoint.frame import StateDict
from sal_optim.checkpoint.validation import STATISTICS, is_own, paired

# Returns the state dict in the form of an optimizer, or raises; changes neither of the two.
Fit = Callable[[StateDict], StateDict]


def checking(optimizer: Optimizer, fit: Fit) -> tuple[Any, Any]:
    """Hooks that check each load after the user's before it, and finish it before theirs.

    A hook of the user's that raises after the load finds the load complete. Returns the handles by
    which the hooks are removed.
    """
    loaded: StateDict = {}

    def check(_: Any, state_dict: StateDict) -> StateDict:
        nonlocal loaded
        loaded = fit(state_dict)
        return loaded

    def restore(optimizer: Optimizer) -> None:
        nonlocal loaded
        for _, _, param, saved in paired(optimizer, loaded):
            state = optimizer.state[param]
            for name, value in saved.items():
                if isinstance(value, Tensor) and name.startswith(STATISTICS):
                    state[name] = _copied(value, param)
        loaded = {}

    return (
        optimizer.register_load_state_dict_pre_hook(check),
        optimizer.register_load_state_dict_post_hook(restore, prepend=True),
    )


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
