"""What one training run learned, for the next: importance and anchors in a small file.

People fine-tune by one run after the other, each with an optimizer of its own. The second run
begins without importance unless it is handed over. A whole checkpoint does that too, where the
next optimizer has the same parameters; this file is smaller, fits by name, and moves importance of
sharded matrices to any number of processes.
"""

import os
from typing import NamedTuple

import torch
from torch import nn

from sal_optim.checkpoint import checkpoint_folder
from sal_optim.checkpoint.importance_file import path_text, put, read, write
from sal_optim.checkpoint.naming import names_of
from sal_optim.monitoring.lookup import required_protection
from sal_optim.sharding.dtensor import real_shape
from sal_optim.utils.warning import warn


class Loaded(NamedTuple):
    """What :func:`load_importance` has done, by names of parameters."""

    loaded: list[str]  # have the file's importance now
    new: list[str]  # of the optimizer, and not in the file: nothing protects them yet
    unused: list[str]  # in the file, and not used (with ``strict=False``)


def save_importance(
    optimizer: object, path: str | os.PathLike[str], model: nn.Module | None = None
) -> None:
    """Write importance and anchors to a safetensors file, by name, not the base optimizer's state.

    Call ``consolidate()`` before, so that the last steps count. Where parameters are sharded
    (DTensor), every process must call this; the first one writes, and holds the whole on the host.

    Args:
        optimizer: one of the family, a ``CommunicationLayer``, or the optimizer inside of one, also
            in Accelerate's, fastai's or Lightning's wrapper.
        path: of the file, such as ``importance.safetensors``, in a folder that exists.
        model: the module that holds the parameters. Not needed where the optimizer was made of
            ``model.named_parameters()``.

    Raises:
        RuntimeError: the process that writes has failed, and this is another one.
        ValueError: nothing is consolidated yet, or names are missing.
    """
    controller = required_protection(optimizer).controller
    controller.settle()  # what is underway arrives
    write(controller, names_of(controller.optimizer.param_groups, model), path_text(path))


def load_importance(
    optimizer: object,
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    strict: bool = True,
) -> Loaded:
    """Protect what an earlier run learned: its importance and anchors, from a file.

    Protection has its whole strength from the next step on. The weights should be those that the
    earlier run ended with: this reads none. Nothing is changed when an error is raised. The number
    of processes may be another one: importance of sharded matrices is then given other blocks.

    Args:
        optimizer: as of :func:`save_importance`; before its first step, or later.
        path: of a file that :func:`save_importance` wrote; or of the folder of a checkpoint that
            ``torch.distributed.checkpoint`` wrote of an optimizer's state dict. Numbers in such a
            one are unpickled, as torch does: read none from a source that you don't trust.
        model: as of :func:`save_importance`.
        strict: whether all that the file holds must fit. Parameters that it does not hold, such as
            those of a new head, begin without importance in any case.

    Returns:
        Names, as a tuple of three lists: ``loaded`` have importance now, ``new`` are not in the
        file, and ``unused`` are in the file alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names are missing, or something in the file does not fit; the message names it.
    """
    controller = required_protection(optimizer).controller
    text = path_text(path)
    controller.settle()
    names = names_of(controller.optimizer.param_groups, model)
    folder = os.path.isdir(text)
    shapes = {name: real_shape(param) for param, name in names.items()} if folder else {}
    content = checkpoint_folder.read(text, shapes) if folder else read(text)
    with torch.inference_mode(False):  # or the state could not be trained with
        loaded = put(controller, names, content, strict=strict)
    if all(group["protection"] == 0.0 for group in controller.groups):
        warn("load_importance() has loaded what protection=0 does not protect; set a protection")
    known = set(loaded)
    return Loaded(
        loaded,
        [name for name in names.values() if name not in known],
        [name for name in content.tensors if name not in known],
    )
