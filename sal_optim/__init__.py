"""sal_optim: PyTorch optimizers that forget less.

Drop-in replacements for Adam, AdamW, SGD and Lion that keep evidence of what was learned, notice by
themselves when the data changes, and protect what the old data rests on.
"""

import importlib
from typing import TYPE_CHECKING

from sal_optim._version import __version__
from sal_optim.adam import SALAdam, SALAdamW
from sal_optim.communication import CommunicationLayer
from sal_optim.lion import SALLion
from sal_optim.optimizer import SALOptimizer
from sal_optim.sgd import SALSGD

__all__ = [
    "SALSGD",
    "CommunicationLayer",
    "LiveView",
    "SALAdam",
    "SALAdamW",
    "SALLion",
    "SALOptimizer",
    "__version__",
    "plot",
    "report",
]

if TYPE_CHECKING:
    from sal_optim import plot
    from sal_optim.live import LiveView
    from sal_optim.reporting import report
else:
    _LATER = {"LiveView": "live", "report": "reporting"}

    def __getattr__(name: str) -> object:
        """What looks at a run, imported when it is first asked for."""
        if name == "plot":
            return importlib.import_module("sal_optim.plot")
        if name in _LATER:
            return getattr(importlib.import_module(f"sal_optim.{_LATER[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
