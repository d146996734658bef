"""The update of a step, compiled: one kernel for each plan, whatever the sizes and the schedule.

A tensor and its state are handed over as flat vectors of dynamic length, and the numbers of the
step as one small tensor. So a new parameter, another learning rate or another step compiles
nothing. What a step does is compiled once each: with evidence gathered or, as the step is
surprising, not; with protection or, before the first consolidation, without. Small tensors never
come here, see ``pieces.py``.
"""

import warnings
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from sal_optim.pieces import Work
from sal_optim.update import Numbers, Plan, advance
from sal_optim.utils.rounding import Number

Kernel = Callable[[Tensor, Tensor, dict[str, Tensor], Tensor], None]

# Set when no kernel could be built on this machine: everything then runs eagerly.
_unavailable = False
# Kernels of one plan that differ in their constants: beyond it a schedule changes these in each
# step, as a cycle of betas does, and building kernels would never end.
LARGEST_NUMBER = 8


@cache
def _kernels(plan: Plan) -> dict[Any, Kernel]:
    """The compiled updates of a plan, by the constants that are built in."""
    return {}


def _kernel(plan: Plan, rule: tuple[tuple[str, Any], ...], coupled_decay: float) -> Kernel:
    """A compiled update."""
    constants = dict(rule)

    def run(param: Tensor, grad: Tensor, state: dict[str, Tensor], numbers: Tensor) -> None:
        decay, share, protection, stiffness, scale, gathered, rounding, *base = numbers.unbind()
        advance(
            plan,
            constants,
            [param],
            [grad],
            {name: [value] for name, value in state.items()},
            Numbers(
                base=tuple([number] for number in base),
                decay=decay,
                decay_shares=[share],
                coupled_decay=coupled_decay,
                protection=protection,
                stiffness=stiffness,
                scale=scale,
                gathered=gathered,
                rounding=rounding,
            ),
        )

    # The compiler counts recompilations by code object: each kernel gets one of its own.
    own = FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True)


def _vector(values: list[Number], device: torch.device) -> Tensor:
    """Numbers of the host and of the device as one vector there, without a wait."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # Nothing comes from the host in a graph.
        options: dict[str, Any] = {"dtype": torch.float64, "device": device}
        return torch.stack(
            [v.double() if isinstance(v, Tensor) else torch.full((), v, **options) for v in values]
        )
    known = [0.0 if isinstance(value, Tensor) else value for value in values]
    vector = torch.tensor(known, dtype=torch.float64)
    if device.type == "cuda":
        vector = vector.pin_memory().to(device, non_blocking=True)
    else:
        vector = vector.to(device)
    for place, value in enumerate(values):
        if isinstance(value, Tensor):
            vector[place].copy_(value, non_blocking=True)
    return vector


def _flat(tensor: Tensor) -> Tensor | None:
    """A dense tensor as a vector in its order of memory; None if it has holes or overlaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    ordered = tensor.permute(order)
    return ordered.view(-1) if ordered.is_contiguous() else None


def _prepared(work: Work) -> tuple[Tensor, Tensor, dict[str, Tensor]] | None:
    """What the kernel takes; None where the eager path has to serve."""
    param, grad, state = work.param.detach(), work.grad, work.state
    if not work.sliceable:
        return param, grad, state
    alike = [param, grad, *state.values()]
    if any(t.shape != param.shape or t.stride() != param.stride() for t in alike):
        return None
    flat = [_flat(tensor) for tensor in alike]
    if any(vector is None for vector in flat):
        return None
    # As data, a vector doesn't know whose view it is: the compiler would ask for that one's shape.
    vectors = [vector.data for vector in flat if vector is not None]
    return vectors[0], vectors[1], dict(zip(state, vectors[2:], strict=True))


def advance_compiled(plan: Plan, rule: dict[str, Any], work: Work, numbers: Numbers) -> bool:
    """Run :func:`sal_optim.update.advance` on one parameter by a kernel; False if there is none."""
    global _unavailable
    if _unavailable:
        return False
    prepared = _prepared(work)
    if prepared is None:
        return False
    values = [
        *(numbers.decay, *(numbers.decay_shares or [0.0]), numbers.protection),
        *(numbers.stiffness, numbers.scale, numbers.gathered, numbers.rounding),
        *(column[0] for column in numbers.base),
    ]
    param, grad, state = prepared
    vector = _vector(values, param.device)
    constants = (tuple(rule.items()), numbers.coupled_decay)
    kernels = _kernels(plan)
    if constants not in kernels:
        if len(kernels) >= LARGEST_NUMBER:
            _warn_of_many()
            return False
        kernels[constants] = _kernel(plan, *constants)
    try:
        kernels[constants](param, grad, state, vector)
    except Exception as error:  # a kernel is built before it runs: nothing has changed yet
        if not _is_compile_failure(error):
            raise
        _unavailable = True
        warnings.warn(
            f"compile=True: no kernel could be built here ({type(error).__name__}); the optimizer "
            "goes on eagerly. A C++ compiler is needed on a CPU, triton on a GPU.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


@cache
def _warn_of_many() -> None:
    """Once a process."""
    warnings.warn(
        f"compile=True: {LARGEST_NUMBER} kernels were built for as many values of betas, momentum, "
        "eps or a weight decay that acts through the gradient; other values run eagerly",
        RuntimeWarning,
        stacklevel=4,
    )


def _is_compile_failure(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._inductor", "torch._dynamo"))
