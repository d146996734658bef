"""``HealthLine`` and ``SpectrumRows``: what a ``SpectralMonitor`` measured, live and for later.

Both are given to the monitor as ``measured=``. They draw no picture: that is ``pictures.py``.
"""

import sys
from typing import TextIO

from sal_optim.companions.spectral import STATES, SpectralMonitor
from sal_optim.utils import checks

_COLORS = dict(zip(STATES, ("\033[32m", "\033[33m", "\033[31m"), strict=True))
_PLAIN, _CLEAR = "\033[0m", "\r\033[2K"


class HealthLine:
    """One line in the terminal that is written anew: step, state, and rank by layer.

    A line stays where the state has changed, so that a run's changes can be read afterwards. Where
    the stream is no terminal, only those lines are written, without colors. A stream that was
    closed is left alone.

    Args:
        stream: where it is written. Default: standard error.
        width: columns that a line has at most, from 20.
    """

    def __init__(self, stream: TextIO | None = None, width: int = 100) -> None:
        self._width = checks.whole("width", width, low=20)
        self._stream = sys.stderr if stream is None else stream
        allowed = "a method of stream, which must be None or a text stream"
        for name in ("write", "flush", "isatty"):
            checks.function(f"stream.{name}", getattr(self._stream, name, None), allowed)
        self._state: str | None = None

    def __call__(self, monitor: SpectralMonitor) -> None:
        """Show what the monitor measured last."""
        state, line = monitor.state, health(monitor)[: self._width]
        changed, self._state = state != self._state, state
        try:
            if self._stream.isatty():
                shown = line.replace(state, f"{_COLORS[state]}{state}{_PLAIN}", 1)
                self._stream.write(f"{_CLEAR}{shown}" + ("\n" if changed else ""))
            elif changed:
                self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):
            # The terminal is gone; a run does not end for it.
            return


class SpectrumRows(list[dict[str, float]]):
    """A list that each measurement is added to: ``step`` and ``monitor.diagnostics()``."""

    def __call__(self, monitor: SpectralMonitor) -> None:
        """Add what the monitor measured last."""
        self.append({"step": float(monitor.steps), **monitor.diagnostics()})


def health(monitor: SpectralMonitor) -> str:
    """Step, state and rank relative to the start, such as ``step 300  drifting  1: rank 0.71``."""
    ranks = [
        f"{name}: rank {monitor.relative(name)['rankme']:.2f}"
        for name in monitor.states
        if monitor.relative(name)
    ]
    return "  ".join([f"step {monitor.steps}", monitor.state, *ranks])
