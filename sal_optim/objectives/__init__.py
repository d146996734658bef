"""Terms of a loss, for any optimizer: self-modelling, a floor of the rank, channels with budgets.

Each is imported when it is first asked for; ``import sal_optim`` imports none of them. What looks
at a run without changing it is in ``sal_optim.monitors``.
"""

import importlib
from typing import TYPE_CHECKING

__all__ = ["Channels", "SelfModel", "ablate", "necessity_gap", "rank_floor_loss"]

if TYPE_CHECKING:
    from sal_optim.objectives.ablation import ablate, necessity_gap
    from sal_optim.objectives.channels import Channels
    from sal_optim.objectives.rank import rank_floor_loss
    from sal_optim.objectives.self_model import SelfModel
else:
    _LATER = {
        "Channels": "channels",
        "SelfModel": "self_model",
        "ablate": "ablation",
        "necessity_gap": "ablation",
        "rank_floor_loss": "rank",
    }

    def __getattr__(name: str) -> object:
        if name in _LATER:
            return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
