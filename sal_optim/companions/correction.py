"""``Correction``: at an alarm the learning rate falls, and data are drawn from safer sources.

When to alarm is another's to say (``spectral.py``, or a threshold on a gradient norm), and what
makes a batch unsafe is the caller's. It draws no data: it says with which weights to draw.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sal_optim.companions.spectral import halve_lr
from sal_optim.utils import checks


class Correction:
    """Halves the learning rate and sharpens the weights of sources, each time that it is called.

    It is called by what alarms, as ``SpectralMonitor(..., alarm=Correction(...))``. The weight of
    a source whose running mean of risk is r is

        w ∝ exp(-s · (r - mean(r)) / SD(r)),        s = sharpness · alarms

    so that weights are even until the first alarm. Sources that were not seen yet have the mean
    risk. Outside of an alarm it changes nothing, and a step costs one addition by source seen.

    Args:
        optimizer: whose learning rates are halved, or None to leave them as they are.
        sources: number of sources that data come from, such as files or shards; or 0 to leave the
            weights out.
        sharpness: added to s at each alarm, above 0.
        memory: decay of the running mean of risk, in [0, 1).
        lowest: below which no learning rate is halved, at least 0.
    """

    def __init__(
        self,
        optimizer: Optimizer | None,
        sources: int = 0,
        *,
        sharpness: float = 1.0,
        memory: float = 0.9,
        lowest: float = 0.0,
    ) -> None:
        lowest = checks.number("lowest", lowest)
        self._halve = halve_lr(optimizer, lowest) if optimizer is not None else None
        self.sources = checks.whole("sources", sources, low=0)
        self.sharpness = checks.number("sharpness", sharpness, low_open=True)
        self.memory = checks.number("memory", memory, high=1.0)
        self.alarms = 0
        self._sums = torch.zeros(self.sources, dtype=torch.float64)
        self._counts = torch.zeros(self.sources, dtype=torch.float64)

    def __call__(self, monitor: Any = None) -> None:
        """An alarm. What it is given, as a monitor gives itself, is for ``halve_lr``."""
        self.alarms += 1
        if self._halve is not None:
            self._halve(monitor)

    def see(self, source: int, risk: float | Tensor) -> None:
        """The risk of a batch, or of a sample, of a source; higher is worse.

        Args:
            source: from 0 to ``sources - 1``.
            risk: finite, in any unit, such as |loss - median loss|, or a rate of repetition.
        """
        allowed = f"source must be a whole number from 0, below the {self.sources} sources"
        place = checks.whole("source", source, low=0, high=self.sources - 1, allowed=allowed)
        value = checks.number("risk", risk, low=-float("inf"))
        self._sums[place] = self.memory * self._sums[place] + value
        self._counts[place] = self.memory * self._counts[place] + 1.0

    def risks(self) -> Tensor:
        """The running mean of each source's risk, in float64; of unseen ones, the mean of the
        others."""
        seen = self._counts > 0.0
        found = self._sums / self._counts.clamp_min(1e-12)
        mean = found[seen].mean() if bool(seen.any()) else torch.zeros((), dtype=torch.float64)
        return torch.where(seen, found, mean)

    def weights(self) -> Tensor:
        """Weights to draw sources with, in float64, of sum 1."""
        risks = self.risks()
        spread = risks.std(correction=0) if self.sources else risks.sum()
        if not self.alarms or float(spread) <= 1e-12:
            return torch.full_like(risks, 1.0 / max(1, self.sources))
        scaled = (risks - risks.mean()) / spread
        return torch.softmax(-self.sharpness * self.alarms * scaled, 0)

    def state_dict(self) -> dict[str, Any]:
        """Alarms and running means; learning rates are in the optimizer's state."""
        return {"alarms": self.alarms, "sums": self._sums.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            TypeError: it is no dict.
            ValueError: something is missing, or it is of another number of sources.
        """
        checks.saved(state_dict, {"alarms": int, "sums": Tensor, "counts": Tensor})
        for name in ("sums", "counts"):
            found = state_dict[name]
            if found.shape != (self.sources,) or not bool(found.isfinite().all()):
                raise ValueError(
                    f"Invalid state_dict value: {name} of {found.numel()} sources, "
                    f"{found.tolist()!r:.80}; they must be {self.sources} finite numbers"
                )
        self.alarms = checks.whole("alarms", state_dict["alarms"], low=0)
        self._sums = state_dict["sums"].to(torch.float64, copy=True)
        self._counts = state_dict["counts"].to(torch.float64, copy=True)
