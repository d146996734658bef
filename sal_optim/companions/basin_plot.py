"""``plot_basins``: each prompt at the repetition and the entropy of what follows it.

It draws what ``basin_map`` returned. matplotlib (extra ``plot``) is imported when it is called.
"""

from typing import TYPE_CHECKING

from sal_optim.companions.basins import BASINS, BasinMap
from sal_optim.utils import checks
from sal_optim.utils.canvas import new_figure
from sal_optim.utils.palette import GRAY, SIGNAL, WARNING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = dict(zip(BASINS, (SIGNAL, WARNING, GRAY), strict=True))


def plot_basins(found: BasinMap) -> "Figure":
    """Draw a basin map."""
    checks.kind("found", found, BasinMap, "found must be what basin_map returned")
    figure = new_figure(5.0, 4.0, "pictures need")
    axes = figure.subplots()
    for name in BASINS:
        own = [place for place, basin in enumerate(found.basins) if basin == name]
        points = found.repetition[own].tolist(), found.entropy[own].tolist()
        axes.scatter(*points, s=12, color=_COLORS[name], label=f"{name}, {len(own)}")
    axes.set_xlabel("repetition of n-grams")
    axes.set_ylabel("entropy of tokens, over its largest")
    axes.legend(frameon=False)
    return figure
