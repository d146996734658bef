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


def _may_be(group: dict[str, Any], states: Any) -> bool:
    if group.get("fused", False) is not None or group.get("foreach") is not None:
        return False
    params = [param for param in group["params"] if param.grad is not None]
    own = [states.get(param, {}) for param in params]
    # torch's fused SGD takes no parameter that comes later than the others.
    buffers = {state.get("momentum_buffer") is None for state in own}
    counts = [state["step"].dtype for state in own if "step" in state]
    return (
        len(buffers) == 1
        and all(dtype == torch.float32 for dtype in counts)
        and all(type(p) in PLAIN and p.is_cpu and p.dtype in DTYPES for p in params)
    )
