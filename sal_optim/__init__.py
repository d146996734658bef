"""sal_optim: PyTorch optimizers that forget less.

Drop-in replacements for Adam, AdamW, SGD, Lion and Muon that estimate which weights earlier data
depends on, notice by themselves when the data changes, and protect these weights softly.
"""

from typing import TYPE_CHECKING

from sal_optim._moved import MOVED, install, old_module
from sal_optim._version import __version__
from sal_optim.adam import SALAdam, SALAdamW
from sal_optim.layer import CommunicationLayer
from sal_optim.lion import SALLion
from sal_optim.muon import SALMuon
from sal_optim.optimizer import SALOptimizer
from sal_optim.sgd import SALSGD
from sal_optim.utils.lazy_import import lazy_names

__all__ = [
    "SALSGD",
    "CommunicationLayer",
    "LiveView",
    "SALAdam",
    "SALAdamW",
    "SALLion",
    "SALMuon",
    "SALOptimizer",
    "__version__",
    "load_importance",
    "monitors",
    "plot",
    "report",
    "save_importance",
    "writers",
]

install()
if TYPE_CHECKING:
    from sal_optim import companions as companions
    from sal_optim import companions as monitors
    from sal_optim import monitoring as monitoring
    from sal_optim.monitoring import plot, writers
    from sal_optim.monitoring.live_view import LiveView
    from sal_optim.monitoring.report import report
    from sal_optim.transfer import load_importance, save_importance
else:
    # What is used beside an optimizer.
    _NAMES = {
        "companions": ["companions"],
        "monitoring": ["monitoring"],
        "monitoring.live_view": ["LiveView"],
        "monitoring.report": ["report"],
        "transfer": ["load_importance", "save_importance"],
    }
    _lazy, __dir__ = lazy_names(__name__, _NAMES, globals())

    def __getattr__(name: str) -> object:
        return old_module(name) if name in MOVED else _lazy(name)
