"""Self-modelling (arXiv 2407.10188): which of the paper's claims hold here, against controls.

Five arms, on the same seeds and batches: none; self, which predicts its last hidden activations;
the same with targets of other samples of the batch; the penalty w · mean(a²) of the same weight;
and weight decay, at the strength that comes nearest to self's cross-entropy on training data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from joblib import Parallel, delayed
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, mse_loss

from benchmarks.companions.brown import VOCABULARY, load_brown
from benchmarks.companions.llc import estimate
from benchmarks.companions.page import Options, Outcome, against, spread, table
from benchmarks.data.sets import Dataset, load
from benchmarks.reports.drawing import panels_of
from benchmarks.runs.networks import build
from benchmarks.runs.settings import TUNING_SEED
from sal_optim.companions import SelfModel
from sal_optim.companions.spectral import spectrum_of

PREDICTION = (
    "self narrows the effective rank of the hidden layer and lowers the local learning "
    "coefficient at the same accuracy; the spread of the final layer's weights does not fall by "
    "more than weight decay's at equal cross-entropy. Targets of other samples do as much to the "
    "rank as self, since both reward activations that vary little; the penalty a² widens the rank."
)
ARMS = ("none", "self", "shuffled", "a²", "decay")
DECAYS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
BATCH, MOST_TRAIN, MOST_TEST = 64, 8000, 2000
HALVED = "fashion-mnist"  # shown at 14 x 14, which costs a conv net a quarter


@dataclass(frozen=True)
class Setting:
    """A network on a data set: how long it is trained, and the weight of self and a²."""

    steps: int
    weight: float
    make: Callable[[], nn.Sequential]


def _text() -> nn.Sequential:
    bag = nn.EmbeddingBag(VOCABULARY, 64, mode="mean")
    return nn.Sequential(bag, nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 15))


SETTINGS = {
    "mnist": Setting(400, 10.0, lambda: build("mlp", 784, (128,), 10, seed=0)),
    "fashion-mnist": Setting(200, 2.0, lambda: build("conv", 196, (64,), 10, seed=0)),
    "brown": Setting(300, 100.0, _text),
}
PARTS = tuple(SETTINGS)


@lru_cache(maxsize=1)
def _data(name: str, data_dir: str | None) -> Dataset:
    found = load_brown(data_dir) if name == "brown" else load(name, data_dir)
    order = torch.randperm(len(found.train_y), generator=torch.Generator().manual_seed(0))
    keep, test = order[:MOST_TRAIN], slice(0, MOST_TEST if name != "brown" else None)
    train_x, test_x = found.train_x[keep], found.test_x[test]
    if name == HALVED:
        train_x, test_x = (
            avg_pool2d(x.view(-1, 1, 28, 28), 2).flatten(1) for x in (train_x, test_x)
        )
    return Dataset(name, train_x, found.train_y[keep], test_x, found.test_y[test])


def one(
    name: str, data_dir: str | None, steps: int, arm: str, decay: float, seed: int, llc: bool
) -> dict[str, Any]:
    """Train one arm, and measure it."""
    torch.set_num_threads(1)
    data, setting = _data(name, data_dir), SETTINGS[name]
    torch.manual_seed(seed)
    model = setting.make()
    for module in model.modules():  # drawn anew, by the seed
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    last = model[-1]
    assert isinstance(last, nn.Linear)
    own = SelfModel(model, str(len(model) - 2), setting.weight, features=last.in_features)
    params = [*model.parameters(), *own.parameters()]
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=decay)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(data.train_y), (BATCH,), generator=draw)
        hidden = model[:-1](data.train_x[rows])
        loss = cross_entropy(last(hidden), data.train_y[rows])
        if arm == "self":
            loss = loss + own.loss()
        elif arm == "shuffled":
            other = hidden.detach()[torch.randperm(BATCH, generator=draw)]
            loss = loss + setting.weight * mse_loss(own(hidden), other)
        elif arm == "a²":
            loss = loss + setting.weight * hidden.square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    own.remove()
    return _measured(model, data, seed, llc)


def _measured(model: nn.Sequential, data: Dataset, seed: int, llc: bool) -> dict[str, Any]:
    with torch.no_grad():
        hidden = model[:-1](data.test_x)
        logits = model[-1](hidden)
        found: dict[str, Any] = {
            "accuracy": float((logits.argmax(1) == data.test_y).float().mean()),
            "train_ce": float(cross_entropy(model(data.train_x[:2000]), data.train_y[:2000])),
            "test_ce": float(cross_entropy(logits, data.test_y)),
            "final_sd": float(next(model[-1].parameters()).std()),
            "rank": spectrum_of(hidden)["rankme"],
        }

    def loss(network: nn.Module, rows: Tensor) -> Tensor:
        return cross_entropy(network(data.train_x[rows]), data.train_y[rows])

    if llc:
        value = estimate(model, loss, len(data.train_y), seed=seed, steps=100)
        found["llc"] = value if value is not None and math.isfinite(value) else None
    return found


def equal_decay(name: str, options: Options, steps: int) -> float:
    """The decay whose training cross-entropy is nearest to self's, on a tuning seed."""

    def ce(arm: str, decay: float) -> float:
        told = one(name, options.data_dir, steps, arm, decay, TUNING_SEED, False)
        return float(told["train_ce"])

    goal = ce("self", 0.0)
    return min(DECAYS, key=lambda decay: abs(ce("decay", decay) - goal))


def run(options: Options) -> Outcome:
    parts, values = [], {}
    wanted = [name for name in SETTINGS if options.wants(name)]
    figure, axes = panels_of(
        len(wanted), width=4.0, height=3.4, title="Effective rank and learning coefficient"
    )
    for place, name in enumerate(wanted):
        setting = SETTINGS[name]
        steps = options.length(setting.steps)
        decay = equal_decay(name, options, steps)
        runs = Parallel(n_jobs=options.jobs)(
            delayed(one)(
                name, options.data_dir, steps, arm, decay if arm == "decay" else 0.0, seed, True
            )
            for arm in ARMS
            for seed in range(options.seeds)
        )
        found = {
            arm: runs[i * options.seeds : (i + 1) * options.seeds] for i, arm in enumerate(ARMS)
        }
        values[name] = {"decay": decay, "weight": setting.weight, "runs": found}
        parts.append(
            f"**{name}**, {steps} steps of {BATCH}, w = {setting.weight:g}, weight decay "
            f"{decay:g}, {options.seeds} seeds\n\n{_table(found)}"
        )
        for arm in ARMS:
            valid = [r for r in found[arm] if _valid(r)]
            shown = [[r["rank"] for r in valid], [r["llc"] for r in valid]]
            axes[place].scatter(shown[0], shown[1], s=14, label=arm)
        axes[place].set(title=name, xlabel="effective rank, hidden", ylabel="LLC, valid points")
    axes[0].legend(frameon=False, fontsize=8)
    return Outcome("Self-modelling against its controls", parts, values, {"rank": figure})


def _valid(told: dict[str, Any]) -> bool:
    return told.get("llc") is not None and told["llc"] >= 0.0


def _table(found: dict[str, list[dict[str, Any]]]) -> str:
    shown = (("accuracy", 100.0, 1), ("train_ce", 1.0, 3), ("final_sd", 1.0, 4), ("rank", 1.0, 1))
    heads = ["arm", "accuracy %", "training CE", "SD of final weights", "effective rank", "LLC"]
    heads += ["LLC invalid", "accuracy less none", "SD less none", "rank less none"]
    heads += ["LLC less none", "rank less decay's"]
    rows = []
    for arm, runs in found.items():
        cells = [spread([r[n] for r in runs], scale, digits) for n, scale, digits in shown]
        valid = [r["llc"] for r in runs if _valid(r)]
        cells += [spread(valid) if valid else "none"]
        known = [r for r in runs if r.get("llc") is not None]
        cells += [f"{len(runs) - len(valid)} of {len(runs)}" if known else ""]
        if arm != "none":
            base = found["none"]
            for n, scale, digits in (shown[0], shown[2], shown[3]):
                ours, theirs = ([r[n] for r in side] for side in (runs, base))
                cells.append(against(ours, theirs, scale, digits))
            both = [(a, b) for a, b in zip(runs, base, strict=True) if _valid(a) and _valid(b)]
            llcs = [[pair[i]["llc"] for pair in both] for i in (0, 1)]
            cells.append(against(llcs[0], llcs[1]) if both else "")
            ranks = [[r["rank"] for r in side] for side in (runs, found["decay"])]
            cells.append(against(ranks[0], ranks[1]) if arm != "decay" else "")
        rows.append([arm, *cells, *[""] * (len(heads) - 1 - len(cells))])
    return table(heads, rows)
