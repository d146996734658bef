"""Error feedback: does what the gate held back help if it comes later?

`Residual` is a lab's optimizer and no part of the package: with g the gradient, the penalty's part
included, and s the stability, r ← leak · s · (g + r), and the gate is given g + r in the place of
g. At leak 0 it is SALAdam, bit for bit. Beside each leak is run the gate that it should amount to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

from benchmarks.companions.page import Options, Outcome, against, spread, table
from benchmarks.companions.training import through
from benchmarks.data.sets import load
from benchmarks.metrics.spread import Difference, interval
from benchmarks.reports.drawing import panels_of
from benchmarks.runs.networks import mlp
from benchmarks.streams import STREAMS
from sal_optim import SALAdam
from sal_optim.config import PROTECTION, PULL

PREDICTION = (
    "nothing is gained. Where g and s stay as they are, r goes to leak · s · g / (1 - leak · s), "
    "and the gate lets 1/(1 + (1 - leak)·c·Ω) through: a leak is a gate of protection "
    "(1 - leak)·c, with a delay, at 4 bytes a parameter. So a leak and that gate, at the same "
    "pull, should learn and forget alike, and no leak should lie above the line of gates."
)
LEAKS = (0.0, 0.5, 0.9, 1.0)
# Protection and pull: the default, and one whose gate does ten times as much with the same pull.
BASES = {"default": (PROTECTION, PULL), "firm gate": (10 * PROTECTION, PULL / 10)}
# Steps a task, batch, hidden widths.
DATA = {"digits": (120, 64, (100, 100)), "mnist": (80, 128, (128, 128))}
PARTS = tuple(DATA)
TASKS = 5
LEAST = 1e-6  # in the place of a gate of 0, at which there would be no pull


class Residual(SALAdam):
    """SALAdam with error feedback of what the gate held back; diagonal importance alone."""

    def __init__(self, params: Any, leak: float, **settings: Any) -> None:
        super().__init__(params, importance="diagonal", **settings)
        self.leak = leak
        # Beside the state, in which Adam would take it for its own.
        self.residuals: dict[Tensor, Tensor] = {}

    def _base_step(self) -> None:
        """Adam's step, on gradients that are protected and given what was held back before."""
        for group in self.param_groups if self.leak else ():
            for param in group["params"]:
                s = self.stability(param)
                if param.grad is not None and bool(s.any()):
                    held = self.residuals.setdefault(param, torch.zeros_like(param))
                    param.grad.addcmul_(held, 1.0 - s)
                    # leak · s · (g + r), since what passes is (1 - s) of it
                    held.copy_(self.leak * (s / (1.0 - s)) * param.grad)
        super()._base_step()


def one(
    data: str, data_dir: str | None, steps: int, leak: float, gate: float, pull: float, seed: int
) -> dict[str, float]:
    """One run of one arm."""
    torch.set_num_threads(1)
    _, batch, hidden = DATA[data]
    found = load(data, data_dir)
    stream = STREAMS["permuted"](found, seed=seed, tasks=TASKS, steps=steps, batch=batch)
    model = mlp(found.features, hidden, found.classes, seed=seed)
    torch.manual_seed(seed)
    optimizer = Residual(model.parameters(), leak, lr=1e-3, protection=gate, pull=pull)
    held: list[float] = []
    scores = through(stream, model, optimizer, after_task=lambda: held.append(_held(optimizer)))
    told = optimizer.diagnostics()
    return {**scores, "found": told["consolidations"], "held": sum(held[1:]) / (len(held) - 1)}


@torch.no_grad()
def _held(optimizer: Residual) -> float:
    """norm(s · u) / norm(u) of the last update as the moments have it."""
    group = optimizer.param_groups[0]
    kept = whole = 0.0
    for param in group["params"]:
        state, s = optimizer.state[param], optimizer.stability(param)
        update = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])
        kept += float((s * update).square().sum())
        whole += float(update.square().sum())
    return float((kept / max(whole, 1e-30)) ** 0.5)


def arms(base: str) -> dict[tuple[str, float], tuple[float, float, float]]:
    """(kind, leak) -> leak, protection, pull; the product of the last two is one for all."""
    gate, pull = BASES[base]
    found = {("leak", leak): (leak, gate, pull) for leak in LEAKS}
    for leak in LEAKS[1:]:
        weaker = max(LEAST, gate * (1.0 - leak))
        found["gate", leak] = (0.0, weaker, gate * pull / weaker)
    return found


def run(options: Options) -> Outcome:
    values: dict[str, Any] = {}
    parts = []
    wanted = [data for data in DATA if options.wants(data)]
    figure, axes = panels_of(
        len(wanted) * len(BASES), width=4.0, height=3.2, title="Learned against forgetting"
    )
    for place, (data, base) in enumerate((data, base) for data in wanted for base in BASES):
        steps = options.length(DATA[data][0])
        plan = arms(base)
        results = iter(
            Parallel(n_jobs=options.jobs)(
                delayed(one)(data, options.data_dir, steps, *arm, seed)
                for arm in plan.values()
                for seed in range(options.seeds)
            )
        )
        found = {arm: [next(results) for _ in range(options.seeds)] for arm in plan}
        gate, pull = BASES[base]
        parts.append(
            f"**{data}**, {TASKS} permutations of {steps} steps, {base}: "
            f"protection {gate:g}, pull {pull:g}, {options.seeds} seeds, %\n\n{_table(found)}"
        )
        values[f"{data} {base}"] = {f"{k} {leak:g}": runs for (k, leak), runs in found.items()}
        for kind, marker in (("gate", "o-"), ("leak", "s--")):
            keys = [("leak", 0.0), *[key for key in found if key[0] == kind and key[1] > 0.0]]
            shown = [[_mean(found[key], name) for key in keys] for name in COLUMNS[:2]]
            axes[place].plot(shown[1], shown[0], marker, label=kind, markersize=4)
        axes[place].set(title=f"{data}, {base}", xlabel="forgetting, %", ylabel="learned, %")
        axes[place].legend(frameon=False)
    return Outcome(
        "Residual: error feedback of what is held back", parts, values, {"frontier": figure}
    )


COLUMNS = ("learned", "forgetting", "average")


def _mean(runs: list[dict[str, float]], name: str) -> float:
    return 100 * sum(r[name] for r in runs) / len(runs)


def _table(found: dict[tuple[str, float], list[dict[str, float]]]) -> str:
    heads = ["leak", *COLUMNS, "held", *[f"{name} less its gate's" for name in COLUMNS]]
    heads.append("learned less the gates' at equal forgetting")
    rows = []
    for (kind, leak), runs in found.items():
        if kind != "leak":
            continue
        mine = {name: [r[name] for r in runs] for name in (*COLUMNS, "held")}
        cells = [spread(mine[name], 100) for name in mine]
        twin = found.get(("gate", leak))
        for name in COLUMNS:
            cells.append(against(mine[name], [r[name] for r in twin], 100) if twin else "")
        cells.append(beyond_the_gates(found, leak).text(100) if twin else "")
        rows.append([f"{leak:g}", *cells])
    return table(heads, rows)


def beyond_the_gates(
    found: dict[tuple[str, float], list[dict[str, float]]], leak: float
) -> Difference:
    """How far a leak's learned accuracy is above the line of gates at the leak's own forgetting.

    The line goes through the means of the gates; where a leak forgets more than any of them, it
    stays at its end. The interval is of a bootstrap over seeds, of leak and gates together.
    """
    gates = [runs for (kind, value), runs in found.items() if kind == "gate" or value == 0.0]
    mine = found["leak", leak]
    x, y = ([[r[name] for r in runs] for runs in (*gates, mine)] for name in COLUMNS[1::-1])
    forgetting, learned = np.array(x), np.array(y)

    def above(seeds: Any) -> float:
        across, up = forgetting[:, seeds].mean(1), learned[:, seeds].mean(1)
        order = np.argsort(across[:-1])
        return float(up[-1] - np.interp(across[-1], across[:-1][order], up[:-1][order]))

    seeds = np.arange(len(mine))
    return Difference(above(seeds), *interval(above, seeds, vectorized=False), len(mine))
