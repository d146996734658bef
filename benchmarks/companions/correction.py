"""At an alarm, lower the rate, draw from safer data, or both: against the same at random times.

A small GPT draws from eight sources. In faulty runs the learning rate rises a hundredfold, half of
the sources write one character for another, or both. An alarm is the rank of activations or the
loss leaving what 19 of 20 healthy runs stay within.
"""

from __future__ import annotations

import random
from statistics import fmean
from typing import Any

from joblib import Parallel, delayed

from benchmarks.companions.collapse import REST, level
from benchmarks.companions.collapse_runs import EVERY, SETTLED, STEPS, Trace
from benchmarks.companions.correction_runs import MODES, train
from benchmarks.companions.page import Options, Outcome, against, spread, table
from benchmarks.reports.drawing import panels_of

PREDICTION = (
    "halving does as much at random steps as at an alarm, as before. Reweighting works only where "
    "sources differ: it lowers the held-out loss where they are garbled, by more than halving "
    "does, and more at an alarm than at random times by less than 0.05 nats, since risk is known "
    "at any time. Reweighting from the first step on does as well as at an alarm. Both together "
    "are the better of the two in each fault, and no more than that. Risks of the wrong sources "
    "gain nothing."
)
PARTS: tuple[str, ...] = ()
HEALTHY = 20
SIGNALS = ("rank", "loss")
# arm -> (when, what)
ARMS: dict[str, tuple[str, dict[str, bool]]] = {
    "nothing": ("never", {}),
    "halve at alarm": ("alarm", {"halve": True}),
    "reweight at alarm": ("alarm", {"reweight": True}),
    "both at alarm": ("alarm", {"halve": True, "reweight": True}),
    "halve at random": ("random", {"halve": True}),
    "reweight at random": ("random", {"reweight": True}),
    "both at random": ("random", {"halve": True, "reweight": True}),
    "both at alarm, wrong sources": (
        "alarm",
        {"halve": True, "reweight": True, "shuffled": True},
    ),
    "reweight always": ("never", {"reweight": True, "always": True}),
}


class AtAlarm:
    """Whether one of the signals' scores is above its bar; then it rests."""

    def __init__(self, bars: dict[str, float]) -> None:
        self.bars, self.last = bars, -REST

    def __call__(self, trace: Trace, step: int) -> bool:
        due = step >= SETTLED and step - self.last >= REST
        if due and any(trace.score(name) > bar for name, bar in self.bars.items()):
            self.last = step
            return True
        return False


class AtSteps:
    """As many alarms, at steps drawn beforehand."""

    def __init__(self, times: int, steps: int, seed: int) -> None:
        grid = range(SETTLED, max(steps, SETTLED + EVERY * (times + 1)), EVERY)
        self.steps = set(random.Random(seed).sample(list(grid), times))

    def __call__(self, trace: Trace, step: int) -> bool:
        return step in self.steps


def one(arm: str, seed: int, bars: dict[str, float], times: int, steps: int) -> Trace:
    """A faulty run of one arm; its fault goes with the seed."""
    when, what = ARMS[arm]
    decide: Any = None
    if when == "alarm":
        decide = AtAlarm(bars)
    elif when == "random":
        decide = AtSteps(times, steps, seed)
    return train(seed, MODES[seed % len(MODES)], steps=steps, decide=decide, **what)


def run(options: Options) -> Outcome:
    steps, seeds = options.length(STEPS), range(options.seeds)
    work = Parallel(n_jobs=options.jobs)
    healthy = work(delayed(train)(1000 + seed, None, steps=steps) for seed in range(HEALTHY))
    bars = {name: level(healthy, name) for name in SIGNALS}
    found: dict[str, list[Trace]] = {}
    for arm in ARMS:
        # As often as the same correction was made at alarms in that run.
        alarms = found.get(arm.replace("random", "alarm"), [])
        times = [len(trace.halvings) for trace in alarms] or [0] * len(seeds)
        found[arm] = work(delayed(one)(arm, seed, bars, times[seed], steps) for seed in seeds)
    mode = [MODES[seed % len(MODES)] for seed in seeds]
    values: dict[str, Any] = {
        "bars": bars,
        "modes": mode,
        "final": {arm: [t.held_out[-1] for t in traces] for arm, traces in found.items()},
        "alarms": {arm: [t.halvings for t in traces] for arm, traces in found.items()},
        "healthy": [t.held_out[-1] for t in healthy],
    }
    figure, axes = panels_of(len(MODES), width=3.8, height=3.2, title="Held-out loss, mean")
    for name, axis in zip(MODES, axes, strict=True):
        for arm in ("nothing", "halve at alarm", "reweight at alarm", "both at alarm"):
            shown = [t for t, m in zip(found[arm], mode, strict=True) if m == name]
            if shown:
                means = [fmean(v) for v in zip(*[t.held_out for t in shown], strict=True)]
                axis.plot(shown[0].steps, means, label=arm)
        axis.set(title=name, xlabel="step", yscale="log")
    axes[0].legend(frameon=False, fontsize=8)
    parts = [_table(found, mode, healthy)]
    return Outcome("Correction while training", parts, values, {"runs": figure})


def _table(found: dict[str, list[Trace]], mode: list[str], healthy: list[Trace]) -> str:
    rows = []
    for arm, traces in found.items():
        final = [trace.held_out[-1] for trace in traces]
        cells = []
        for name in MODES:
            here = [v for v, m in zip(final, mode, strict=True) if m == name]
            cells.append(f"{fmean(here):.2f}" if here else "")
        cells.append(spread(final, digits=2))
        cells.append(f"{fmean(len(trace.halvings) for trace in traces):.1f}")
        random_one = arm.replace("alarm", "random")
        for other in ("nothing", random_one, "both at alarm"):
            if other in found and other != arm:
                base = [trace.held_out[-1] for trace in found[other]]
                cells.append(against(final, base, digits=2))
            else:
                cells.append("")
        rows.append([arm, *cells])
    heads = ["what is done", *[f"loss, {name}" for name in MODES], "loss, all", "alarms"]
    heads += ["less nothing's", "less the same at random", "less both at alarm"]
    told = spread([trace.held_out[-1] for trace in healthy], digits=2)
    return (
        f"Held-out loss at the end of {len(mode)} faulty runs, nats; that of {len(healthy)} "
        f"healthy ones is {told}.\n\n{table(heads, rows)}"
    )
