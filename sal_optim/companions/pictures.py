"""``plot_spectra`` and ``plot_shift``: pictures of a run's spectra and of a shift map.

They draw what ``SpectrumRows`` kept and what ``shift_map`` returned, and measure nothing.
matplotlib (extra ``plot``) is imported when the first picture is drawn.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sal_optim.companions.shift import ShiftMap
from sal_optim.utils import checks
from sal_optim.utils.canvas import new_figure
from sal_optim.utils.palette import SIGNAL, WARNING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = {"rankme_relative": "rank over its start", "top_share": "top share", "entropy": "entropy"}


def plot_spectra(rows: Iterable[Mapping[str, float]]) -> "Figure":
    """Draw rank, top share and entropy by layer over a run; a warning is marked by a line.

    Args:
        rows: as of ``SpectrumRows``: dicts of ``step`` and ``SpectralMonitor.diagnostics()``.

    Returns:
        A Figure: a notebook shows it, ``figure.savefig("spectra.png")`` keeps it.

    Raises:
        ValueError: there is no row, or one without ``step`` or numbers of a layer.
    """
    found = list(rows)
    layers = _layers(found)
    figure = new_figure(8.0, 6.0, "pictures need")
    steps = [row["step"] for row in found]
    for axes, (number, title) in zip(
        figure.subplots(len(_SHOWN), 1, sharex=True), _SHOWN.items(), strict=True
    ):
        for layer in layers:
            axes.plot(steps, [row[f"{layer}/{number}"] for row in found], label=layer)
        for step in _warnings(found, layers):
            axes.axvline(step, color=WARNING, linewidth=0.9, linestyle="--")
        axes.set_ylabel(title)
        axes.margins(x=0.0)
        axes.set_ylim(bottom=0.0)
    axes.set_xlabel("step")
    figure.axes[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def plot_shift(found: ShiftMap) -> "Figure":
    """Draw a shift map: novelty against agreement beyond its null, what is flagged in red."""
    checks.kind("found", found, ShiftMap, "found must be what shift_map returned")
    figure = new_figure(5.0, 4.0, "pictures need")
    axes = figure.subplots()
    beyond, flagged = (found.agreement - found.null).cpu(), found.flagged.cpu()
    for wanted, color, label in ((False, SIGNAL, "not flagged"), (True, WARNING, "flagged")):
        which = flagged == wanted
        points = found.novelty.cpu()[which].tolist(), beyond[which].tolist()
        axes.scatter(*points, s=12, color=color, label=f"{label}, {int(which.sum())}")
    axes.axvline(1.0, color="0.6", linewidth=0.8)
    axes.axhline(0.0, color="0.6", linewidth=0.8)
    axes.set_xlabel("novelty (known samples are below 1)")
    axes.set_ylabel("agreement beyond the noise null")
    axes.legend(frameon=False)
    return figure


def _layers(rows: list[Any]) -> list[str]:
    allowed = (
        "rows must be dicts of step and SpectralMonitor.diagnostics(), as SpectrumRows keeps them"
    )
    if not rows:
        raise ValueError(f"Invalid rows value: no rows; {allowed}")
    for row in rows:
        checks.kind("rows", row, Mapping, allowed)
    layers = [key.rpartition("/")[0] for key in rows[0] if key.endswith("/state")]
    wanted = ["step", *[f"{layer}/{number}" for layer in layers for number in _SHOWN]]
    for row in rows:
        missing = [key for key in wanted if key not in row]
        if missing or not layers:
            raise ValueError(
                f"Invalid rows value: a row without {missing[0] if missing else 'a layer'}; "
                f"{allowed}"
            )
    return layers


def _warnings(rows: list[Any], layers: list[str]) -> list[float]:
    """Steps at which a warning began."""
    worst = [max(row[f"{layer}/state"] for layer in layers) for row in rows]
    before = [0.0, *worst]
    return [
        row["step"]
        for row, now, then in zip(rows, worst, before, strict=False)
        if now == 2.0 != then
    ]
