"""The picture of `python -m benchmarks speed`: nanoseconds an element against size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from benchmarks.reports.palette import SAL
from sal_optim.utils.palette import BLACK, BLUE, GRAY, ORANGE

SHOWN = {
    "torch AdamW loop": (GRAY, "-"),
    "torch AdamW foreach": (GRAY, "--"),
    "torch AdamW fused": (BLACK, "-"),
    "SALAdamW": (SAL, "-"),
    "SALAdamW diagonal": (BLUE, "-"),
    "SALAdamW factored": (BLUE, "--"),
    "published SAL on AdamW": (ORANGE, "-"),
}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel a number of tensors; the floor is seven passes at the bandwidth of a copy."""
    layouts = sorted({row["tensors"] for row in rows})
    if not layouts:
        return
    matplotlib.use("Agg")
    figure, panels = pyplot.subplots(
        1, len(layouts), figsize=(5.5 * len(layouts), 4.2), sharey=True, squeeze=False
    )
    for panel, tensors in zip(panels[0], layouts, strict=True):
        here = [row for row in rows if row["tensors"] == tensors]
        for name, (color, style) in SHOWN.items():
            line = [(r["elements"], r["ns an element"]) for r in here if r["optimizer"] == name]
            if line:
                panel.plot(
                    *zip(*line, strict=True), style, color=color, marker="o", ms=3, label=name
                )
        floor = {row["elements"]: row["floor ns"] for row in here}
        panel.plot(list(floor), list(floor.values()), ":", color="green", label="AdamW's floor")
        panel.set(xscale="log", yscale="log", xlabel="elements", title=f"in {tensors} tensors")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("ns an element and step")
    panels[0][-1].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
