"""A collapse that is induced in a small GPT: how early spectra warn of it, and what helps then.

20 runs collapse, by a learning rate that rises a hundredfold, by data that turn into blanks, or by
noise that is tied over a batch; 20 stay healthy. Each signal alarms at the level that one healthy
run in 20 passes, and is held against its own last measurements in the same way.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from joblib import Parallel, delayed

from benchmarks.companions.collapse_runs import (
    EVERY,
    MODES,
    SETTLED,
    SIGNALS,
    STEPS,
    Trace,
    train,
)
from benchmarks.companions.page import Options, Outcome, against, interval, spread, table
from benchmarks.reports.drawing import panels_of

PREDICTION = (
    "spectra move within some ten steps of the onset and so before the held-out loss rises, but "
    "the gradient norm, which is free, moves as early where the fault is in the loss or the rate; "
    "a spectral alarm leads by more only where data degenerate. Halving the rate at an alarm beats "
    "halving at random steps for a rate that is too high, and does nothing for data and noise. The "
    "floor of the rank keeps the rank and not the loss."
)
PARTS = ("alarms", "correction")
RISE = 0.2  # nats above the best so far: the loss has risen
FALSE = 0.05
REST = 5 * EVERY  # steps between two halvings


def event(trace: Trace) -> int | None:
    """The step from which the held-out loss is `RISE` above its best, twice in succession."""
    best, count = float("inf"), 0
    for step, loss in zip(trace.steps, trace.held_out, strict=True):
        count = count + 1 if loss > best + RISE and step > SETTLED else 0
        if count == 2:
            return step - EVERY
        best = min(best, loss)
    return None


def scores(trace: Trace, name: str) -> list[float]:
    """The score of a signal at each measurement, 0 until the run has settled."""
    part = Trace()
    found = []
    for place, step in enumerate(trace.steps):
        part.signals[name] = trace.signals[name][: place + 1]
        found.append(part.score(name) if step >= SETTLED else 0.0)
    return found


def level(healthy: Sequence[Trace], name: str) -> float:
    """What at most `FALSE` of the healthy runs pass."""
    peaks = sorted(max(scores(trace, name)) for trace in healthy)
    return peaks[len(peaks) - 1 - int(FALSE * len(peaks))]


def alarm(trace: Trace, name: str, bar: float) -> int | None:
    """The step of the first score above the bar."""
    over = (s for s, v in zip(trace.steps, scores(trace, name), strict=True) if v > bar)
    return next(over, None)


class AtAlarm:
    """Halves the rate where the rank's score is above the bar, and then rests."""

    def __init__(self, bar: float) -> None:
        self.bar, self.last = bar, -REST

    def __call__(self, trace: Trace, step: int) -> bool:
        due = step >= SETTLED and step - self.last >= REST
        if due and trace.score("rank") > self.bar:
            self.last = step
            return True
        return False


class AtRandom:
    """Halves the rate as often, at steps drawn beforehand."""

    def __init__(self, times: int, steps: int, seed: int) -> None:
        grid = range(SETTLED, max(steps, SETTLED + EVERY * (times + 1)), EVERY)
        self.steps = set(random.Random(seed).sample(list(grid), times))

    def __call__(self, trace: Trace, step: int) -> bool:
        return step in self.steps


def run(options: Options) -> Outcome:
    steps, seeds = options.length(STEPS), range(options.seeds)
    mode = [MODES[seed % len(MODES)] for seed in seeds]
    work = Parallel(n_jobs=options.jobs)
    healthy = work(delayed(train)(1000 + seed, None, steps=steps) for seed in seeds)
    faulty = work(delayed(train)(seed, mode[seed], steps=steps) for seed in seeds)
    bars = {name: level(healthy, name) for name in SIGNALS}
    parts, values = [], dict[str, Any](bars=bars)
    events = [event(trace) for trace in faulty]
    alarms = {name: [alarm(trace, name, bars[name]) for trace in faulty] for name in SIGNALS}
    values |= {"modes": mode, "events": events, "alarms": alarms}
    values["false alarms of the module's thresholds"] = [
        sum(min(t.start[SETTLED // EVERY :]) < bar for t in healthy) for bar in (0.8, 0.5)
    ]
    parts.append(_alarms(options.seeds, mode, events, alarms, healthy, faulty))
    if options.wants("correction"):
        bar = bars["rank"]
        halved = work(
            delayed(train)(seed, mode[seed], steps=steps, halve=AtAlarm(bar)) for seed in seeds
        )
        chance = work(
            delayed(train)(
                seed,
                mode[seed],
                steps=steps,
                halve=AtRandom(len(halved[seed].halvings), steps, seed),
            )
            for seed in seeds
        )
        floored = work(delayed(train)(seed, mode[seed], steps=steps, floor=True) for seed in seeds)
        arms = {"nothing": faulty, "at the alarm": halved, "at random": chance, "floor": floored}
        parts.append(_correction(mode, arms))
        values["final"] = {k: [t.held_out[-1] for t in v] for k, v in arms.items()}
        values["halvings"] = [trace.halvings for trace in halved]
    figure, axes = panels_of(len(MODES), width=3.8, height=3.2, title="Rank and held-out loss")
    for name, axis in zip(MODES, axes, strict=True):
        shown = [t for t, m in zip(faulty, mode, strict=True) if m == name][:1]
        for trace in shown:
            axis.plot(trace.steps, trace.start, label="rank over its start")
            axis.plot(trace.steps, trace.held_out, label="held-out loss")
        axis.set(title=name, xlabel="step", yscale="log")
    axes[0].legend(frameon=False, fontsize=8)
    return Outcome("Collapse of a small GPT", parts, values, {"runs": figure})


def _alarms(
    count: int,
    mode: list[str],
    events: list[int | None],
    alarms: dict[str, list[int | None]],
    healthy: Sequence[Trace],
    faulty: Sequence[Trace],
) -> str:
    rows = []
    for name in SIGNALS:
        cells = []
        for wanted in (*MODES, None):
            here = [i for i in range(count) if wanted in (None, mode[i]) and events[i] is not None]
            leads = _leads(events, alarms[name], here, len(faulty[0].steps) * EVERY)
            text = interval(leads) if leads else "none"
            late = sum(lead < 0 for lead in leads)
            cells.append(f"{text}; late {late} of {len(leads)}")
        here = [i for i in range(count) if events[i] is not None]
        last = len(faulty[0].steps) * EVERY
        pair = [_leads(events, alarms[n], here, last) for n in (name, "gradient norm")]
        cells.append(against(pair[0], pair[1]) if name != "gradient norm" and here else "")
        rows.append([name, *cells])
    heads = ["signal", *[f"lead, {name}" for name in MODES], "lead, all", "less gradient norm's"]
    counted = [
        f"{name} "
        + ", ".join(
            f"{sum(a is not None and m == wanted for a, m in zip(found, mode, strict=True))} of "
            f"{mode.count(wanted)}"
            for wanted in MODES
        )
        for name, found in alarms.items()
    ]
    low = [sum(min(t.start[SETTLED // EVERY :]) < bar for t in healthy) for bar in (0.8, 0.5)]
    hit = [sum(min(t.start[SETTLED // EVERY :]) < bar for t in faulty) for bar in (0.8, 0.5)]
    rose = sum(e is not None for e in events)
    return (
        f"The held-out loss rose in {rose} of {count} faulty runs and "
        f"{sum(event(t) is not None for t in healthy)} of {len(healthy)} healthy ones. Steps by "
        "which an alarm precedes that rise; without an alarm, the end of the run counts as one.\n\n"
        f"{table(heads, rows)}\n\n"
        f"Runs that it alarmed in at all ({', '.join(MODES)}): {'; '.join(counted)}.\n\n"
        "The monitor's own thresholds, rank below 0.8 (drifting) and 0.5 (warning) of the start: "
        f"passed by {low[0]} and {low[1]} of {len(healthy)} healthy runs, and {hit[0]} and "
        f"{hit[1]} of {count} faulty ones."
    )


def _leads(
    events: list[int | None], alarms: list[int | None], here: list[int], last: int
) -> list[float]:
    found = []
    for i in here:
        when, told = events[i], alarms[i]
        assert when is not None
        found.append(float(when - (last if told is None else told)))
    return found


def _correction(mode: list[str], arms: dict[str, list[Trace]]) -> str:
    rows = []
    for label, traces in arms.items():
        final = [trace.held_out[-1] for trace in traces]
        cells = [
            f"{fmean(v for v, m in zip(final, mode, strict=True) if m == name):.2f}"
            if name in mode
            else ""
            for name in MODES
        ]
        cells.append(spread(final, digits=2))
        cells.append(spread([trace.start[-1] for trace in traces], digits=2))
        cells.append(f"{fmean(len(trace.halvings) for trace in traces):.1f}")
        for other in ("nothing", "at random"):
            base = [trace.held_out[-1] for trace in arms[other]]
            cells.append("" if label == other else against(final, base, digits=2))
        rows.append([label, *cells])
    heads = ["what is done", *[f"loss, {name}" for name in MODES], "loss, all", "rank at the end"]
    heads += ["halvings", "loss less nothing's", "loss less random's"]
    return f"Held-out loss at the end of the faulty runs.\n\n{table(heads, rows)}"
