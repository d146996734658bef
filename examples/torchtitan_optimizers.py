"""torchtitan's container of optimizers, with the family's names beside Adam's and AdamW's.

In a trainer's config: `optimizer=Optimizers.Config(implementation="for-loop", param_groups=[
ParamGroupConfig(pattern=".*", optimizer_name="saladamw", optimizer_kwargs={"lr": 8e-4})])`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from torchtitan.components.optimizer import OptimizersContainer

from sal_optim.integrations import OPTIMIZERS


class Optimizers(OptimizersContainer):
    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        pass

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., Optimizer]:
        if name in OPTIMIZERS:
            return OPTIMIZERS[name]
        return OptimizersContainer._resolve_optimizer_factory(name)
