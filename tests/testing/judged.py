"""``OptimizerInfo`` rows for our classes: torch's inputs, error inputs and schedulers, and ours.

What torch's own checks of its optimizers ask, and why some of them are not asked here, is listed in
``NOT_APPLICABLE``. The checks are in ``test_torch_suite.py``, ``test_torch_training.py`` and
``test_torch_checkpoints.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.testing._internal import common_optimizers as torchs
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    optim_db,
)
from torch.testing._internal.common_utils import TestCase

from sal_optim import SALSGD, SALAdam, SALAdamW, SALLion, SALMuon
from sal_optim.muon import HAS_MUON
from tests.testing.rows import CLASSES

# Torch's checks, and inputs of its checks, that do not apply; with the reason.
NOT_APPLICABLE: dict[str, str] = {
    "fused": "torch's own, compared with torch's in test_base.py; Lion has none: TypeError",
    "capturable": "torch's own; a step that is captured into a CUDA graph is refused",
    "differentiable": "refused by the constructor: gradients are replaced in place",
    "sparse gradients": "refused by step(), tested in test_behaviours_parameters.py",
    "several GPUs, moves between CPU and GPU, peak memory on CUDA, CUDA graphs": "no GPU here",
    "foreach by default": "torch's own choice; Lion works by lists of tensors unless told not to",
    "LBFGS, Muon and Adafactor": "checks of those classes alone",
    "betas as tensors": "0-dim tensors are converted to floats, alone, in pairs and with foreach",
}
# Error inputs of torch that are no errors here, by their description.
NO_ERROR = (
    "betas must be either both floats or both Tensors",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True",
)

# Short runs see no change of regime, so protection acts in some inputs by the clock.
PROTECTED = (
    {"protection": 0.3, "pull": 1.0, "consolidate_every": 2},
    {"protection": 10.0, "consolidate_every": 2, "importance": "factored", "weight_decay": 0.1},
    {"protection": 1.0, "pull": 0.0, "consolidate_every": 2, "importance": "diagonal"},
)


def _inputs(func: Callable[..., list[OptimizerInput]]) -> Callable[..., list[OptimizerInput]]:
    def inputs(device: str, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
        ours = [OptimizerInput(None, dict(kwargs), f"protected {kwargs}") for kwargs in PROTECTED]
        return [*func(device, dtype), *ours]

    return inputs


def _errors(func: Callable[..., list[ErrorOptimizerInput]]) -> Any:
    def errors(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
        cases = func(device, dtype)
        return [case for case in cases if case.optimizer_error_input.desc not in NO_ERROR]

    return errors


def _lion_inputs(device: str, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
    return [
        OptimizerInput(None, {}, "default"),
        OptimizerInput(None, {"lr": 1e-3}, "non-default lr"),
        OptimizerInput(None, {"lr": torch.tensor(1e-3)}, "Tensor lr"),
        OptimizerInput(None, {"weight_decay": 0.1}, "nonzero weight_decay"),
        OptimizerInput(None, {"weight_decay": 0.1, "maximize": True}, "maximize"),
        OptimizerInput(None, {"betas": (0.5, 0.9)}, "betas"),
    ]


def _lion_errors(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    """Adam's, but for its flags, and for a tensor as lr in lists, which is no error of Lion's."""
    adam = torchs.optim_error_inputs_func_adam(device, dtype)
    given = [case.optimizer_error_input.kwargs for case in adam]
    return [
        case
        for case, kwargs in zip(adam, given, strict=True)
        if "amsgrad" not in kwargs and not isinstance(kwargs.get("lr"), Tensor)
    ]


def _muon_inputs(device: str, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
    own = {"momentum": 0.5, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}
    return [
        *_lion_inputs(device, dtype),
        OptimizerInput(None, own, "momentum"),
        OptimizerInput(None, {"use_muon": False}, "AdamW alone"),
    ]


def _muon_errors(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    """Adam's, but for its flags."""
    adam = torchs.optim_error_inputs_func_adam(device, dtype)
    return [case for case in adam if "amsgrad" not in case.optimizer_error_input.kwargs]


_torch_rows = {info.optim_cls: info for info in optim_db}


def _info(cls: Any, inputs: Any, errors: Any) -> OptimizerInfo:
    return OptimizerInfo(
        cls,
        optim_inputs_func=_inputs(inputs),
        optim_error_inputs_func=_errors(errors),
        scheduler_inputs=_torch_rows[torch.optim.Adam].scheduler_inputs,
        supported_impls=("foreach",),
        not_og_supported_flags=("foreach", "maximize", "capturable", "differentiable"),
        supports_sparse=False,
    )


optim_db[:] = [
    _info(
        SALAdam,
        torchs.optim_inputs_func_adam,
        torchs.optim_error_inputs_func_adam,
    ),
    _info(
        SALAdamW,
        torchs.optim_inputs_func_adamw,
        torchs.optim_error_inputs_func_adamw,
    ),
    _info(SALSGD, torchs.optim_inputs_func_sgd, torchs.optim_error_inputs_func_sgd),
    _info(SALLion, _lion_inputs, _lion_errors),
    *([_info(SALMuon, _muon_inputs, _muon_errors)] if HAS_MUON else []),
]


def all_inputs(
    info: OptimizerInfo, device: str, dtype: torch.dtype | None = None
) -> Iterator[OptimizerInput]:
    """Each input, in the loop and in foreach mode (which torch's own list has on GPUs only)."""
    for case in info.optim_inputs_func(device, dtype):
        for foreach in (False, True):
            if foreach and isinstance(case.kwargs.get("lr"), Tensor):
                continue
            kwargs = {**deepcopy(case.kwargs), "foreach": foreach}
            yield OptimizerInput(None, kwargs, f"{case.desc}, foreach={foreach}")


def by_element(info: OptimizerInfo, case: OptimizerInput) -> dict[str, Any]:
    """A case's arguments, with those with which the class's update is by element."""
    own = next(row.by_element for row in CLASSES if row.cls is info.optim_cls)
    return {**deepcopy(case.kwargs), **own}


def linear(device: str, dtype: torch.dtype) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Weight, bias and a gradient of a linear layer's squared error; returns its closure."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    params: list[Tensor] = [Parameter(draw(2, 3)), Parameter(draw(2)), Parameter(draw(1, 3))]
    features, targets = draw(4, 3), draw(4, 2)

    def closure() -> Tensor:
        for param in params:
            param.grad = None
        outputs = (features + params[2]) @ params[0].T + params[1]
        loss = (outputs - targets).abs().square().sum()
        loss.backward()
        return loss.detach()

    return params, closure


def run(optimizer: Any, closure: Callable[[], Tensor], steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(closure().item())
        optimizer.step()
    return losses


def assert_same(case: TestCase, one: list[Tensor], other: list[Tensor], **kwargs: Any) -> None:
    for left, right in zip(one, other, strict=True):
        case.assertEqual(left.detach(), right.detach(), **kwargs)  # noqa: PT009
