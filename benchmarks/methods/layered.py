"""Any optimizer with a CommunicationLayer of sal_optim around it: the second row of `--protect`."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn
from torch.optim import Optimizer

from benchmarks.data.errors import UserError
from benchmarks.methods.base import Method
from benchmarks.methods.sal import DEPRECATED

SUFFIX = "-layer"


class Layered(Method):
    """An optimizer in a layer, which hooks itself into its steps."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, **settings: Any) -> None:
        super().__init__(model, optimizer)
        self.layer = layer_class()(optimizer, **settings)

    def diagnostics(self) -> dict[str, float]:
        figures: dict[str, float] = self.layer.diagnostics()
        return figures

    def suppressed(self) -> dict[str, float]:
        return {
            name: float(self.layer.stability(p).mean()) for name, p in self.model.named_parameters()
        }


def layer_class() -> Any:
    """CommunicationLayer; raises a UserError where sal_optim cannot be imported."""
    try:
        return importlib.import_module("sal_optim").CommunicationLayer
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--protect: needs sal_optim.CommunicationLayer ({error}); "
            "install the package with `pip install -e .`"
        ) from error


def options() -> tuple[str, ...]:
    """Keyword arguments of the layer."""
    found = tuple(inspect.signature(layer_class()).parameters)[1:]
    return tuple(name for name in found if name not in DEPRECATED)
