"""timm: ``--opt saladamw`` in its training script, ``create_optimizer_v2(model, "saladamw")``."""

import inspect

from sal_optim.integrations import OPTIMIZERS


def register() -> None:
    """Add the family to timm's registry of optimizers."""
    from timm.optim._optim_factory import OptimInfo, default_registry

    for name, cls in OPTIMIZERS.items():
        arguments = inspect.signature(cls).parameters
        default_registry.register(
            OptimInfo(
                name=name,
                opt_class=cls,
                description=f"{cls.__name__}: forgets less",
                has_eps="eps" in arguments,
                has_momentum="momentum" in arguments,
                has_betas="betas" in arguments,
            )
        )
