"""A CUDA graph on a CPU: what a step does to tensors is recorded once, and done again by replays.

As on a card, a replay runs no Python of the step: the same operations read and write the same
memory. What a card refuses while it records is refused here: to read a value, and to bring one in
from the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_REFUSED = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default)


class Graph(TorchDispatchMode):
    """Records the operations of a ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self._nodes: list[tuple[Any, Sequence[Any], Mapping[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _REFUSED:
            raise RuntimeError(f"{func} is not allowed while a graph is captured")
        result = func(*args, **(kwargs or {}))
        places = {where(tensor) for tensor in _tensors((args, kwargs))}
        # What is new has to be written again by a replay; a view, or what was changed in place, is
        # where it was.
        made = [tensor for tensor in _tensors(result) if where(tensor) not in places]
        changes = func._schema.is_mutable
        if made or changes:
            self._nodes.append((func, args, kwargs or {}, made))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self._nodes:
            places = {where(tensor) for tensor in _tensors((args, kwargs))}
            result = func(*args, **kwargs)
            again = [tensor for tensor in _tensors(result) if where(tensor) not in places]
            for old, new in zip(made, again, strict=True):
                old.copy_(new)


def where(tensor: Tensor) -> int:
    """The memory that a tensor is in."""
    return tensor.untyped_storage()._cdata


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
