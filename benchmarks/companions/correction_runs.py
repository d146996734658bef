"""Runs of a small GPT on eight sources of text, some of which go bad, with corrections on the way.

`train` returns what was seen on every fourth step. What is compared is in correction.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.companions.collapse_runs import (
    BATCH,
    EVERY,
    LAYERS,
    RAMP,
    RATE,
    SETTLED,
    STEPS,
    WIDTH,
    Trace,
    see,
)
from benchmarks.data.characters import VOCABULARY, corpus, windows
from benchmarks.runs.gpt import GPT
from sal_optim.companions import Correction, SpectralMonitor

SOURCES, BAD = 8, 4
MODES = ("learning rate", "garbled", "both")
Decide = Callable[[Trace, int], bool]


@lru_cache(maxsize=1)
def texts() -> tuple[list[Tensor], Tensor]:
    """The sources, stretches of one text, and held-out windows of what comes after them."""
    codes = corpus(600_000)
    split = int(0.9 * len(codes))
    return list(codes[:split].chunk(SOURCES)), windows(
        codes[split:], 8, torch.Generator().manual_seed(7)
    )


def train(
    seed: int,
    mode: str | None,
    *,
    steps: int = STEPS,
    decide: Decide | None = None,
    halve: bool = False,
    reweight: bool = False,
    shuffled: bool = False,
    always: bool = False,
) -> Trace:
    """One run; `mode` None is healthy.

    Args:
        decide: whether there is an alarm, by what was seen; looked at every fourth step.
        halve: whether an alarm halves the learning rate.
        reweight: whether it draws more from sources of low risk.
        shuffled: whether risks are told of other sources than theirs, as a control.
        always: whether sources are reweighted from the first step on.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    sources, held = texts()
    model, draw = GPT(WIDTH), torch.Generator().manual_seed(seed)
    onset = SETTLED + int(torch.randint(4, 20, (1,), generator=draw))
    order = torch.randperm(SOURCES, generator=draw)
    bad, other = set(order[:BAD].tolist()), order.roll(1)[order.argsort()].tolist()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    monitor = SpectralMonitor(model, LAYERS, every=EVERY)
    correction = Correction(optimizer if halve else None, SOURCES if reweight else 0)
    if always:
        correction()
    # One character for another, so that what a bad source teaches contradicts the good ones.
    cipher = torch.cat([torch.arange(32), 32 + torch.randperm(VOCABULARY - 32, generator=draw)])
    trace, rise = Trace(), 1.0
    for step in range(steps):
        fault = 0.0 if mode is None else min(1.0, max(0.0, (step - onset) / RAMP))
        now = 100.0**fault if mode in (MODES[0], MODES[2]) else 1.0
        for group in optimizer.param_groups:
            group["lr"] *= now / rise
        rise = now
        weights = correction.weights() if reweight else torch.full((SOURCES,), 1.0 / SOURCES)
        chosen = torch.multinomial(weights, BATCH, replacement=True, generator=draw).tolist()
        batch = torch.cat([windows(sources[source], 1, draw) for source in chosen])
        garbled = torch.rand(BATCH, generator=draw) < fault
        if mode in MODES[1:]:
            for row, source in enumerate(chosen):
                if source in bad and garbled[row]:
                    batch[row] = cipher[batch[row]]
        optimizer.zero_grad()
        logits = model(batch[:, :-1])
        each = cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
        ).view(BATCH, -1).mean(1)  # fmt: skip
        loss = each.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        optimizer.step()
        if reweight:
            middle = each.detach().median()
            for source, risk in zip(chosen, (each.detach() - middle).abs().tolist(), strict=True):
                if math.isfinite(risk):
                    correction.see(other[source] if shuffled else source, risk)
        if monitor.step():
            see(trace, step, monitor, float(loss.detach()), float(norm), model, held)
            if decide is not None and decide(trace, step):
                correction()
                trace.halvings.append(step)
    monitor.remove()
    return trace
