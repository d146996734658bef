"""transformers' Trainer, and TRL's: a callback, and ``--optim saladamw`` for scripts as they are.

The names of optimizers are a closed enumeration there, and what builds them a private table: both
get new entries by :func:`register`. Everything else is done by callbacks. They are not given the
loss of a step: that of the model's output may be another one, as in DPO. So :func:`hear_losses`
takes what ``Trainer.training_step`` returns.
"""

import ast
import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from sal_optim.checkpoint.importance_file import check_place, path_text
from sal_optim.checkpoint.naming import names_of
from sal_optim.integrations import (
    OPTIMIZERS,
    logged,
    name_in_transformers,
    protection_of,
    required_protection,
)
from sal_optim.integrations.continual import Continual, announce, tell
from sal_optim.protection.base import Protection
from sal_optim.transfer import load_importance, save_importance

# Those of ``--optim_args`` that are no arguments of an optimizer.
IMPORTANCE_FROM, IMPORTANCE_TO = "importance_from", "importance_to"
# What got it: a Trainer that trains once more goes on with what its optimizer knows by now.
_loaded: WeakSet[Protection] = WeakSet()
# Whose checkpoints have names.
_named: WeakSet[Protection] = WeakSet()


# Losses of the batches of a step so far, as the Trainer adds them up, by whose they are.
_heard: MutableMapping[Protection, Tensor] = WeakKeyDictionary()


class Diagnostics(TrainerCallback):
    """Tells the loss of each step, and adds diagnostics to what the Trainer logs beside a loss.

    It does nothing without SAL. It belongs among the Trainer's default callbacks, before those of
    TensorBoard and others.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the file of ``--optim_args importance_from=PATH``, where a run begins."""
        protection = protection_of(kwargs.get("optimizer"))
        if protection is None:
            return
        given = _optim_args(args)
        if IMPORTANCE_TO in given:
            check_place(path_text(given[IMPORTANCE_TO]))
        fresh = protection not in _loaded and not _resumed(state, protection)
        if IMPORTANCE_FROM in given and fresh:
            load_importance(protection, given[IMPORTANCE_FROM], kwargs["model"])
            _loaded.add(protection)
        _keep_names(protection, kwargs["model"])
        _heard.pop(protection, None)  # of a training that failed

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say once what is protected, after all callbacks have begun."""
        protection = protection_of(kwargs.get("optimizer"))
        if protection is not None and state.is_world_process_zero:
            announce(protection)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the loss of this step."""
        protection = protection_of(kwargs["optimizer"])
        if protection is not None and protection in _heard:
            tell(protection, kwargs["model"], loss=_heard.pop(protection))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the file of ``--optim_args importance_to=PATH``."""
        protection = protection_of(kwargs.get("optimizer"))
        path = _optim_args(args).get(IMPORTANCE_TO)
        if protection is not None and path is not None:
            protection.consolidate()
            save_importance(protection, path, kwargs["model"])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add to what is logged, and to ``log_history``, which has it already."""
        logs, protection = kwargs["logs"], protection_of(kwargs.get("optimizer"))
        if protection is None or "loss" not in logs or "sal/protected" in logs:
            return
        found = logged(protection)
        logs.update(found)
        state.log_history[-1].update(found)


class SALCallback(Diagnostics):
    """For ``Trainer(callbacks=[SALCallback(…)])``, TRL's trainers too, with an optimizer of SAL.

    Data sets are those that the Trainer could train on, or DataLoaders. Make it before the Trainer,
    so that TensorBoard and others log what it measures.

    Args:
        loss: ``loss(model, batch)``; by default the ``loss`` of ``model(**batch)``.
        settings: those of :class:`sal_optim.integrations.continual.Continual`.
    """

    def __init__(
        self, *, loss: Callable[[Any, Any], Tensor] | None = None, **settings: Any
    ) -> None:
        self._continual = Continual(**settings)
        self._loss = loss or _own_loss
        self._ended = False
        log_first()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load, observe, and measure the probe."""
        super().on_train_begin(args, state, control, **kwargs)
        from accelerate.utils import send_to_device  # the Trainer has it, the registries need not

        model, loader = kwargs["model"], kwargs["train_dataloader"]
        self._ended = False

        def batches(data: Any) -> Iterable[Any]:
            made = data
            if not isinstance(data, DataLoader):
                made = DataLoader(
                    _of_columns(data, loader.dataset),
                    args.per_device_train_batch_size,
                    collate_fn=loader.collate_fn,
                )
            for batch in made:
                yield send_to_device(batch, args.device)

        self._continual.begin(
            required_protection(kwargs["optimizer"]),
            model,
            batches,
            lambda batch: self._loss(model, batch),
            resumed=_resumed(state, required_protection(kwargs["optimizer"])),
            clip=args.max_grad_norm or 0.0,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure; and end before the last checkpoint is written."""
        self._continual.stepped(state.global_step)
        if control.should_training_stop and not args.load_best_model_at_end:
            self._end()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the norm that the Trainer clipped, as often as it logs one, and log."""
        protection = protection_of(kwargs.get("optimizer"))
        if protection is not None:  # none before it trains, as in an evaluation
            tell(protection, kwargs["model"], norm=kwargs["logs"].get("grad_norm"))
        super().on_log(args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End, where the last step has not."""
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._continual.end()


def log_first() -> None:
    """Put :class:`Diagnostics` among the default callbacks of Trainers made from now on."""
    # Here, and not above: the registries are filled as the Trainer is imported, by this file.
    from transformers import trainer

    if Diagnostics not in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.append(Diagnostics)
        hear_losses(trainer.Trainer)


def hear_losses(cls: type) -> None:
    """Have a Trainer's steps add up the losses that they go back by, for its callbacks to tell.

    They are parts of the step's mean, or of its mean over processes, as the Trainer logs them.
    """
    inner = cls.training_step  # type: ignore[attr-defined]

    @functools.wraps(inner)
    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = inner(self, *args, **kwargs)
        protection = protection_of(self.optimizer)
        if protection is not None and isinstance(loss, Tensor):
            before = _heard.get(protection)
            _heard[protection] = loss if before is None else before.to(loss.device) + loss
        return loss

    cls.training_step = training_step  # type: ignore[attr-defined]


def register() -> None:
    """Open ``--optim`` to the family, and log its diagnostics beside the loss."""
    from transformers import trainer_optimizer
    from transformers.training_args import OptimizerNames

    name_in_transformers()
    for name, cls in OPTIMIZERS.items():
        trainer_optimizer._OPTIMIZER_HANDLERS[OptimizerNames(name)] = functools.partial(_build, cls)
    log_first()


def _build(cls: type, context: Any) -> tuple[type, dict[str, Any]]:
    """The class and its arguments, from ``TrainingArguments``."""
    kwargs = dict(context.optimizer_kwargs)
    if "eps" in inspect.signature(cls).parameters:  # Adam's; Lion's usual betas are not Adam's
        kwargs.update(context.adam_kwargs)
    for name, text in context.optim_args.items():
        if name not in (IMPORTANCE_FROM, IMPORTANCE_TO):
            kwargs[name] = _value(text)
    return cls, kwargs


def _of_columns(data: Any, trained: Any) -> Any:
    """A data set without the columns that the Trainer has removed from its own."""
    own, kept = getattr(data, "column_names", None), getattr(trained, "column_names", None)
    if not (own and kept and hasattr(data, "select_columns")):
        return data
    shared = [name for name in own if name in kept]
    if not shared:
        raise ValueError(
            f"Invalid data value: its columns are {list(own)}; data must have those that the "
            f"Trainer trains on, {list(kept)}, and is not tokenized as the Trainer's own"
        )
    return data.select_columns(shared)


def _own_loss(model: Any, batch: Any) -> Tensor:
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"Invalid loss value: None; batches are of type {type(batch).__name__} and no "
            "arguments of the model by name, so that loss must be a function loss(model, batch)"
        )
    output = model(**batch)
    if isinstance(output, dict) and "loss" not in output:
        raise ValueError(
            f"Invalid loss value: None; the model puts out {list(output)} and no loss, so that "
            "loss must be a function loss(model, batch)"
        )
    found: Tensor = output["loss"] if isinstance(output, dict) else output[0]
    return found


def _optim_args(args: Any) -> dict[str, str]:
    pairs = (pair.split("=", 1) for pair in (args.optim_args or "").split(",") if "=" in pair)
    return {name.strip(): value.strip() for name, value in pairs}


def _resumed(state: Any, protection: Protection) -> bool:
    """Whether a run goes on with its optimizer's state: a checkpoint may be of weights alone."""
    return bool(state.global_step) and bool(protection.controller.optimizer.state)


def _value(text: str) -> Any:
    """A number, a flag or a name, from the command line."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _keep_names(protection: Protection, model: Any) -> None:
    """Have checkpoints hold names, which the Trainer leaves out of the groups.

    They are not put into the groups themselves: torch would refuse a group without names that is
    added while training.
    """
    if protection in _named:
        return
    _named.add(protection)

    def name(optimizer: Any, state_dict: dict[str, Any]) -> None:
        groups, saved = optimizer.param_groups, state_dict["param_groups"]
        if any("param_names" in group for group in groups):
            return
        with contextlib.suppress(ValueError):  # parameters that are not the model's
            names = names_of(groups, model)
            for group, found in zip(groups, saved, strict=True):
                found["param_names"] = [names[param] for param in group["params"]]

    protection.controller.optimizer.register_state_dict_post_hook(name)
