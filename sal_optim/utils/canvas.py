"""A matplotlib Figure for this package's pictures; matplotlib is imported when one is made."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, wanted: str) -> "Figure":
    """An empty Figure.

    Args:
        width, height: in inches.
        wanted: the subject of the error, as "sal_optim.plot needs".

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        # By this import a notebook learns how to show a Figure.
        import matplotlib.pyplot  # noqa: F401
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{wanted} the package matplotlib: pip install sal_optim[plot]"
        ) from error
    # Not pyplot's: it is freed with its last reference, and needs no window system.
    return Figure(figsize=(width, height), dpi=110, layout="constrained")
