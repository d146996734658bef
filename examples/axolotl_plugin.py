"""An Axolotl plugin that gives its trainer SALAdamW, and its log the diagnostics."""

from typing import Any

from axolotl.integrations.base import BasePlugin

from sal_optim import SALAdamW
from sal_optim.integrations import register


class SALPlugin(BasePlugin):
    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        register()
        settings = {"lr": cfg.learning_rate, "protection": 10.0}
        trainer.optimizer_cls_and_kwargs = (SALAdamW, settings)
