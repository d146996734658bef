"""transformers' Trainer, and TRL's: ``--optim saladamw --optim_args protection=0.1``.

The names of optimizers are a closed enumeration there, and what builds them a private table: both
get new entries. Diagnostics are added to what the Trainer logs, so that they reach the progress
bar, TensorBoard and ``log_history`` alike.
"""

import ast
import functools
import inspect
from typing import Any

from sal_optim.integrations import OPTIMIZERS, logged, protection_of


def register() -> None:
    """Open ``--optim`` to the family, and log its diagnostics beside the loss."""
    from transformers import trainer, trainer_optimizer
    from transformers.training_args import OptimizerNames

    for name, cls in OPTIMIZERS.items():
        if name not in OptimizerNames._value2member_map_:
            member = str.__new__(OptimizerNames, name)
            member._name_, member._value_ = name.upper(), name
            OptimizerNames._member_names_.append(name.upper())
            OptimizerNames._member_map_[name.upper()] = member
            OptimizerNames._value2member_map_[name] = member
        trainer_optimizer._OPTIMIZER_HANDLERS[OptimizerNames(name)] = functools.partial(_build, cls)
    if not hasattr(trainer.Trainer.log, "__wrapped__"):
        trainer.Trainer.log = _with_diagnostics(trainer.Trainer.log)


def _build(cls: type, context: Any) -> tuple[type, dict[str, Any]]:
    """The class and its arguments, from ``TrainingArguments``."""
    kwargs = dict(context.optimizer_kwargs)
    if "eps" in inspect.signature(cls).parameters:  # Adam's; Lion's usual betas are not Adam's
        kwargs.update(context.adam_kwargs)
    kwargs.update({name: _value(text) for name, text in context.optim_args.items()})
    return cls, kwargs


def _value(text: str) -> Any:
    """A number, a flag or a name, from the command line."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _with_diagnostics(log: Any) -> Any:
    @functools.wraps(log)
    def wrapped(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        protection = protection_of(self.optimizer)
        if protection is not None and "loss" in logs:
            logs.update(logged(protection))
        return log(self, logs, *args, **kwargs)

    return wrapped
