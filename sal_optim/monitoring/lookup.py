"""Finds what protects an optimizer, through the wrappers that other packages put around it.

It asks for the base that the family and the layer share, and imports no optimizer.
"""

from torch.optim import Optimizer

from sal_optim.layer import layer_of
from sal_optim.protection.base import Protection


def protection_of(optimizer: object) -> Protection | None:
    """What protects an optimizer, through the wrappers of other packages; None if nothing does.

    Args:
        optimizer: one of the family, one inside a ``CommunicationLayer``, or a wrapper that holds
            it as ``optimizer`` (Accelerate), ``opt`` (fastai), ``_optimizer`` (Lightning),
            ``base_optimizer`` (pytorch_optimizer's SAM) or ``_base_optimizer`` (timm's Lookahead).
    """
    found = _innermost(optimizer)
    if isinstance(found, Protection):
        return found
    return layer_of(found) if isinstance(found, Optimizer) else None


def _innermost(optimizer: object) -> object:
    """The optimizer that is protected, or else the last one inside of all wrappers."""
    for _ in range(8):
        if isinstance(optimizer, Protection):
            break
        if isinstance(optimizer, Optimizer) and layer_of(optimizer) is not None:
            break
        fields = getattr(optimizer, "__dict__", {})
        names = ("optimizer", "opt", "_optimizer", "base_optimizer", "_base_optimizer")
        inner = next((fields[name] for name in names if name in fields), None)
        if inner is None:
            break
        optimizer = inner
    return optimizer


def required_protection(optimizer: object) -> Protection:
    """What protects an optimizer, as :func:`protection_of`; a TypeError if nothing does."""
    protection = protection_of(optimizer)
    if protection is None:
        found = type(_innermost(optimizer)).__name__
        raise TypeError(
            f"Invalid optimizer value: a {found}; optimizer must be one of "
            "sal_optim, or one that a CommunicationLayer is around"
        )
    return protection
