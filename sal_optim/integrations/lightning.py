"""Lightning: a monitor that attaches itself to every Trainer, and does nothing without SAL.

The optimizer itself needs no integration: ``--optimizer=sal_optim.SALAdamW`` in LightningCLI.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from sal_optim.integrations import logged, protection_of


class Monitor(Callback):
    """Logs the diagnostics of each protected optimizer, as often as the Trainer logs."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        if trainer.global_step % max(1, trainer.log_every_n_steps):
            return
        for index, optimizer in enumerate(trainer.optimizers):
            protection = protection_of(optimizer)
            if protection is not None:
                suffix = f"-{index}" if len(trainer.optimizers) > 1 else ""
                found = logged(protection)
                pl_module.log_dict({f"{name}{suffix}": value for name, value in found.items()})


def callbacks() -> list[Callback]:
    """The entry point ``lightning.pytorch.callbacks_factory``."""
    return [Monitor()]
