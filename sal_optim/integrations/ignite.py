"""Ignite: a handler that attaches itself to a trainer's engine."""

from collections.abc import Callable, Mapping
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor, nn

from sal_optim.integrations import logged, required_protection
from sal_optim.integrations.continual import Continual


class SALHandler:
    """``SALHandler(optimizer, model, loss, …).attach(trainer)``.

    ``engine.state.metrics`` has the diagnostics, and with a probe ``sal/old_loss``: so has whatever
    logs metrics. Data are DataLoaders, or other iterables of batches.

    Args:
        optimizer: one of SAL.
        model: that is trained.
        loss: ``loss(model, batch)``.
        every: iterations from one update of the metrics to the next.
        settings: those of :class:`sal_optim.integrations.continual.Continual`.
    """

    def __init__(
        self,
        optimizer: object,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        *,
        every: int = 1,
        **settings: Any,
    ) -> None:
        self._protection = required_protection(optimizer)
        self._model, self._loss, self._every = model, loss, every
        self._continual = Continual(**settings)

    def attach(self, engine: Engine) -> None:
        """Attach all of it to an engine that trains; before handlers that log."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stepped)
        engine.add_event_handler(Events.COMPLETED, self._end)

    def _begin(self, engine: Engine) -> None:
        self._continual.begin(
            self._protection,
            self._model,
            lambda data: data,
            lambda batch: self._loss(self._model, batch),
            resumed=engine.state.iteration > 0,
        )
        self._report(engine)

    def _stepped(self, engine: Engine) -> None:
        output = engine.state.output
        loss = output.get("loss") if isinstance(output, Mapping) else output
        measured = self._continual.stepped(engine.state.iteration, loss=loss)
        if measured or engine.state.iteration % self._every == 0:
            self._report(engine)

    def _end(self, engine: Engine) -> None:
        self._continual.end()
        self._report(engine)

    def _report(self, engine: Engine) -> None:
        engine.state.metrics.update(logged(self._protection))
