"""Statistics over seeds: mean, sample SD, SEM, and paired differences with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from benchmarks.data.errors import UserError

RESAMPLES, LEVEL = 10_000, 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over `count` seeds (SD 0 for one seed)."""

    mean: float
    sd: float
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))

    @property
    def sem(self) -> float:
        """Standard error of the mean: SD over the root of the number of seeds."""
        return self.sd / float(self.count**0.5)


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, and its bootstrap interval."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0; one seed never says so."""
        return self.count > 1 and (self.low > 0 or self.high < 0)

    def text(self, scale: float = 1.0, digits: int = 1) -> str:
        """Mean and interval; bold, as Markdown has it, where that excludes 0."""
        mean, low, high = (scale * x for x in (self.mean, self.low, self.high))
        written = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
        return f"**{written}**" if self.excludes_zero else written


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """ours - theirs, seed by seed, with a percentile bootstrap interval of 95% over seeds.

    With few seeds a percentile interval is too narrow (at 5, it covers about 83%): ten or more
    seeds are what the protocol asks for. The same values always give the same interval.
    """
    if len(ours) != len(theirs) or not ours:
        raise UserError(
            f"paired difference: {len(ours)} seeds against {len(theirs)}; "
            "allowed: the same seeds, at least one"
        )
    gaps = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    low, high = interval(np.mean, gaps)
    return Difference(float(gaps.mean()), low, high, len(gaps))


def interval(
    statistic: Callable[..., Any],
    *samples: Sequence[float] | np.ndarray[Any, Any],
    vectorized: bool = True,
) -> tuple[float, float]:
    """Percentile bootstrap interval of 95% over seeds, all samples resampled together.

    The same values always give the same interval. One seed has no interval: both ends are its
    value.

    Args:
        statistic: of one array a sample; with `axis` where it is `vectorized`.
        samples: a value a seed, in the same order of seeds.
        vectorized: whether the statistic takes an axis.
    """
    # scipy.stats is slow to import, and a run needs none of it
    from scipy.stats import bootstrap

    if len(samples[0]) < 2:
        value = float(statistic(*(np.asarray(sample) for sample in samples)))
        return value, value
    found = bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        paired=len(samples) > 1,
        vectorized=vectorized,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)
