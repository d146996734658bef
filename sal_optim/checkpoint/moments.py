"""State of the base optimizer that does not fit its parameters: refused, or begun anew."""

from collections.abc import Sequence

from torch import Tensor

from sal_optim.importance import State


def deleted(
    stepped: Sequence[tuple[Tensor, State, tuple[str, ...]]], known: Sequence[str]
) -> list[Tensor]:
    """Parameters whose moments were deleted.

    Args:
        stepped: parameters that have state, each with it and the moments that its update needs.
        known: the moments of all updates. A parameter with others than it needs had another update
            so far, as in Muon.

    Raises:
        ValueError: a parameter was cast, and its state was not.
    """
    found = []
    for param, state, needed in stepped:
        name = (*needed, "momentum_buffer")[0]
        moment = state.get(name)
        grad = param if param.grad is None else param.grad
        if moment is not None and moment.dtype not in (param.dtype, grad.dtype):
            raise ValueError(
                f"Invalid params value: the state {name!r} is of {moment.dtype}, its parameter of "
                f"{param.dtype}; when a parameter is cast, delete its entry of optimizer.state"
            )
        if not (state.keys() >= set(needed) or state.keys() & set(known) - set(needed)):
            found.append(param)
    return found
