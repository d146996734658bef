"""`python -m benchmarks crosscheck`: our baselines beside Avalanche's, on the same batches.

Both start from the same weights and see the same examples in the same order, so that plain training
has to end in the same weights, and a method that is told boundaries differs only by what it is.
Strengths are chosen for each implementation by itself, on tuning seeds and validation data. What is
compared, and what differs by design, is in docs/baselines.md.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.commands.options import add_common, check_common, parser, read_data
from benchmarks.data.errors import UserError
from benchmarks.data.sets import Dataset
from benchmarks.external.avalanche_plugins import copying_si
from benchmarks.methods import METHODS
from benchmarks.metrics.scores import average, learned, worst
from benchmarks.metrics.spread import Spread
from benchmarks.runs.networks import build
from benchmarks.runs.plan import settings_for
from benchmarks.runs.probe import Probe
from benchmarks.runs.records import write_atomically
from benchmarks.runs.settings import TUNING_SEED, Settings
from benchmarks.streams import STREAMS, Stream, masked

EXAMPLES = """\
examples:
  python -m benchmarks crosscheck
  python -m benchmarks crosscheck --steps 100 --seeds 3
"""
STREAM, TUNING_SEEDS = "permuted", 2
Matrix = list[list[float]]
FISHER_GRID = tuple(10.0**power for power in range(7))
# What we call the method, what Avalanche's form of it is called, and the strengths to choose from.
GRIDS: dict[str, tuple[str, tuple[float, ...]]] = {
    "adam": ("naive", (0.0,)),
    "ewc": ("EWC", FISHER_GRID),
    "ewc by example": ("EWC, Fisher by example", FISHER_GRID),
    "si": ("SI, weights copied", tuple(10.0**power for power in range(-1, 7))),
    "mas": ("MAS", tuple(10.0**power for power in range(-3, 3))),
}


def arguments() -> argparse.ArgumentParser:
    made = parser("python -m benchmarks crosscheck", "Our baselines beside Avalanche's.", EXAMPLES)
    add_common(made)
    made.add_argument("--seeds", type=int, help="seeds 0 … N-1 are compared (default: 5)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    check_common(args)
    for name in ("clip", "dropout"):
        if getattr(args, name):
            raise UserError(f"--{name}: {getattr(args, name):g}; allowed for crosscheck: none")
    if importlib.util.find_spec("avalanche") is None:
        raise UserError("crosscheck: needs Avalanche; `pip install avalanche-lib` installs it")
    torch.set_num_threads(1)
    data, messages = read_data(args, [STREAM]), Console(stderr=True)
    heads = "average accuracy | minimum | learning accuracy"
    lines = [f"| method | implementation | strength | {heads} |",
             "|---|---|---:|---:|---:|---:|"]  # fmt: skip
    for label, (name, strengths) in GRIDS.items():
        for who, train in (("here", ours), (f"Avalanche, {name}", avalanche(name))):
            if who == "here" and " " in label:
                continue
            method = label.partition(" ")[0]
            best = _best(train, method, strengths, data, args)
            runs = [train(_settings(method, seed, data, args), data, best)
                    for seed in range(args.seeds or 5)]  # fmt: skip
            cells = [_percent(score, runs) for score in (average, worst, learned)]
            lines.append(f"| {method} | {who} | {best:g} | {' | '.join(cells)} |")
            messages.print(lines[-1], highlight=False)
    text = "\n".join(lines) + "\n"
    write_atomically(args.out / "crosscheck.md", text)
    print(text + f"written: {args.out}/crosscheck.md")
    return 0


Train = Callable[[Settings, Dataset, float], Matrix]


def _settings(method: str, seed: int, data: Dataset, args: argparse.Namespace) -> Settings:
    return settings_for(METHODS[method], STREAM, seed, data, args, options={})


def _best(
    train: Train, method: str, strengths: Sequence[float], data: Dataset, args: argparse.Namespace
) -> float:
    """The strength with the best average on tuning seeds and validation data."""
    if len(strengths) == 1:
        return strengths[0]
    settings = [
        replace(_settings(method, TUNING_SEED + place, data, args), split="validation")
        for place in range(TUNING_SEEDS)
    ]
    part = data.validation()
    scores = {s: sum(average(train(one, part, s)) for one in settings) for s in strengths}
    return max(scores, key=lambda strength: scores[strength])


def _percent(score: Callable[[Matrix], float], runs: Sequence[Matrix]) -> str:
    spread = Spread.of([100 * score(matrix) for matrix in runs])
    return f"{spread.mean:.1f} ± {spread.sd:.1f}"


def stream_of(settings: Settings, data: Dataset) -> Stream:
    return STREAMS[settings.stream](
        data,
        seed=settings.seed,
        tasks=settings.tasks,
        steps=settings.steps,
        batch=settings.batch,
        order=settings.order,
    )


def _model(settings: Settings, data: Dataset, stream: Stream) -> nn.Sequential:
    return build(settings.net, data.features, settings.hidden, stream.outputs, seed=settings.seed)


def ours(settings: Settings, data: Dataset, strength: float) -> Matrix:
    """The accuracy matrix of one of our methods, without all else that a run of the suite notes."""
    stream = stream_of(settings, data)
    model = _model(settings, data, stream)
    options = {"strength": strength} if strength else {}
    method = METHODS[settings.method].build(model, settings.lr, options)
    probe, matrix = Probe(model, stream), []
    for task in range(stream.tasks):
        for step in range(stream.steps):
            batch = stream.batch(task, step)
            loss = cross_entropy(masked(model(batch.x), batch.mask), batch.y)
            method.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            method.before_step(batch)
            method.optimizer.step()
            method.after_step(batch)
        matrix.append(probe.row(task))
        method.boundary(stream.train(task))
    return matrix


def avalanche(name: str) -> Train:
    """The same by one of Avalanche's plugins."""

    def train(settings: Settings, data: Dataset, strength: float) -> Matrix:
        from avalanche.training.supervised import Naive

        stream = stream_of(settings, data)
        model = _model(settings, data, stream)
        probe, matrix = Probe(model, stream), []
        strategy = Naive(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=settings.lr),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=settings.batch,
            train_epochs=1,
            plugins=_plugins(name, strength, len(stream.members("train", 0))),
            evaluator=None,
        )
        for task, experience in enumerate(_experiences(stream)):
            strategy.train(experience, shuffle=False)
            matrix.append(probe.row(task))
        return matrix

    return train


def _plugins(name: str, strength: float, epoch: int) -> list[Any]:
    """`epoch`: examples of a task; the experience repeats them."""
    from avalanche.training import plugins

    class ByExample(plugins.EWCPlugin):  # type: ignore[misc]
        """With the gradients of single examples squared, not the mean gradients of batches."""

        def compute_importances(self, model: Any, criterion: Any, optimizer: Any, dataset: Any,
                                device: Any, batch_size: int, **more: Any) -> Any:  # fmt: skip
            once = dataset.subset(range(epoch))
            return super().compute_importances(model, criterion, optimizer, once, device, 1, **more)

    # Its penalties: λ · F · Δ² for EWC, which has a half here; c/2 · Ω · Δ² for SI, which has none.
    made: dict[str, Callable[[], list[Any]]] = {
        "naive": list,
        "EWC": lambda: [plugins.EWCPlugin(strength / 2)],
        "EWC, Fisher by example": lambda: [ByExample(strength / 2)],
        "SI": lambda: [plugins.SynapticIntelligencePlugin(2 * strength)],
        "SI, weights copied": lambda: [copying_si(2 * strength)],
        "MAS": lambda: [plugins.MASPlugin(lambda_reg=strength)],
    }
    return made[name]()


def _experiences(stream: Stream) -> Iterator[Any]:
    """Each task as one epoch of exactly the examples that our methods see, in their order."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import AvalancheDataset
    from avalanche.benchmarks.utils.data_attribute import ConstantSequence, DataAttribute
    from torch.utils.data import TensorDataset

    datasets = []
    for task in range(stream.tasks):
        batches = [stream.batch(task, step) for step in range(stream.steps)]
        x, y = torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])
        label = DataAttribute(
            ConstantSequence(0, len(y)), "targets_task_labels", use_in_getitem=True
        )
        datasets.append(AvalancheDataset([TensorDataset(x, y)], data_attributes=[label]))
    yield from benchmark_from_datasets(train=datasets).train_stream
