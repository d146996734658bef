"""What looks at a run without changing it: spectra of activations, drift, a map of shift.

Each is imported when it is first asked for; ``import sal_optim`` imports none of them. Terms of a
loss are in ``sal_optim.objectives``.
"""

from typing import TYPE_CHECKING

from sal_optim.utils.lazy_import import lazy_names

__all__ = [
    "Drift",
    "HealthLine",
    "SpectralMonitor",
    "SpectrumRows",
    "halve_lr",
    "horizon",
    "linear_cka",
    "plot_shift",
    "plot_spectra",
    "repetition_rate",
    "shift_map",
]

if TYPE_CHECKING:
    from sal_optim.monitors.drift import Drift, linear_cka
    from sal_optim.monitors.health import HealthLine, SpectrumRows
    from sal_optim.monitors.pictures import plot_shift, plot_spectra
    from sal_optim.monitors.repetition import horizon, repetition_rate
    from sal_optim.monitors.shift import shift_map
    from sal_optim.monitors.spectral import SpectralMonitor, halve_lr
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Drift": "drift",
            "HealthLine": "health",
            "SpectralMonitor": "spectral",
            "SpectrumRows": "health",
            "halve_lr": "spectral",
            "horizon": "repetition",
            "linear_cka": "drift",
            "plot_shift": "pictures",
            "plot_spectra": "pictures",
            "repetition_rate": "repetition",
            "shift_map": "shift",
        },
        globals(),
    )
