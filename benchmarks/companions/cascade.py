"""Pulse, split and cascade against the same number of gradient steps spent otherwise.

On a stream of permuted digits and on a small GPT. The same compute is one run, as many independent
runs of which the best is taken, or one run whose weights are averaged. A short run, as long as one
lineage of the cascade, tells what the branches add. Scores are of a validation part that no arm
trains on; tables are of the test part. Scoring itself is not counted as compute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from joblib import Parallel, delayed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from benchmarks.companions.page import Options, Outcome, against, spread, table
from benchmarks.companions.training import accuracy
from benchmarks.data.characters import corpus, next_loss, windows
from benchmarks.data.sets import load
from benchmarks.metrics import scores
from benchmarks.runs.gpt import GPT
from benchmarks.runs.networks import mlp
from benchmarks.streams import STREAMS
from sal_optim import SALAdam
from sal_optim.companions import Cascade, plot_lineage

PREDICTION = (
    "a lineage has a quarter of the steps, so that on the GPT one run of all steps wins by more "
    "than 0.1 nats and the cascade is level with a short run within 0.03. On permuted digits it "
    "forgets less than one run for its fewer steps alone, and is within 2 points of a short run "
    "where it is scored on the current task. Scored on all tasks so far, for which it holds old "
    "validation data, it gains some points over a short run. Averaged weights of one run are the "
    "best on the GPT. Mergers live in more than half of the rounds."
)
PARTS = ("digits", "gpt")
BRANCHES, ROUNDS, PULSE = 4, 3, 0.01
STEPS, TASKS, BATCH = 240, 5, 64
GPT_STEPS, GPT_ROUNDS, GPT_BATCH, WIDTH, HELD = 480, 6, 8, 32, 24
OPTIMIZERS: dict[str, Any] = {"Adam": torch.optim.Adam, "SALAdam": SALAdam}
ARMS = {
    "cascade": "cascade",
    "cascade, no merging": "cascade",
    "cascade, no noise": "cascade",
    "cascade, score of all tasks": "cascade",
    "one run": "one",
    "one run, averaged": "averaged",
    "short run": "short",
    "best of 4 short runs": "best",
}
REFERENCE = "one run"


def settings(arm: str, seed: int) -> dict[str, Any]:
    """Of `Cascade`."""
    noise = 0.0 if arm == "cascade, no noise" else PULSE
    return {"merge": arm != "cascade, no merging", "pulse": noise, "seed": seed}


def merged_share(cascade: Cascade) -> float:
    """Part of the rounds in which a merger was the best."""
    best: dict[int, Any] = {}
    for node in cascade.lineage:
        if node.round and (node.round not in best or node.score > best[node.round].score):
            best[node.round] = node
    return sum(len(node.parents) > 1 for node in best.values()) / max(1, len(best))


class Averaging:
    """The mean of the weights over the second half of a run."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.mean, self.model, self.steps = AveragedModel(model), model, steps

    def see(self, step: int) -> None:
        if step >= self.steps // 2:
            self.mean.update_parameters(self.model)

    def apply(self) -> None:
        self.model.load_state_dict(self.mean.module.state_dict())


def spend(
    kind: str,
    cascade: Cascade,
    model: nn.Module,
    train: Callable[[int], None],
    steps: int,
    rounds: int,
) -> None:
    """Train by one kind of arm; `train` takes a number of steps."""
    if kind == "cascade":
        lasting = max(1, steps // (rounds * BRANCHES))  # of a branch in a round
        for _ in range(rounds):
            cascade.round(lambda branch: train(lasting))
    elif kind == "averaged":
        mean = Averaging(model, steps)
        for step in range(steps):
            train(1)
            mean.see(step)
        mean.apply()
    else:
        train(steps if kind == "one" else steps // BRANCHES)


def digits(name: str, arm: str, steps: int, seed: int) -> dict[str, Any]:
    """One arm through the stream."""
    if ARMS[arm] == "best":
        runs = [_digits(name, "short", steps, seed, part) for part in range(BRANCHES)]
        return max(runs, key=lambda run: float(run["validation"]))
    return _digits(name, arm, steps, seed, 0)


def _digits(name: str, arm: str, steps: int, seed: int, start: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    data = load("digits")
    # Trained on, and what scores are of: the last fifth of the training part.
    made = STREAMS["permuted"](data.validation(), seed=seed, tasks=TASKS, steps=steps, batch=BATCH)
    tests = [STREAMS["permuted"](data, seed=seed, tasks=TASKS).test(task) for task in range(TASKS)]
    held = [made.test(task) for task in range(TASKS)]
    kind = ARMS.get(arm, arm)
    model = mlp(data.features, (100, 100), data.classes, seed=seed + 1000 * start)
    optimizer = OPTIMIZERS[name](model.parameters(), lr=1e-3)
    now = 0

    def score() -> float:
        """Mean accuracy on the validation part of the task, or of all so far."""
        first = 0 if arm == "cascade, score of all tasks" else now
        seen = held[first : now + 1]
        # A tie between full scores is decided by the loss.
        loss = sum(float(cross_entropy(model(part.x), part.y)) for part in seen) / len(seen)
        return sum(accuracy(model, part.x, part.y) for part in seen) / len(seen) - 1e-3 * loss

    cascade = Cascade(model, optimizer, score, BRANCHES, **settings(arm, seed))
    matrix = []
    for task in range(TASKS):
        now, taken = task, 0

        def train(count: int, at: int = task) -> None:
            nonlocal taken
            for _ in range(count):
                batch = made.batch(at, taken % steps)
                taken += 1
                optimizer.zero_grad()
                cross_entropy(model(batch.x), batch.y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

        if kind == "cascade":
            cascade.restart()
        spend(kind, cascade, model, train, steps, ROUNDS)
        matrix.append([accuracy(model, test.x, test.y) for test in tests])
    return {
        "average": scores.average(matrix),
        "worst": scores.worst(matrix),
        "learned": scores.learned(matrix),
        "forgetting": scores.forgetting(matrix),
        "validation": sum(accuracy(model, p.x, p.y) for p in held) / TASKS,
        "mergers": merged_share(cascade) if kind == "cascade" else None,
    }


@lru_cache(maxsize=1)
def text() -> tuple[Tensor, Tensor, Tensor]:
    """Training text; validation and test windows of the text after it."""
    codes, draw = corpus(600_000), torch.Generator().manual_seed(7)
    ends = int(0.8 * len(codes)), int(0.9 * len(codes))
    held = [windows(part, HELD, draw) for part in (codes[ends[0] : ends[1]], codes[ends[1] :])]
    return codes[: ends[0]], held[0], held[1]


def small_gpt(arm: str, steps: int, seed: int) -> dict[str, Any]:
    """One arm of the GPT."""
    if ARMS[arm] == "best":
        runs = [_gpt("short", steps, seed + 1000 * part) for part in range(BRANCHES)]
        return min(runs, key=lambda run: float(run["validation"]))
    return _gpt(arm, steps, seed)


def _gpt(arm: str, steps: int, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    source, held, test = text()
    model, draw = GPT(WIDTH), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    kind = ARMS.get(arm, arm)

    def train(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            batch = windows(source, GPT_BATCH, draw)
            next_loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.no_grad()
    def loss(of: Tensor) -> float:
        model.eval()
        found = float(next_loss(model, of))
        model.train()
        return found

    cascade = Cascade(model, optimizer, lambda: -loss(held), BRANCHES, **settings(arm, seed))
    spend(kind, cascade, model, train, steps, GPT_ROUNDS)
    return {
        "loss": loss(test),
        "validation": loss(held),
        "mergers": merged_share(cascade) if kind == "cascade" else None,
        "lineage": copy.deepcopy(cascade.lineage),
    }


def run(options: Options) -> Outcome:
    seeds, work = range(options.seeds), Parallel(n_jobs=options.jobs)
    parts, values, figures = [], dict[str, Any](), dict[str, Any]()
    if options.wants("digits"):
        steps = options.length(STEPS)
        for name in OPTIMIZERS:
            runs = {a: work(delayed(digits)(name, a, steps, s) for s in seeds) for a in ARMS}
            values[f"digits {name}"] = runs
            head = (
                f"**Permuted digits, {name}**, {TASKS} tasks of {steps} steps of {BATCH}, "
                f"{BRANCHES} branches, {ROUNDS} rounds a task, {len(seeds)} seeds, %"
            )
            names = ("average", "worst", "learned", "forgetting")
            parts.append(f"{head}\n\n{_table(runs, names, 100.0, 1)}")
    if options.wants("gpt"):
        steps = options.length(GPT_STEPS)
        wanted = [arm for arm in ARMS if arm != "cascade, score of all tasks"]
        runs = {a: work(delayed(small_gpt)(a, steps, s) for s in seeds) for a in wanted}
        figures["lineage"] = plot_lineage(runs["cascade"][0]["lineage"])
        for found in runs.values():
            for each in found:
                each.pop("lineage")
        values["gpt"] = runs
        head = (
            f"**GPT** of width {WIDTH}, {steps} steps of {GPT_BATCH}, {BRANCHES} branches, "
            f"{GPT_ROUNDS} rounds, {len(seeds)} seeds; loss on test windows, nats"
        )
        parts.append(f"{head}\n\n{_table(runs, ('loss',), 1.0, 3)}")
    return Outcome("Pulse, split, cascade", parts, values, figures)


def _table(runs: dict[str, Any], names: tuple[str, ...], scale: float, digits: int) -> str:
    rows = []
    for arm, mine in runs.items():
        cells = [spread([r[name] for r in mine], scale, digits) for name in names]
        for other in (REFERENCE, "short run"):
            pair = [[r[names[0]] for r in side] for side in (mine, runs[other])]
            cells.append("" if arm == other else against(pair[0], pair[1], scale, digits))
        shares = [r["mergers"] for r in mine if r["mergers"] is not None]
        cells.append(f"{100 * sum(shares) / len(shares):.0f}" if shares else "")
        rows.append([arm, *cells])
    heads = ["arm", *names, f"{names[0]} less one run's", f"{names[0]} less a short run's"]
    return table([*heads, "rounds won by a merger, %"], rows)
