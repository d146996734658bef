"""Colors and dashes of the benchmarks' lines; the colors are those of all pictures.

Shades of one thing are taken from viridis. Kinds of a line differ in its dashes, too.
"""

from typing import Any

from sal_optim.utils.palette import BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, VERMILLION

# For lines that are many, and what sets an eighth apart.
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, GRAY)
DASHES = ("-", "--", ":", "-.")
SEQUENTIAL = "viridis"

# Kinds of methods.
SAL, GIVEN, TASK_FREE, CONTROL = VERMILLION, BLUE, GRAY, PURPLE


def line(place: int) -> dict[str, Any]:
    """Color and dashes of the line with this number, from 0: 28 that differ."""
    return {
        "color": CYCLE[place % len(CYCLE)],
        "linestyle": DASHES[place // len(CYCLE) % len(DASHES)],
    }
