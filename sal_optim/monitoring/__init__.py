"""What shows and records a run: writers of diagnostics, a live view, a report, pictures.

It reads the protection and never changes it. Each is imported when it is first asked for;
``import sal_optim`` imports none of them. The report is ``sal_optim.report``.
"""

from typing import TYPE_CHECKING

from sal_optim.utils.lazy_import import lazy_names

__all__ = ["CSVWriter", "LiveView", "Recorder", "TensorBoardWriter", "plot"]

if TYPE_CHECKING:
    from sal_optim.monitoring import plot
    from sal_optim.monitoring.live_view import LiveView
    from sal_optim.monitoring.writers import CSVWriter, Recorder, TensorBoardWriter
else:
    _NAMES = {
        "live_view": ["LiveView"],
        "plot": ["plot"],
        "writers": ["CSVWriter", "Recorder", "TensorBoardWriter"],
    }
    __getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
