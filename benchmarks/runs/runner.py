"""One run: a method trained through a stream, and everything that is measured on the way.

It knows settings and returns plain values for JSON. Records, parallel execution, averages over
seeds and pictures are elsewhere.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.data.sets import Dataset
from benchmarks.methods import METHODS, Method
from benchmarks.runs.networks import build
from benchmarks.runs.probe import LONG, Probe
from benchmarks.runs.settings import Settings
from benchmarks.streams import STREAMS, Stream, masked

TRACED = ("surprise", "threshold")
COUNTED = ("consolidations", "changes")
SPECTRUM = ("protected", "neutral", "volatile", "mean_gate")
# Steps after a switch at which the curves look besides their regular looks: the stability gap.
SWITCH_LOOKS = (1, 2, 3, 5, 8, 12, 20)
# Traces keep so many points; of a longer run each is the largest of its stretch.
TRACE_POINTS = 20_000


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
    model = build(
        settings.net,
        data.features,
        settings.hidden,
        stream.outputs,
        seed=settings.seed,
        dropout=settings.dropout,
    )
    # Whatever a method draws by itself is the same in every run of these settings.
    torch.manual_seed(settings.seed)
    method = METHODS[settings.method].build(model, settings.lr, settings.options)
    method.clip = settings.clip
    return _train(model, method, stream, settings)


class Watch:
    """What is seen of one run on the way: looks, traces, consolidations, detected changes."""

    def __init__(self, model: nn.Module, method: Method, stream: Stream) -> None:
        self.model, self.method, self.probe = model, method, Probe(model, stream)
        self.steps: list[int] = []
        self.curves: list[list[float]] = []
        self.spectrum: dict[str, list[float | None]] = {}
        self.drift: list[float | None] = []
        self.first: list[torch.Tensor] | None = None
        self.stride = max(1, stream.tasks * stream.steps // TRACE_POINTS)
        self.trace: dict[str, list[float | None]] = {}
        # Steps at which a count of the diagnostics rose, by its name.
        self.rises: dict[str, list[int]] = {name: [] for name in COUNTED}
        self.seen = dict.fromkeys(COUNTED, 0.0)

    def look(self, step: int) -> None:
        """Accuracies, the spectrum of stability, and the way since the end of the first task."""
        self.steps.append(step)
        self.curves.append(self.probe.quick())
        figures = self.method.diagnostics()
        for name in SPECTRUM:
            if name in figures:
                self.spectrum.setdefault(name, []).append(_finite(figures[name]))
        self.drift.append(self._drift())

    @torch.no_grad()
    def _drift(self) -> float | None:
        if self.first is None:
            return 0.0
        pairs = list(zip(self.model.parameters(), self.first, strict=True))
        moved = sum(float((p - old).square().sum()) for p, old in pairs)
        size = sum(float(old.square().sum()) for _, old in pairs)
        return _finite(math.sqrt(moved / size))

    def after_step(self, step: int) -> None:
        figures = self.method.diagnostics()
        if not figures:
            return
        for name in TRACED:
            values, value = self.trace.setdefault(name, []), _finite(figures[name])
            if step % self.stride == 0:
                values.append(value)
            elif value is not None and (values[-1] is None or value > values[-1]):
                values[-1] = value
        for name in COUNTED:
            if figures[name] > self.seen[name]:
                self.seen[name] = figures[name]
                self.rises[name].append(step)

    def after_task(self) -> None:
        if self.first is None:
            self.first = [p.detach().clone() for p in self.model.parameters()]

    def result(self) -> dict[str, Any]:
        return {
            "curve_steps": self.steps,
            "curves": self.curves,
            "spectrum": self.spectrum,
            "drift": self.drift,
            "consolidations": self.rises["consolidations"],
            "detected": self.rises["changes"],
            "trace": self.trace,
            "trace_stride": self.stride,
        }


def _train(model: nn.Module, method: Method, stream: Stream, settings: Settings) -> dict[str, Any]:
    watch = Watch(model, method, stream)
    initial = watch.probe.row(None)
    matrix: list[list[float]] = []
    online: list[float] = []
    suppressed: list[dict[str, float]] = []
    optimizer_s, training_s = 0.0, 0.0
    switch_looks = SWITCH_LOOKS if stream.tasks <= LONG else ()

    for task in range(stream.tasks):
        hits = 0
        for step in range(stream.steps):
            here = task * stream.steps + step
            if step % settings.every == 0 or (task and step in switch_looks):
                watch.look(here)
            batch = (stream.joint if method.joint else stream.batch)(task, step)
            begun = perf_counter()
            logits = model(batch.x)
            loss = cross_entropy(masked(logits, batch.mask), batch.y)
            extra = method.penalty(batch, logits)
            method.optimizer.zero_grad()
            (loss if extra is None else loss + extra).backward()  # type: ignore[no-untyped-call]
            if settings.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            stepping = perf_counter()
            method.before_step(batch)
            method.optimizer.step()
            method.after_step(batch)
            ended = perf_counter()
            optimizer_s += ended - stepping
            training_s += ended - begun

            # Predictions that were made before the step that learned from their labels.
            hits += int((masked(logits.detach(), batch.mask).argmax(1) == batch.y).sum())
            watch.after_step(here)
        matrix.append(watch.probe.row(task))
        online.append(hits / (stream.steps * stream.batch_size))
        suppressed.append(method.suppressed())
        watch.after_task()
        if method.told:
            model.eval()
            method.boundary(stream.train(task))
            model.train()
    watch.look(stream.tasks * stream.steps)

    total = stream.tasks * stream.steps
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "matrix": matrix,
        "initial": initial,
        "online": online,
        "chance": watch.probe.chance,
        **watch.result(),
        "suppressed": [layer for layer in suppressed if layer],
        "diagnostics": {name: _finite(value) for name, value in method.diagnostics().items()},
        "changes": [list(change) for change in stream.changes()],
        "ms_optimizer": 1e3 * optimizer_s / total,
        "ms_training": 1e3 * training_s / total,
        "parameters": parameters,
        "bytes_per_parameter": method.state_bytes() / parameters,
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return round(float(value), 6) if math.isfinite(value) else None
