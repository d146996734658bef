"""sal_optim: PyTorch optimizers that forget less.

Drop-in replacements for Adam, AdamW, SGD and Lion that keep evidence of what was learned, notice by
themselves when the data changes, and protect what the old data rests on.
"""

from sal_optim._version import __version__
from sal_optim.adam import SALAdam, SALAdamW
from sal_optim.communication import CommunicationLayer
from sal_optim.lion import SALLion
from sal_optim.optimizer import SALOptimizer
from sal_optim.sgd import SALSGD

__all__ = [
    "SALSGD",
    "CommunicationLayer",
    "SALAdam",
    "SALAdamW",
    "SALLion",
    "SALOptimizer",
    "__version__",
]
