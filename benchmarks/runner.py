"""One run: a method trained through a stream, and everything that is measured on the way.

It knows settings and returns plain values for JSON. Records, parallel execution, averages over
seeds and pictures are elsewhere.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.baselines import METHODS, Method
from benchmarks.data import Dataset
from benchmarks.networks import masked, mlp
from benchmarks.settings import Settings
from benchmarks.streams import STREAMS, Stream

# The accuracy matrix uses whole test sets; the curves, taken often, the first examples of each:
# looking would otherwise take longer than training.
CURVE_EXAMPLES = 250
TRACED = ("surprise", "threshold")


def run(settings: Settings, data: Dataset) -> dict[str, Any]:
    """Train and measure. The result is plain values; accuracies are fractions in [0, 1]."""
    if settings.split == "validation":
        data = data.validation()
    stream = STREAMS[settings.stream](
        data,
        seed=settings.seed,
        tasks=settings.tasks,
        steps=settings.steps,
        batch=settings.batch,
        order=settings.order,
    )
    model = mlp(data.features, settings.hidden, stream.outputs, seed=settings.seed)
    # Whatever a method draws by itself is the same in every run of these settings.
    torch.manual_seed(settings.seed)
    method = METHODS[settings.method].build(model, settings.lr, settings.options)
    return _train(model, method, stream, settings)


def _train(model: nn.Module, method: Method, stream: Stream, settings: Settings) -> dict[str, Any]:
    probe = Probe(model, stream)
    trace: dict[str, list[float | None]] = {name: [] for name in TRACED}
    matrix: list[list[float]] = []
    steps: list[int] = []
    curves: list[list[float]] = []
    consolidations: list[int] = []
    seen, optimizer_s, training_s = 0, 0.0, 0.0

    def look(step: int) -> None:
        steps.append(step)
        curves.append(probe.accuracies())

    for task in range(stream.tasks):
        for step in range(stream.steps):
            here = task * stream.steps + step
            if step % settings.every == 0:
                look(here)
            batch = stream.batch(task, step)
            begun = perf_counter()
            logits = model(batch.x)
            loss = cross_entropy(masked(logits, batch.mask), batch.y)
            extra = method.penalty(batch, logits)
            method.optimizer.zero_grad()
            (loss if extra is None else loss + extra).backward()  # type: ignore[no-untyped-call]
            stepping = perf_counter()
            method.before_step(batch)
            method.optimizer.step()
            method.after_step(batch)
            ended = perf_counter()
            optimizer_s += ended - stepping
            training_s += ended - begun

            figures = method.diagnostics()
            if figures:
                for name in TRACED:
                    trace[name].append(_finite(figures[name]))
                if figures["consolidations"] > seen:
                    seen = int(figures["consolidations"])
                    consolidations.append(here)
        matrix.append([_accuracy(model, stream, j) for j in range(stream.tasks)])
        if method.told:
            method.boundary(stream.train(task))
    look(stream.tasks * stream.steps)

    total = stream.tasks * stream.steps
    return {
        "matrix": matrix,
        "curve_steps": steps,
        "curves": curves,
        "consolidations": consolidations,
        "trace": {name: values for name, values in trace.items() if values},
        "diagnostics": {name: _finite(value) for name, value in method.diagnostics().items()},
        "changes": [list(change) for change in stream.changes()],
        "ms_optimizer": 1e3 * optimizer_s / total,
        "ms_training": 1e3 * training_s / total,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


class Probe:
    """Quick accuracies on all tasks at once, on the first CURVE_EXAMPLES of each test set."""

    def __init__(self, model: nn.Module, stream: Stream) -> None:
        tests = [stream.test(task) for task in range(stream.tasks)]
        self.model = model
        self.sizes = [min(CURVE_EXAMPLES, len(test.y)) for test in tests]
        self.x = torch.cat([test.x[:CURVE_EXAMPLES] for test in tests])
        self.y = torch.cat([test.y[:CURVE_EXAMPLES] for test in tests])
        self.mask: Tensor | None = None
        masks = [test.mask for test in tests if test.mask is not None]
        if masks:
            self.mask = torch.cat(
                [mask.expand(size, -1) for mask, size in zip(masks, self.sizes, strict=True)]
            )

    @torch.no_grad()
    def accuracies(self) -> list[float]:
        hits = masked(self.model(self.x), self.mask).argmax(1) == self.y
        return [round(float(part.float().mean()), 5) for part in torch.split(hits, self.sizes)]


@torch.no_grad()
def _accuracy(model: nn.Module, stream: Stream, task: int) -> float:
    test = stream.test(task)
    hits = masked(model(test.x), test.mask).argmax(1) == test.y
    return float(hits.double().mean())


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return round(float(value), 6) if math.isfinite(value) else None
