"""Avalanche: a plugin for strategies, which knows where an experience ends."""

from collections.abc import Iterable
from typing import Any

from avalanche.evaluation.metric_results import MetricValue
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.utils.data import DataLoader

from sal_optim.integrations import logged, required_protection
from sal_optim.integrations.continual import Continual
from sal_optim.protection.growing import grows


class SALPlugin(SupervisedPlugin):
    """For ``Naive(plugins=[SALPlugin(…)], …)`` and other strategies, with an optimizer of SAL.

    The end of each experience is declared as the end of a task. After each epoch the strategy's
    loggers have the diagnostics and, with a probe, ``sal/old_loss``. The rows of a last layer that
    grows (``IncrementalClassifier``) keep what is known of them. Data are DataLoaders or data
    sets of Avalanche, of inputs, targets and task labels.

    Args:
        settings: those of :class:`sal_optim.integrations.continual.Continual`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._continual = Continual(**settings)
        self._begun = False
        # What the optimizer had of each parameter when the last experience ended.
        self._known: dict[str, tuple[Tensor, dict[str, Any]]] = {}

    def before_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Load, observe, and measure the probe: the strategy has emptied the optimizer by now."""

        def batches(data: Any) -> Iterable[Any]:
            made = data
            if not isinstance(data, DataLoader):
                collate = getattr(data, "collate_fn", None)
                made = DataLoader(data, strategy.train_mb_size, collate_fn=collate)
            for batch in made:
                yield [value.to(strategy.device) for value in batch]

        def loss(batch: Any) -> Tensor:
            found: Tensor = strategy._criterion(strategy.model(batch[0]), batch[1])
            return found

        protection = required_protection(strategy.optimizer)
        for name, param in strategy.model.named_parameters():
            old, state = self._known.pop(name, (param, {}))
            # Avalanche gives the parameter of a last layer that has grown an empty state. One that
            # has changed otherwise begins anew.
            if old.shape != param.shape and grows(old, param):
                protection.controller.take_over(old, state, param)
        self._continual.begin(
            protection,
            strategy.model,
            batches,
            loss,
            resumed=self._begun or strategy.clock.train_exp_counter > 0,
        )
        self._begun = True

    def after_training_iteration(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Tell the loss, and measure."""
        self._continual.stepped(strategy.clock.train_iterations, loss=strategy.loss)

    def after_training_epoch(self, strategy: Any, *_: Any, **__: Any) -> list[MetricValue]:
        """Publish the diagnostics."""
        found = logged(required_protection(strategy.optimizer))
        step = strategy.clock.train_iterations
        values = [MetricValue(self, name, value, step) for name, value in found.items()]
        for value in values:
            strategy.evaluator.publish_metric_value(value)
        return values

    def after_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Restore, consolidate, save."""
        self._continual.end()
        state = strategy.optimizer.state
        self._known = {n: (p, state[p]) for n, p in strategy.model.named_parameters() if p in state}
