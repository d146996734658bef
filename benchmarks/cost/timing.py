"""Timing two things in turns, so that both see the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch


@dataclass(frozen=True)
class Paired:
    """Seconds a call of both, and their ratio: medians, and the ratio's quartiles."""

    seconds: float
    reference: float
    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, turns: Sequence[tuple[float, float]]) -> Paired:
        """From the seconds of both in each turn."""
        mine, theirs = zip(*turns, strict=True)
        ratios = [a / b for a, b in turns]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        return cls(median(mine), median(theirs), median(ratios), low, high)


def clock(call: Callable[[], object], count: int) -> float:
    """Seconds a call, over ``count`` calls; an accelerator is waited for before and after."""
    _wait()
    begun = time.perf_counter()
    for _ in range(count):
        call()
    _wait()
    return (time.perf_counter() - begun) / count


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def paired(
    call: Callable[[], object],
    reference: Callable[[], object],
    *,
    repeats: int,
    least: float = 0.01,
) -> Paired:
    """Time two things in turns; arguments as for :func:`turns`."""
    return Paired.of(turns(call, reference, repeats=repeats, least=least))


def turns(
    call: Callable[[], object],
    reference: Callable[[], object],
    *,
    repeats: int,
    least: float = 0.01,
    multiple: int = 4,
) -> list[tuple[float, float]]:
    """Seconds a call of both, in turns.

    Args:
        call, reference: what is timed.
        repeats: turns.
        least: seconds that a turn of each lasts at the least.
        multiple: calls of a turn are a multiple of this: SAL's steps differ in turns of four.
    """
    counts = []
    for one in (call, reference):
        clock(one, multiple)
        counts.append(multiple * max(1, round(least / (multiple * clock(one, multiple)))))
    return [(clock(call, counts[0]), clock(reference, counts[1])) for _ in range(repeats)]


def copy_bandwidth(elements: int, device: str = "cpu", repeats: int = 15) -> float:
    """Bytes a second that a copy of ``elements`` float32 values reads and writes."""
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    count = max(1, 4_000_000 // elements)
    seconds = median(clock(lambda: target.copy_(source), count) for _ in range(repeats))
    return 8 * elements / seconds
