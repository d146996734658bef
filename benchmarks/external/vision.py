"""torchvision beside a torch without CUDA.

A torchvision that was built for CUDA registers operators of its C++ library when it is imported,
and fails beside a torch for CPU, where that library does not load. Nothing here uses these
operators: with their names declared, the import succeeds.
"""

from __future__ import annotations

import importlib.util

import torch

from benchmarks.external import AbsentError

_DECLARED: list[torch.library.Library] = []


def require_torchvision() -> None:
    """Make `import torchvision` work; raises `AbsentError` where it is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        raise AbsentError("needs torchvision; `pip install torchvision` installs it")
    if torch.cuda.is_available() or _DECLARED or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _DECLARED.append(library)
