"""``CellularMemory``: a bank of prototypes under a fixed budget, for classifying and for replay.

What lasts is a set of pooled patterns, not frozen parameters. It looks at features that it is
given, and trains nothing; how features are made, and how replayed ones are used, is the caller's.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sal_optim.utils import checks

_COUNTS = ("births", "growths", "merges", "deaths")
_TENSORS = ("centres", "masses", "scatters", "labels")
# Whatever torch's defaults are.
_HOST: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


class CellularMemory:
    """Cells: each a mean of similar features of one label, their number and their spread.

    At each :meth:`observe`:

    - *decay*: cells of the labels that are given lose a part of their mass, and those below
      ``floor`` *die*, but for the last cell of a label. Cells of other labels rest, so that what is
      not seen any more is not forgotten for that.
    - *growth*: a sample is pooled into the nearest cell of its label, of mass m at distance d, by
      the running mean, if that increases the sum of squares, by m/(m + 1)·d², no more than the last
      merging within the label did, which is what room for a cell has cost.
    - *birth*: any other sample becomes a cell.
    - *merging*: while there are more than ``budget``, two cells of the label with most cells are
      pooled: those that increase the sum of squares least, by m₁·m₂/(m₁ + m₂)·d² (Ward, 1963). So
      labels share the budget evenly, however many samples each has had.

    It keeps ``features + 3`` numbers of float32 a cell, and no sample.

    Args:
        features: of a sample.
        budget: largest number of cells, at least that of the labels that will come.
        decay: what is left of a mass, in (0, 1]; 1: cells do not die.
        floor: mass below which a cell dies, at least 0. A sample has a mass of 1.
    """

    def __init__(
        self, features: int, budget: int, *, decay: float = 1.0, floor: float = 0.5
    ) -> None:
        self.features = checks.whole("features", features, low=1)
        self.budget = checks.whole("budget", budget, low=1)
        self.decay = checks.number("decay", decay, high=1.0, low_open=True, high_open=False)
        self.floor = checks.number("floor", floor)
        self.centres = torch.empty(0, self.features, **_HOST)
        self.masses = torch.empty(0, **_HOST)
        self.scatters = torch.empty(0, **_HOST)  # sums of squared distances to the centre
        self.labels = torch.empty(0, dtype=torch.long, device="cpu")
        self._prices: dict[int, float] = {}  # of the last merging, by label
        self._counts = dict.fromkeys(_COUNTS, 0)

    def __len__(self) -> int:
        return len(self.masses)

    @torch.no_grad()
    def observe(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch; the bank is on the device of the last one.

        Args:
            features: samples by features, finite.
            labels: of the samples, whole numbers.

        Raises:
            ValueError: shapes do not fit, a feature is not finite, or there are more labels than
                the budget. Nothing has changed then.
        """
        x = self._checked(features)
        y = _labels(labels, len(x)).to(x.device)
        known = _unique(torch.cat([self.labels.to(x.device), y]))
        if len(known) > self.budget:
            raise ValueError(
                f"Invalid labels value: {len(known)} labels with those before; labels must be at "
                f"most as many as the budget of {self.budget} cells"
            )
        for name in _TENSORS:
            setattr(self, name, getattr(self, name).to(x.device))
        self._age(y)
        inside, nearest = self._near(x, y)
        if inside.any():
            self._grow(x[inside], nearest[inside])
        new = ~inside
        self._counts["births"] += int(new.sum())
        self._join(x[new], y[new])
        self._merge()

    def predict(self, features: Tensor) -> Tensor:
        """The label of the nearest cell, by Euclidean distance; samples by features -> samples.

        Raises:
            ValueError: shapes do not fit, a feature is not finite, or the memory is empty.
        """
        x = self._checked(features)
        self._not_empty("predict")
        return self.labels.to(x.device)[torch.cdist(x, self.centres.to(x.device)).argmin(1)]

    def sample(
        self, count: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pseudo-samples: features and their labels, each label as likely as any other.

        Within a label a cell is drawn in proportion to its mass, and normal noise of the cell's
        spread, equal in all features, is added to its centre.

        Args:
            count: at least 1.
            generator: on the CPU. Default: the global one.

        Raises:
            ValueError: the memory is empty.
        """
        count = checks.whole("count", count, low=1)
        self._not_empty("sample")
        shares = torch.zeros(len(self), **_HOST)
        labels, masses = self.labels.cpu(), self.masses.cpu()
        for label in _unique(labels):
            own = labels == label
            shares[own] = masses[own] / masses[own].sum()
        rows = torch.multinomial(shares, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.features, generator=generator, **_HOST)
        noise = noise.to(self.centres.device)
        rows = rows.to(self.centres.device)
        return self.centres[rows] + self.spreads()[rows, None] * noise, self.labels[rows]

    def spreads(self) -> Tensor:
        """Standard deviation of the features within each cell, averaged over features."""
        return (self.scatters / (self.masses * self.features)).sqrt()

    def bytes(self) -> int:
        """What a full memory takes: centres, masses and scatters in float32, a label as well."""
        return 4 * self.budget * (self.features + 3)

    def diagnostics(self) -> dict[str, float]:
        """Floats for a logger: ``cells``, and how many births, growths, merges and deaths there
        were."""
        counts = {name: float(count) for name, count in self._counts.items()}
        return {"cells": float(len(self)), **counts}

    def state_dict(self) -> dict[str, Any]:
        """All cells, what room has cost, and the counts."""
        tensors = {name: getattr(self, name).clone() for name in _TENSORS}
        return {**tensors, "prices": dict(self._prices), "counts": dict(self._counts)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            TypeError: it is no dict.
            ValueError: something is missing, is of a wrong kind or not finite, or its cells do not
                fit the features or the budget.
        """
        checks.saved(
            state_dict, {**dict.fromkeys(_TENSORS, Tensor), "prices": Mapping, "counts": Mapping}
        )
        shape = tuple(state_dict["centres"].shape)
        if len(shape) != 2 or shape[1] != self.features or shape[0] > self.budget:
            raise ValueError(
                f"Invalid state_dict value: centres of shape {shape}; they must be at most "
                f"{self.budget} cells of {self.features} features"
            )
        found = {}
        for name in _TENSORS:
            value, dtype = state_dict[name], getattr(self, name).dtype
            wanted = shape if name == "centres" else shape[:1]
            low = 0.0 if name in ("masses", "scatters") else -torch.inf
            if (
                value.shape != wanted
                or value.is_floating_point() != dtype.is_floating_point
                or not bool((value.isfinite() & (value >= low)).all())
            ):
                raise ValueError(
                    f"Invalid state_dict value: {name} of shape {tuple(value.shape)}, "
                    f"{value.dtype}; they must be finite, of shape {wanted} and as {dtype}"
                )
            found[name] = value.to(dtype, copy=True)
        prices = {
            int(checks.number("prices", label, low=-torch.inf)): checks.number("prices", price)
            for label, price in state_dict["prices"].items()
        }
        counts = {
            name: checks.whole(name, state_dict["counts"].get(name), low=0) for name in _COUNTS
        }
        for name in _TENSORS:
            setattr(self, name, found[name])
        self._prices, self._counts = prices, counts

    def _age(self, seen: Tensor) -> None:
        """Decay and death."""
        if self.decay == 1.0 or not len(self):
            return
        aged = torch.isin(self.labels, seen)
        factor = torch.where(aged, self.decay, 1.0)
        self.masses, self.scatters = self.masses * factor, self.scatters * factor
        keep = ~aged | (self.masses >= self.floor)
        for label in _unique(seen):
            own = (self.labels == label).nonzero().squeeze(1)
            if len(own) and not keep[own].any():
                keep[own[self.masses[own].argmax()]] = True
        self._counts["deaths"] += int((~keep).sum())
        for name in _TENSORS:
            setattr(self, name, getattr(self, name)[keep])

    def _near(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Whether growth costs no more than room did, and which cell of the label is nearest."""
        if not len(self):
            return torch.zeros(len(x), dtype=torch.bool, device=x.device), y
        distances = torch.cdist(x, self.centres)
        distances = distances.masked_fill(y[:, None] != self.labels, torch.inf)
        found = distances.min(1)
        cost = _ward(found.values, self.masses[found.indices], torch.ones_like(found.values))
        prices = torch.tensor([self._prices.get(label, 0.0) for label in y.tolist()], **_HOST)
        return cost <= prices.to(cost), found.indices

    def _grow(self, x: Tensor, cells: Tensor) -> None:
        self._counts["growths"] += len(x)
        added = torch.zeros_like(self.masses).index_add_(0, cells, torch.ones_like(x[:, 0]))
        sums = torch.zeros_like(self.centres).index_add_(0, cells, x)
        masses = self.masses + added
        centres = (self.centres * self.masses[:, None] + sums) / masses[:, None]
        moved = (centres - self.centres).square().sum(1) * self.masses
        around = (x - centres[cells]).square().sum(1)
        self.scatters = (self.scatters + moved).index_add_(0, cells, around)
        self.centres, self.masses = centres, masses

    def _join(self, x: Tensor, y: Tensor) -> None:
        self.centres = torch.cat([self.centres, x])
        self.masses = torch.cat([self.masses, torch.ones_like(x[:, 0])])
        self.scatters = torch.cat([self.scatters, torch.zeros_like(x[:, 0])])
        self.labels = torch.cat([self.labels, y])

    def _merge(self) -> None:
        """Pool the cheapest pairs until the budget is kept."""
        excess = len(self) - self.budget
        if excess <= 0:
            return
        centres, masses, scatters = self.centres, self.masses, self.scatters
        cost = _ward(torch.cdist(centres, centres), masses[:, None], masses)
        cost.fill_diagonal_(torch.inf)
        keep = torch.ones_like(masses, dtype=torch.bool)
        names = _unique(self.labels)
        own = torch.searchsorted(names, self.labels)
        counts = torch.bincount(own)
        for _ in range(excess):
            most = int(counts.argmax())
            rows = (keep & (own == most)).nonzero().squeeze(1)
            part = cost[rows[:, None], rows]
            first, second = divmod(int(part.argmin()), len(rows))
            a, b = int(rows[first]), int(rows[second])
            between, whole = float(cost[a, b]), masses[a] + masses[b]
            self._prices[int(names[most])] = between
            centres[a] = (masses[a] * centres[a] + masses[b] * centres[b]) / whole
            scatters[a] += scatters[b] + between
            masses[a] = whole
            keep[b] = False
            counts[most] -= 1
            row = _ward((centres - centres[a]).norm(dim=1), masses, masses[a])
            row[a] = torch.inf
            cost[a] = cost[:, a] = row
        self._counts["merges"] += excess
        for name in _TENSORS:
            setattr(self, name, getattr(self, name)[keep])

    def _checked(self, features: Any) -> Tensor:
        allowed = f"features must be finite, of floating dtype, samples by {self.features}"
        if not isinstance(features, Tensor) or not features.is_floating_point():
            raise TypeError(f"Invalid features value: a {type(features).__name__}; {allowed}")
        if features.dim() != 2 or features.shape[1] != self.features or not len(features):
            raise ValueError(f"Invalid features value: shape {tuple(features.shape)}; {allowed}")
        found = features.detach().float()
        if not bool(torch.isfinite(found).all()):
            raise ValueError(f"Invalid features value: not finite in float32; {allowed}")
        return found

    def _not_empty(self, what: str) -> None:
        if not len(self):
            raise ValueError(f"Invalid {what}: the memory is empty; observe() must come before")


def _unique(labels: Tensor) -> Tensor:
    found: Tensor = labels.unique()  # type: ignore[no-untyped-call]
    return found


def _ward(distance: Tensor, mass: Tensor, other: Tensor) -> Tensor:
    return mass * other / (mass + other) * distance.square()


def _labels(labels: Any, count: int) -> Tensor:
    allowed = f"labels must be a tensor of {count} whole numbers"
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"Invalid labels value: a {type(labels).__name__}; {allowed}")
    if labels.shape != (count,):
        raise ValueError(f"Invalid labels value: shape {tuple(labels.shape)}; {allowed}")
    return labels.long()
