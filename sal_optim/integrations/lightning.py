"""Lightning: a callback, and a monitor that attaches itself to every Trainer.

The optimizer itself needs no integration: ``--optimizer=sal_optim.SALAdamW`` in LightningCLI.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from sal_optim.integrations import logged, protection_of
from sal_optim.integrations.continual import Continual, announce


class Monitor(Callback):
    """Logs the diagnostics of each protected optimizer, as often as the Trainer logs."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Say once what is protected."""
        for optimizer in trainer.optimizers:
            protection = protection_of(optimizer)
            if protection is not None and trainer.is_global_zero:
                announce(protection)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Log."""
        # Lightning's own count: global_step has those of all optimizers.
        stepped = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
        if stepped % max(1, trainer.log_every_n_steps):
            return
        if type(self) is Monitor and any(isinstance(c, SALCallback) for c in trainer.callbacks):
            return  # that one logs
        for index, optimizer in enumerate(trainer.optimizers):
            protection = protection_of(optimizer)
            if protection is not None:
                suffix = f"-{index}" if len(trainer.optimizers) > 1 else ""
                found = logged(protection)
                pl_module.log_dict({f"{name}{suffix}": value for name, value in found.items()})


class SALCallback(Monitor):
    """For ``Trainer(callbacks=[SALCallback(…)])``, with one optimizer of SAL.

    Data are DataLoaders, or other iterables of batches.

    Args:
        loss: ``loss(pl_module, batch)``; by default the module's ``training_step``, whose own
            logging and metrics of torchmetrics are left out. Give it where ``training_step`` keeps
            anything else, such as a list of its losses, or returns no loss for some batches.
        settings: those of :class:`sal_optim.integrations.continual.Continual`.
    """

    def __init__(
        self, *, loss: Callable[[LightningModule, Any], Tensor] | None = None, **settings: Any
    ) -> None:
        self._continual = Continual(**settings)
        self._loss = loss
        self._ended = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load, observe, and measure the probe."""
        self._ended = False
        found = [protection_of(optimizer) for optimizer in trainer.optimizers]
        protected = [protection for protection in found if protection is not None]
        if len(protected) != 1 or (self._loss is None and not pl_module.automatic_optimization):
            raise ValueError(
                f"Invalid optimizers value: {len(protected)} of them are of sal_optim; SALCallback "
                "needs exactly one, and where optimization is not automatic, its argument loss"
            )

        # Lightning hands on the number of a batch only where it is asked for.
        numbered = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)

        def placed(batch: Any) -> Any:
            # As Lightning's own loop does it.
            made = trainer.precision_plugin.convert_input(batch)
            made = pl_module._on_before_batch_transfer(made, dataloader_idx=0)
            return trainer.strategy.batch_to_device(made)

        def loss(batch: Any) -> Tensor:
            with trainer.precision_plugin.train_step_context():
                if self._loss is not None:
                    return self._loss(pl_module, batch)
                with _muted(pl_module):
                    found = pl_module.training_step(batch, *([0] if numbered else []))
            return found["loss"] if isinstance(found, dict) else found  # type: ignore[no-any-return]

        self._continual.begin(
            protected[0],
            pl_module,
            lambda data: map(placed, data),
            loss,
            # A second fit() goes on counting steps, with a new optimizer.
            resumed=trainer.global_step > 0 and bool(protected[0].controller.optimizer.state),
            clip=trainer.gradient_clip_val or 0.0,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any = None, *_: Any, **__: Any
    ) -> None:
        """Tell the loss, measure, and log."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and pl_module.automatic_optimization:
            loss = loss * trainer.accumulate_grad_batches  # which Lightning has divided it by
        self._continual.stepped(trainer.global_step, loss=loss)
        super().on_train_batch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End before the checkpoint of the last epoch is written."""
        if trainer.fit_loop.done:
            self._end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End, where the last epoch has not."""
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._continual.end()


def callbacks() -> list[Callback]:
    """The entry point ``lightning.pytorch.callbacks_factory``."""
    return [Monitor()]


@contextlib.contextmanager
def _muted(pl_module: LightningModule) -> Iterator[None]:
    """Within, the module logs nothing and its metrics count nothing: this is no training."""
    metrics = [m for m in pl_module.modules() if isinstance(m, Metric)]
    kept = [(vars(metric), copy.deepcopy(vars(metric))) for metric in metrics]
    names = ("log", "log_dict")
    for name in names:
        vars(pl_module)[name] = lambda *_, **__: None
    try:
        yield
    finally:
        for name in names:
            vars(pl_module).pop(name, None)
        for own, before in kept:
            own.update(before)
