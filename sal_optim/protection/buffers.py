"""Running statistics of normalization layers, kept beside the anchors where a model is handed over.

They are buffers, which no optimizer sees: they go on with new data, and undo what weights keep. Of
a model they are all buffers of each module that has ``running_mean`` or ``running_var``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sal_optim.protection.block import Group
from sal_optim.utils import checks
from sal_optim.utils.naming import unwrapped

# In the param groups, so that state_dict, deepcopy and pickling take it along; one dict in all of
# them, so that it outlives any.
KEY = "buffers"
STATISTICS = ("running_mean", "running_var")


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of a model that follow the data, by name without what wraps the model."""
    found = {}
    for path, module in model.named_modules():
        own = dict(module.named_buffers(recurse=False))
        if any(name in own for name in STATISTICS):
            found.update({f"{path}.{name}" if path else name: b for name, b in own.items()})
    return dict(zip(unwrapped(found), found.values(), strict=True))


def keep(groups: Sequence[Group], model: nn.Module) -> None:
    """Keep the running statistics of a model as they are now, in all groups."""
    checks.model(model, groups)
    kept = {name: found.detach().clone() for name, found in running_statistics(model).items()}
    for group in groups:
        group.pop(KEY, None)
        if kept:
            group[KEY] = kept


def kept_for(groups: Sequence[Group], model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Each running statistic of a model, and the value that was kept of it.

    Raises:
        ValueError: nothing was kept for it, or for a model of another build.
    """
    checks.model(model, groups)
    kept: dict[str, Tensor] = next((group[KEY] for group in groups if KEY in group), {})
    pairs = []
    for name, buffer in running_statistics(model).items():
        value = kept.get(name)
        if value is None or value.shape != buffer.shape:
            was = "nothing" if value is None else f"a tensor of shape {tuple(value.shape)}"
            raise ValueError(
                f"Invalid model value: {was} was kept for its buffer {name!r} of shape "
                f"{tuple(buffer.shape)}; model must be one that consolidate(model=model) was given"
            )
        pairs.append((buffer, value))
    return pairs


def checked(where: str, group: dict[str, Any]) -> None:
    """Refuse a saved group whose running statistics are none; raises TypeError."""
    saved = group.get(KEY, {})
    if not isinstance(saved, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in saved.items()
    ):
        raise TypeError(f"{where}[{KEY!r}] is {saved!r:.80}; it must be a dict of tensors by name")
