"""fastai: a callback; the optimizer is ``partial(OptimWrapper, opt=SALAdamW)``."""

from collections.abc import Iterable
from typing import Any

from fastai.callback.core import Callback
from fastai.learner import ValueMetric
from fastai.torch_core import to_device
from torch import Tensor

from sal_optim.integrations import logged, required_protection
from sal_optim.integrations.continual import Continual

# In the table of epochs; the others are in ``diagnostics()``.
_SHOWN = ("protected", "consolidations")


class SALCallback(Callback):
    """For ``Learner(cbs=SALCallback(…))``. Data are DataLoaders of inputs and targets.

    Before the first fit it loads and observes; after each fit it restores, consolidates and saves.
    The table of epochs has ``sal/protected``, ``sal/consolidations`` and, with a probe, the
    ``sal/old_loss``.

    Args:
        settings: those of :class:`sal_optim.integrations.continual.Continual`.
    """

    order = 40  # before the Recorder, which takes the names of the table's columns

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._continual = Continual(**settings)
        self._begun = False

    def before_fit(self) -> None:
        """Load, observe, and measure the probe; not where predictions or a rate are looked for."""
        learn = self.learn
        self.run = not hasattr(learn, "lr_finder") and not hasattr(learn, "gather_preds")
        if not self.run:
            return
        self._steps = 0

        def batches(data: Any) -> Iterable[Any]:
            for batch in data:
                yield to_device(tuple(batch), next(learn.model.parameters()).device)

        def loss(batch: Any) -> Tensor:
            cut = getattr(learn.dls, "n_inp", len(batch) - 1)
            found: Tensor = learn.loss_func(learn.model(*batch[:cut]), *batch[cut:])
            return found

        self._continual.begin(
            required_protection(learn.opt), learn.model, batches, loss, resumed=self._begun
        )
        names = [*_SHOWN, *(["old_loss"] if self._continual.probed is not None else [])]
        shown = {metric.name for metric in learn.metrics}
        new = [name for name in names if f"sal/{name}" not in shown]
        learn.metrics = [*learn.metrics, *map(self._metric, new)]
        self._begun = True
        learn.remove_cb(_End)  # of a fit that failed
        learn.add_cb(_End(self._continual))

    def after_batch(self) -> None:
        """Tell the loss, and measure."""
        if self.training:
            self._steps += 1
            self._continual.stepped(self._steps, loss=self.loss)

    def _metric(self, name: str) -> ValueMetric:
        learn = self.learn
        return ValueMetric(
            lambda: logged(required_protection(learn.opt))[f"sal/{name}"], f"sal/{name}"
        )


class _End(Callback):
    """Restores, consolidates and saves, once SaveModelCallback has loaded what was best."""

    order = 70

    def __init__(self, continual: Continual) -> None:
        super().__init__()
        self._continual = continual

    def after_fit(self) -> None:
        """End, and leave the Learner."""
        self.learn.remove_cb(self)
        self._continual.end()
