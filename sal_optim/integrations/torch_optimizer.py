"""torch-optimizer: ``torch_optimizer.get("saladamw")``."""

from sal_optim.integrations import OPTIMIZERS


def register() -> None:
    """Add the family to the table that names are looked up in."""
    import torch_optimizer

    torch_optimizer._NAME_OPTIM_MAP.update(OPTIMIZERS)
