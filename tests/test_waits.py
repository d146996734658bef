"""What a step on a CPU reads of its tensors; on an accelerator nothing is read, see test_lag.py.

Counted by a dispatch mode. Step counts live on the CPU whatever the parameters' device, as torch's
do, and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sal_optim import SALOptimizer
from tests.testing.drive import consolidations, make_params, profile, step_with, stream
from tests.testing.rows import CLASSES, Row


class Reads(TorchDispatchMode):
    """Counts scalars that are read from tensors, but for an optimizer's step counts."""

    def __init__(self, optimizer: SALOptimizer) -> None:
        super().__init__()
        self.optimizer, self.count = optimizer, 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not self._is_step(args[0]):
            self.count += 1
        return func(*args, **(kwargs or {}))

    def _is_step(self, tensor: Tensor) -> bool:
        states = self.optimizer.state.values()
        return any(tensor.data_ptr() == state["step"].data_ptr() for state in states)


@pytest.mark.parametrize("row", CLASSES, ids=str)
@pytest.mark.parametrize("tensors", [2, 20])
def test_the_norms_of_gradients_are_all_that_is_read(row: Row, tensors: int) -> None:
    """By which a change is noticed; before and after a consolidation."""
    params = make_params([(3, 4)] * tensors)
    optimizer = row(params)
    grads = list(stream(params, profile(60, (40,))))
    counts = []
    for now in grads:
        before = consolidations(optimizer)
        with Reads(optimizer) as reads:
            step_with(optimizer, params, now)
        if consolidations(optimizer) == before:
            counts.append(reads.count)
    assert consolidations(optimizer) == 1
    assert set(counts) == {tensors}
