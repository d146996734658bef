"""State of the base optimizer that does not fit its parameters: refused, or begun anew."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sal_optim.checkpoint.validation import is_own
from sal_optim.importance import State


def refuse_cast(param: Tensor, state: State, moments: Sequence[str]) -> None:
    """Raise ValueError where a parameter was cast and its state was not."""
    name = (*moments, "momentum_buffer")[0]
    moment = state.get(name)
    if moment is not None and moment.dtype != param.dtype:
        raise ValueError(
            f"Invalid params value: the state {name!r} is of {moment.dtype}, its parameter of "
            f"{param.dtype}; when a parameter is cast, delete its entry of optimizer.state"
        )


def are_deleted(state: State, moments: Sequence[str], known: Sequence[str]) -> bool:
    """Whether moments are missing that a parameter must have had.

    Args:
        state: of the parameter; empty before its first step.
        moments: those that its update needs.
        known: those of all updates. Where others are there, it had another update so far, as in
            Muon.
    """
    if not state or all(name in state for name in moments):
        return False
    return not any(name in state for name in known if name not in moments)


def own(state: State) -> dict[str, Any]:
    """What of a state is the protection's, for a base that begins where it finds nothing."""
    return {name: value for name, value in state.items() if is_own(name)}
