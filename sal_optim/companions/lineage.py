"""``Node`` and ``plot_lineage``: the tree of a cascade's checkpoints over rounds, by score.

It draws what ``cascade.py`` kept. matplotlib (extra ``plot``) is imported when a picture is drawn.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sal_optim.utils import checks
from sal_optim.utils.canvas import new_figure
from sal_optim.utils.palette import GRAY, LIMIT, SIGNAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Node(NamedTuple):
    """A checkpoint of a ``Cascade``."""

    id: int  # its place in the lineage
    parents: tuple[int, ...]  # none: a start; several: a merger
    round: int  # after which it was scored
    score: float
    fate: str  # "lives", after its round, or "dies"


def plot_lineage(lineage: Sequence[Node]) -> "Figure":
    """Draw each checkpoint at its round and score, with lines from those of its parents shown.

    Raises:
        ValueError: ``lineage`` is empty.
    """
    nodes = list(lineage)
    allowed = "lineage must be that of a Cascade, after a round"
    if not nodes:
        raise ValueError(f"Invalid lineage value: it is empty; {allowed}")
    for node in nodes:
        checks.kind("lineage", node, Node, allowed)
    figure = new_figure(7.0, 4.0, "pictures need")
    axes = figure.subplots()
    known = {node.id: node for node in nodes}
    for node in nodes:
        color = SIGNAL if node.fate == "lives" else GRAY
        for parent in (known[place] for place in node.parents if place in known):
            ends = [parent.round, node.round], [parent.score, node.score]
            dashes = ":" if len(node.parents) > 1 else "-"
            axes.plot(*ends, color=color, linewidth=0.8, linestyle=dashes)
    kinds = {"lives": ("o", SIGNAL), "lives, a merger": ("s", LIMIT), "dies": ("x", GRAY)}
    for label, (marker, color) in kinds.items():
        shown = [node for node in nodes if _kind(node) == label]
        places = [n.round for n in shown], [n.score for n in shown]
        axes.scatter(*places, marker=marker, color=color, s=22, label=f"{label}, {len(shown)}")
    axes.set(xlabel="round", ylabel="score")
    axes.legend(frameon=False)
    return figure


def _kind(node: Node) -> str:
    if node.fate != "lives":
        return "dies"
    return "lives, a merger" if len(node.parents) > 1 else "lives"
