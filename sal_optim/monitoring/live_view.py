"""``sal_optim.LiveView``: what the protection does, live in the terminal while a run goes on.

Between two refreshes a step costs a look at the clock and at one number. Pictures of a whole run
are made by ``plot.py``, a table of a model by ``report.py``.
"""

import contextlib
import math
import warnings
import weakref
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from sal_optim.monitoring import report
from sal_optim.monitoring.step_listener import StepListener
from sal_optim.utils import checks
from sal_optim.utils.lazy_import import extra_package

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Columns of the line of surprises and of the bars.
WIDTH = 40
_HEIGHTS = "▁▂▃▄▅▆▇█"
_COLORS = {"changing": "red", "consolidating": "magenta", "drifting": "yellow", "stable": "green"}
_SPECTRUM = {"protected": ("█", "blue"), "neutral": ("▒", "cyan"), "volatile": ("░", "yellow")}


class LiveView(StepListener):
    """Shows a run in the terminal: surprise, threshold, consolidations, spectrum, drift, state.

    It begins when it is made and ends with :meth:`remove`, or with its ``with`` block. What is
    printed meanwhile appears above it. Where there is no terminal, nothing is shown and nothing is
    done in a step. When the terminal goes away, the view warns and removes itself: a run does not
    end for it. Of several processes, one should show.

    Args:
        optimizer: one of the family, a ``CommunicationLayer``, or the optimizer inside of one.
        refresh: times a second that it is drawn anew at most, above 0.
        console: a ``rich.console.Console`` to draw on, such as that of a progress bar. Default:
            one for standard output.
    """

    def __init__(
        self, optimizer: object, refresh: float = 2.0, console: "Console | None" = None
    ) -> None:
        extra_package("rich", "sal_optim.LiveView needs", "report")
        from rich.console import Console
        from rich.live import Live

        allowed = "console must be None or a rich.console.Console"
        checks.kind("console", console, (Console, type(None)), allowed)
        self._interval = 1.0 / checks.number("refresh", refresh, low_open=True)
        super().__init__(optimizer)
        shown = console or Console()
        if not shown.is_terminal or shown.is_dumb_terminal:
            super().remove()
            return
        # Since the last refresh: the largest surprise, and whether a change was suspected.
        self._largest, self._suspected = 0.0, False
        self._surprises: deque[tuple[float, bool]] = deque(maxlen=WIDTH)
        self._seen = self._protection.controller.detector["consolidations"]
        self._last: int | None = None  # step of the last consolidation
        self._due = 0.0
        # Drawn by the steps themselves: a thread would read a state that is being changed.
        self._live = Live(console=shown, auto_refresh=False)
        try:
            self._live.start()
        except Exception:  # an older rich, where another display is live
            super().remove()
            raise
        # A cursor that is hidden must come back, however the run ends.
        self._finish = weakref.finalize(self, self._live.stop)

    def __enter__(self) -> "LiveView":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Draw for the last time and stop; what was shown stays. Calling it twice is harmless."""
        stopped = self._stopped
        super().remove()
        if not stopped:
            self._draw()
            self._stop()

    def _stepped(self) -> None:
        threshold = self._protection.controller.detector
        self._largest = max(self._largest, threshold["surprise"])
        self._suspected |= threshold["suspicion"] > 0.0
        if threshold["consolidations"] != self._seen:
            self._seen, self._last = threshold["consolidations"], self._step
            self._suspected = True
        if monotonic() >= self._due:
            self._surprises.append((self._largest, self._suspected))
            self._largest, self._suspected = 0.0, False
            self._draw()
            self._due = monotonic() + self._interval

    def _draw(self) -> None:
        try:
            self._live.update(self._picture(), refresh=True)
        except (OSError, ValueError) as error:  # a terminal or file that was closed
            super().remove()
            self._stop()
            warnings.warn(f"LiveView stops at step {self._step}: {error}", stacklevel=2)

    def _stop(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._finish()

    def _picture(self) -> "RenderableType":
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        found = self._protection.diagnostics()
        state = report.state_in_words(self._protection)
        surprises, spectrum = Text(), Text()
        for surprise, suspected in self._surprises:
            surprises.append(_HEIGHTS[_height(surprise)], _COLORS["changing"] if suspected else "")
        for kind, cells in zip(_SPECTRUM, _cells([found[k] for k in _SPECTRUM]), strict=True):
            block, color = _SPECTRUM[kind]
            spectrum.append(block * cells, color)
        last = "" if self._last is None else f", the last at step {self._last}"
        shares = ", ".join(f"{kind} {found[kind]:.0%}" for kind in _SPECTRUM)

        grid = Table.grid(padding=(0, 2))
        grid.add_row("step", str(self._step))
        grid.add_row("state", Text(state, f"bold {_COLORS[state]}"))
        grid.add_row("surprise", f"{found['surprise']:.2f}, threshold {found['threshold']:.2f}")
        grid.add_row("", surprises)
        grid.add_row("consolidations", f"{found['consolidations']:.0f}{last}")
        grid.add_row("spectrum", f"{shares}; mean gate {found['mean_gate']:.2f}")
        grid.add_row("", spectrum)
        grid.add_row("drift", f"{found['drift']:.1%} from the anchor")
        title = type(self._optimizer).__name__
        return Panel(grid, title=title, title_align="left", expand=False)


def _height(surprise: float) -> int:
    """Of a block: two for each doubling, 1 for a surprise of 1."""
    height = 2.0 * math.log2(surprise) + 1.0 if surprise > 0.0 else 0.0
    return max(0, min(len(_HEIGHTS) - 1, round(height)))


def _cells(shares: list[float]) -> list[int]:
    """Shares of 1 as parts of a bar of ``WIDTH`` cells, which they fill."""
    ends = [round(WIDTH * sum(shares[: index + 1])) for index in range(len(shares))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
