"""What looks at a run without changing it: spectra of activations, drift, a map of shift.

Each is imported when it is first asked for; ``import sal_optim`` imports none of them. Terms of a
loss are in ``sal_optim.objectives``.
"""

from typing import TYPE_CHECKING

from sal_optim.later import later

__all__ = ["Drift", "SpectralMonitor", "halve_lr", "linear_cka", "repetition_rate", "shift_map"]

if TYPE_CHECKING:
    from sal_optim.monitors.drift import Drift, linear_cka
    from sal_optim.monitors.repetition import repetition_rate
    from sal_optim.monitors.shift import shift_map
    from sal_optim.monitors.spectral import SpectralMonitor, halve_lr
else:
    __getattr__, __dir__ = later(
        __name__,
        {
            "Drift": "drift",
            "SpectralMonitor": "spectral",
            "halve_lr": "spectral",
            "linear_cka": "drift",
            "repetition_rate": "repetition",
            "shift_map": "shift",
        },
        globals(),
    )
