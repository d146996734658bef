"""pytorch_optimizer: ``load_optimizer("saladamw")`` and ``create_optimizer(model, "saladamw")``."""

from sal_optim.integrations import OPTIMIZERS


def register() -> None:
    """Add the family to the table that names are looked up in."""
    from pytorch_optimizer import optimizer

    optimizer.OPTIMIZERS.update(OPTIMIZERS)
