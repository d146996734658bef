"""Self-modelling on a stream of tasks: does it forget less, alone and with SAL?

Permuted digits; the head is trained by the same optimizer as the network. The penalty w · mean(a²)
of the same weight is the control.
"""

from __future__ import annotations

from typing import Any

import torch
from joblib import Parallel, delayed

from benchmarks.companions.page import Options, Outcome, against, spread, table
from benchmarks.companions.training import SCORES, through
from benchmarks.data.sets import load
from benchmarks.reports.drawing import panels_of
from benchmarks.runs.networks import mlp
from benchmarks.streams import STREAMS
from sal_optim import SALAdam
from sal_optim.companions import SelfModel
from sal_optim.companions.activations import Tap

PREDICTION = (
    "a narrower representation leaves weights free, but nothing tells the next task to use those: "
    "self-modelling alone changes forgetting by less than 3 points, and SAL keeps its gain with it "
    "and without it."
)
OPTIMIZERS = {"Adam": torch.optim.Adam, "SALAdam": SALAdam}
TERMS = ("none", "self", "a²")
WEIGHT, STEPS, BATCH, TASKS = 5.0, 80, 64, 5
PARTS: tuple[str, ...] = ()
LAYER = "3"  # the ReLU before the last layer


def one(name: str, term: str, steps: int, seed: int) -> dict[str, float]:
    """One run of one arm."""
    torch.set_num_threads(1)
    data = load("digits")
    stream = STREAMS["permuted"](data, seed=seed, tasks=TASKS, steps=steps, batch=BATCH)
    model = mlp(data.features, (100, 100), data.classes, seed=seed)
    torch.manual_seed(seed)
    own = SelfModel(model, LAYER, WEIGHT)
    tap = Tap(own, model, LAYER)
    params = [*model.parameters(), *(own.parameters() if term == "self" else ())]
    optimizer = OPTIMIZERS[name](params, lr=1e-3)

    def size() -> torch.Tensor:
        assert tap.caught is not None
        return WEIGHT * tap.caught.square().mean()

    extra = {"none": None, "self": own.loss, "a²": size}[term]
    scores = through(stream, model, optimizer, extra)
    own.remove()
    return scores


def run(options: Options) -> Outcome:
    steps = options.length(STEPS)
    arms = [(name, term) for name in OPTIMIZERS for term in TERMS]
    runs = Parallel(n_jobs=options.jobs)(
        delayed(one)(name, term, steps, seed)
        for name, term in arms
        for seed in range(options.seeds)
    )
    found: dict[tuple[str, str], list[dict[str, float]]] = {
        arm: runs[i * options.seeds : (i + 1) * options.seeds] for i, arm in enumerate(arms)
    }
    heads = ["optimizer, term", *SCORES, *[f"{name} less without" for name in SCORES]]
    rows = []
    for (name, term), mine in found.items():
        cells = [spread([r[score] for r in mine], 100) for score in SCORES]
        for score in SCORES:
            pair = [[r[score] for r in side] for side in (mine, found[name, "none"])]
            cells.append("" if term == "none" else against(pair[0], pair[1], 100))
        rows.append([f"{name}, {term}", *cells])
    figure, axes = panels_of(1, width=5.0, height=3.4, title="Learned against forgetting, %")
    for (name, term), mine in found.items():
        points = [[100 * r[score] for r in mine] for score in ("forgetting", "learned")]
        axes[0].scatter(points[0], points[1], s=14, label=f"{name}, {term}")
    axes[0].set(xlabel="forgetting", ylabel="learned")
    axes[0].legend(frameon=False, fontsize=8)
    values: dict[str, Any] = {f"{name} {term}": mine for (name, term), mine in found.items()}
    text = f"digits, {TASKS} permutations of {steps} steps of {BATCH}, w = {WEIGHT:g}, %"
    title = "Self-modelling on a stream of tasks"
    parts = [f"{text}, {options.seeds} seeds\n\n{table(heads, rows)}"]
    return Outcome(title, parts, values, {"scores": figure})
