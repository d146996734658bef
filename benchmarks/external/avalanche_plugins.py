"""Avalanche's own methods as plugins of a strategy, by the names of our suite.

Its SI does nothing on a CPU as it comes, because its anchor is a view of the weights; here the
weights are copied. The rest is Avalanche's.
"""

from __future__ import annotations

from typing import Any


def copying_si(strength: float) -> Any:
    """Avalanche's SI with the anchor and the path's start copied from the weights."""
    from avalanche.training import plugins

    class Copying(plugins.SynapticIntelligencePlugin):  # type: ignore[misc]
        """Its anchor and its path's start are views of the weights on a CPU: all it does is 0."""

        def before_training_iteration(self, strategy: Any, **more: Any) -> None:
            super().before_training_iteration(strategy, **more)
            self._copy(self.syn_data["old_theta"], self.ewc_data[0])

        def before_training_exp(self, strategy: Any, **more: Any) -> None:
            super().before_training_exp(strategy, **more)
            self._copy(self.ewc_data[0])

        @staticmethod
        def _copy(*kept: Any) -> None:
            for values in kept:
                for value in values.values():
                    value.data = value.data.clone()

    return Copying(strength)


def plugins_of(method: str, strength: float) -> list[Any]:
    """The plugins of a method; none for a plain optimizer. `strength` is as Avalanche has it."""
    from avalanche.training import plugins

    made = {
        "ewc": lambda: plugins.EWCPlugin(strength),
        "si": lambda: copying_si(strength),
        "mas": lambda: plugins.MASPlugin(lambda_reg=strength),
        "lwf": lambda: plugins.LwFPlugin(alpha=strength),
    }
    return [made[method]()] if method in made else []
