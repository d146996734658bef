"""A protected step by torch's fused kernel, where the choice is left open.

On a CPU that is one pass over memory where torch's default takes ten, and pays for most of the
protection. A step that is not protected is the default's, so that it is the base's bit for bit. On
an accelerator a fused step keeps its counts elsewhere, so that a run can't change over.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim import Optimizer

from sal_optim.sharding.dtensor import PLAIN

# What the kernels for CPUs take.
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


@contextlib.contextmanager
def fused(optimizer: Optimizer) -> Iterator[None]:
    """Have the steps inside taken by fused kernels, in groups that can have them."""
    chosen = [group for group in optimizer.param_groups if _may_be(group, optimizer.state)]
    for group in chosen:
        group["fused"] = True
    try:
        yield
    finally:
        for group in chosen:
            group["fused"] = None


def loss_scale_of(optimizer: Optimizer) -> float:
    """The factor that gradients still carry where a fused step unscales them."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def _may_be(group: dict[str, Any], states: Any) -> bool:
    if group.get("fused", False) is not None or group.get("foreach") is not None:
        return False
    begun = set()
    for param in group["params"]:
        grad = param.grad
        if grad is None:
            continue
        if not (type(param) in PLAIN and param.is_cpu and param.dtype in DTYPES):
            return False
        state, stride = states.get(param, {}), param.stride()
        moments = [state[name] for name in MOMENTS if state.get(name) is not None]
        # Fused kernels take memory as it lies: in gradients and moments as in parameters.
        if grad.dtype != param.dtype or any(t.stride() != stride for t in (grad, *moments)):
            return False
        if "step" in state and state["step"].dtype != torch.float32:
            return False
        begun.add(state.get("momentum_buffer") is None)
    # torch's fused SGD takes no parameter that comes later than the others.
    return len(begun) == 1


def refuse_capture(optimizer: Optimizer) -> None:
    """Raise RuntimeError where a step would be recorded into a CUDA graph."""
    first = next((param for group in optimizer.param_groups for param in group["params"]), None)
    if first is not None and first.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{type(optimizer).__name__}.step() can't be captured into a CUDA graph: it decides on "
            "the host when to consolidate; capture forward and backward, and step outside"
        )
