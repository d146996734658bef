"""Terms of a loss, for any optimizer: self-modelling, a floor of the rank, channels with budgets.

Each is imported when it is first asked for; ``import sal_optim`` imports none of them. What looks
at a run without changing it is in ``sal_optim.monitors``.
"""

from typing import TYPE_CHECKING

from sal_optim.utils.lazy_import import lazy_names

__all__ = ["Channels", "SelfModel", "ablate", "necessity_gap", "rank_floor_loss"]

if TYPE_CHECKING:
    from sal_optim.objectives.ablation import ablate, necessity_gap
    from sal_optim.objectives.channels import Channels
    from sal_optim.objectives.rank import rank_floor_loss
    from sal_optim.objectives.self_model import SelfModel
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Channels": "channels",
            "SelfModel": "self_model",
            "ablate": "ablation",
            "necessity_gap": "ablation",
            "rank_floor_loss": "rank",
        },
        globals(),
    )
