"""``sal_optim.report``: what is held, tensor by tensor, as a table and in words.

Reads the protection, never changes it. The table needs rich, the rows and the words do not.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sal_optim.detection.change_detector import GRAD_NORM, DetectorState
from sal_optim.detection.descent import descent
from sal_optim.monitoring.lookup import required_protection
from sal_optim.protection.buffers import KEY, running_statistics
from sal_optim.protection.clock import LEARNING, strength
from sal_optim.protection.diagnostics import count, drift, total_drift
from sal_optim.protection.statistics import published_stability
from sal_optim.sharding.dtensor import plain
from sal_optim.utils import checks
from sal_optim.utils.lazy_import import extra_package
from sal_optim.utils.naming import unwrapped

# The table's columns of numbers, as in a Row, and their formats. Titles are narrow enough for names
# in a terminal of 80 columns.
COLUMNS = {
    "scalars": "d",
    "pro-\ntected": ".1%",
    "neutral": ".1%",
    "vola-\ntile": ".1%",
    "mean\ngate": ".3f",
    "impor-\ntance": ".3g",
    "drift": ".3f",
    "published\nstability": ".3f",
}
# Weights that are further than this from the anchor, relative to its size, are drifting.
DRIFTING = 0.1

_MEANINGS = {
    "changing": "gradients are above the threshold, and a change of the data is suspected",
    "consolidating": "a stretch of training has just been consolidated, and statistics begin anew",
    "drifting": f"weights are further than {DRIFTING:.0%} from the anchor",
    "stable": "gradients are as usual, and weights are near the anchor if there is one",
}


class Row(NamedTuple):
    """One parameter tensor; the shares are of its scalars and sum to 1."""

    name: str
    size: int  # scalars
    protected: float  # share with stability above 2/3
    neutral: float
    volatile: float  # share with stability below 1/3
    mean_gate: float  # the share of a gradient that is let through
    importance: float  # its mean over the elements
    drift: float  # from the anchor, relative to the anchor's size; 0 without one
    published: float  # stability as published, 1 / (1 + delta_w * g_norm)


def report(optimizer: object, model: nn.Module) -> None:
    """Print a table of the parameters of a model by what is held of each, and a summary in words.

    Args:
        optimizer: one of the family, a ``CommunicationLayer``, or the optimizer inside of one.
        model: whose parameters are shown, by name, where the optimizer has them.

    Raises:
        ValueError: the optimizer has none of the parameters of ``model``.
    """
    extra_package("rich", "sal_optim.report needs", "report")
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = rows(optimizer, model)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("parameter", overflow="fold", min_width=9)
    for title in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for name, *numbers in found:
        table.add_row(Text(name), *map(format, numbers, COLUMNS.values()))
    console = Console()
    console.print(table)
    console.print(summary(optimizer, found), markup=False, highlight=False)
    told = statistics_in_words(optimizer, model)
    if told:
        console.print(told, markup=False, highlight=False)


@torch.no_grad()
def rows(optimizer: object, model: nn.Module) -> list[Row]:
    """What :func:`report` shows in its table; raises as it does, and needs no rich.

    On sharded parameters the numbers are those of the local part.
    """
    controller = required_protection(optimizer).controller
    groups = controller.groups
    checks.model(model, groups)
    own = {id(param) for group in groups for param in group["params"]}
    found = []
    named = dict(model.named_parameters())
    for name, param in zip(unwrapped(named), named.values(), strict=True):
        if id(param) not in own:
            continue
        counts = count(controller, param)
        known = controller.state_of(param).get("evidence_weight", 0.0) > 0.0 and counts.size > 0
        importance = float(controller.importance(param)[0].float().mean()) if known else 0.0
        row = Row(
            name=readable(name),
            size=counts.size,
            **counts.shares(),
            importance=importance,
            drift=drift(controller, [param]),
            published=published_stability(controller.state_of(param)),
        )
        found.append(row)
    return found


def readable(name: str) -> str:
    """A parameter's name without what PEFT puts around every one; others as they are."""
    if not name.startswith("base_model.model."):
        return name
    short = name.removeprefix("base_model.model.").removesuffix(".weight")
    return short.removesuffix(".default")


def state_in_words(optimizer: object) -> str:
    """``"changing"``, ``"consolidating"``, ``"drifting"`` or ``"stable"``; the first that holds."""
    controller = required_protection(optimizer).controller
    threshold = controller.detector
    if threshold["suspicion"] > 0.0:
        return "changing"
    if threshold["consolidations"] > 0.0 and threshold["steps"] < GRAD_NORM.warmup:
        return "consolidating"
    return "drifting" if total_drift(controller) > DRIFTING else "stable"


def statistics_in_words(optimizer: object, model: nn.Module) -> str:
    """What happens to the running statistics of a model (BatchNorm); empty where it has none."""
    count = len(running_statistics(model))
    if not count:
        return ""
    groups = required_protection(optimizer).controller.optimizer.param_groups
    said = "consolidate(model=model) keeps them"
    if any(KEY in group for group in groups):
        said = "Those of the last consolidate(model=model) are kept"
    return (
        f"The model has {count} buffers of running statistics, as BatchNorm has, which no "
        f"optimizer protects: in training mode they follow the new data. {said}; "
        "restore(strength, model=model) brings them back."
    )


def summary(optimizer: object, found: list[Row]) -> str:
    """One paragraph: consolidations, the state in words, and how much of :func:`rows` is held."""
    protection = required_protection(optimizer)
    controller = protection.controller
    times = int(controller.detector["consolidations"])
    state = state_in_words(protection)
    size = max(1, sum(row.size for row in found))
    held = sum(row.protected * row.size for row in found) / size
    gate = sum(row.mean_gate * row.size for row in found) / size
    counted = {0: "No consolidation yet", 1: "1 consolidation"}.get(
        times, f"{times} consolidations"
    )
    said = f"{counted}. The state is {state}: {_MEANINGS[state]}."
    weights = [p for group in controller.groups for p in group["params"] if not is_lazy(p)]
    if not all(w.is_meta or bool(plain(w.detach()).isfinite().all()) for w in weights):
        said = f"{said} Some weights are not finite: restore() puts them at their anchors."
    if not times:
        return f"{said} Nothing is protected, and there is no anchor."
    return (
        f"{said} {held:.1%} of the network's {size} scalars are protected; on average, {gate:.1%} "
        f"of a gradient is let through. The weights are {total_drift(controller):.1%} from the "
        f"anchor.{_waiting(controller.detector)}"
    )


def _waiting(detector: DetectorState) -> str:
    """Why protection has not its whole strength, where it has not."""
    share = strength(detector)
    if share == 1.0:
        return ""
    said = f" Protection is at {share:.1%} of its strength"
    until = "It is whole once a change is noticed or declared."
    if detector["begun_told"] > detector["begun"]:
        return f"{said}, and waits: the loss that it is told falls. {until}"
    if (descent(detector) or 0.0) > LEARNING:
        return f"{said}, and waits: the loss still falls along the way from the anchor. {until}"
    heard = detector["told_recent"] > 0.0
    advice = "" if heard else " Told the loss (tell(loss=loss)), it waits while that falls."
    return f"{said}: it rises with the clock. {until}{advice}"
