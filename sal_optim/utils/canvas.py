"""A matplotlib Figure for this package's pictures; matplotlib is imported when one is made."""

from typing import TYPE_CHECKING

from sal_optim.utils.lazy_import import extra_package

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, needs: str) -> "Figure":
    """An empty Figure, in inches; without matplotlib an ImportError, see ``extra_package``."""
    extra_package("matplotlib", needs, "plot")
    # By this import a notebook learns how to show a Figure.
    import matplotlib.pyplot  # noqa: F401
    from matplotlib.figure import Figure

    # Not pyplot's: it is freed with its last reference, and needs no window system.
    return Figure(figsize=(width, height), dpi=110, layout="constrained")
