"""``SpectralMonitor``: the singular values of hidden activations as a run goes on.

It reads activations by hooks and changes nothing; what to do at a warning is a callback's. A term
of a loss that keeps the rank up is ``sal_optim.companions.rank_floor_loss``.
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sal_optim.companions.activations import Tap, as_rows, centred, layer_of
from sal_optim.utils import checks

STATES = ("stable", "drifting", "warning")
# Samples whose singular values are taken: enough for a spectrum, few enough for a step.
SAMPLES = 1024


def spectrum_of(h: Tensor) -> dict[str, float]:
    """Five numbers of the singular values σ of centred activations; p = σ/Σσ.

    - ``entropy``: -Σ p ln p / ln n, n = min(samples - 1, features): 1 where all directions are
      alike, 0 where there is one.
    - ``rankme``: exp(-Σ p ln p), the effective rank (RankMe, arXiv 2210.02885).
    - ``participation``: (Σσ²)² / Σσ⁴, the number of directions that the variance is in.
    - ``top_share``: the largest p.
    - ``decay``: the exponent a of σᵢ² ∝ i^-a, by least squares on logarithms, of directions that
      are there.

    Activations that do not vary have rank 0, top share 1 and decay 0; those that are not finite
    give NaN.
    """
    rows = centred(h.detach(), SAMPLES)
    names = ("entropy", "rankme", "participation", "top_share", "decay")
    if not bool(torch.isfinite(rows).all()):
        return dict.fromkeys(names, math.nan)
    values = torch.linalg.svdvals(rows).double().cpu()
    count = min(len(rows) - 1, rows.shape[1])
    eps = torch.finfo(rows.dtype).eps * max(rows.shape)
    there = values[:count][values[:count] > eps * float(h.detach().abs().max())]
    if len(there) == 0:
        return dict(zip(names, (0.0, 0.0, 0.0, 1.0, 0.0), strict=True))
    p, variances = there / there.sum(), there.square()
    entropy = float(-(p * p.log()).sum())
    return {
        "entropy": entropy / math.log(count) if count > 1 else 0.0,
        "rankme": math.exp(entropy),
        "participation": float(variances.sum().square() / variances.square().sum()),
        "top_share": float(p[0]),
        "decay": _decay(variances),
    }


class SpectralMonitor:
    """Watches spectra of layers' activations, relative to the start of the run.

    Call :meth:`step` after each step of the optimizer. The first step is the run's start; after it
    every ``every``-th one is measured. Only passes in ``train()`` mode are read; in steps between,
    a hook asks one question. Make it before ``torch.compile(model)`` traces the model. A copy of
    the model is not watched.

    A layer is *stable*, *drifting* once its effective rank is below ``drifting`` times that of the
    start or above its inverse, and in *warning* below ``warning`` times it, or where activations
    are not finite. The thresholds are round numbers, not measured ones.

    Args:
        model: the network.
        layers: names of layers, as in ``model.named_modules()``.
        every: steps from measurement to measurement.
        drifting: as above, above ``warning`` and below 1.
        warning: as above, in (0, 1).
        alarm: called with the monitor when the state becomes *warning*, such as
            ``halve_lr(optimizer)``.
        measured: called with the monitor after each measurement, such as ``HealthLine()``, which
            shows it in the terminal, or ``rows = SpectrumRows()``, which keeps it for a picture.

    Attributes:
        states: state by layer; ``state`` is the worst of them.
        steps: counted so far.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        every: int = 100,
        *,
        drifting: float = 0.8,
        warning: float = 0.5,
        alarm: Callable[["SpectralMonitor"], object] | None = None,
        measured: Callable[["SpectralMonitor"], object] | None = None,
    ) -> None:
        names = list(dict.fromkeys(checks.names("layers", layers)))
        if not names:
            raise ValueError("Invalid layers value: []; layers must name at least one layer")
        self._every = checks.whole("every", every, low=1)
        self._drifting = checks.number("drifting", drifting, high=1.0, low_open=True)
        self._warning = checks.number("warning", warning, high=self._drifting, low_open=True)
        for name, called in (("alarm", alarm), ("measured", measured)):
            if called is not None:
                checks.function(name, called, "None or a function of the monitor")
        self._alarm, self._measured = alarm, measured
        self.steps = 0
        self._start: dict[str, dict[str, float]] = {}
        self._now: dict[str, dict[str, float]] = {}
        self._samples: dict[str, int] = {}  # of the start
        self._passed_over = 0
        self._wanted = True
        self.states: dict[str, str] = dict.fromkeys(names, STATES[0])
        for name in names:  # all are there, before one is hooked
            layer_of(model, name, "layers")
        self._taps = {n: Tap(self, model, n, detach=True, training_only=True) for n in names}

    @property
    def state(self) -> str:
        """The worst state of a layer: ``"stable"``, ``"drifting"`` or ``"warning"``."""
        return max(self.states.values(), key=STATES.index)

    def step(self) -> bool:
        """Count a step, and measure when one is due; returns whether it was measured.

        A batch of fewer samples than the first is passed over, since its rank is no measure of the
        model's, and the next one is taken instead.
        """
        if not self._taps:
            return False
        self.steps += 1
        due = self._wanted
        measured = due and self._measure()
        self._want((due and not measured) or self.steps % self._every == 0)
        return measured

    def diagnostics(self) -> dict[str, float]:
        """Floats for a logger, of the last measurement; empty before the first.

        By layer, as ``name/entropy``: the numbers of ``spectrum_of``, ``…/rankme_relative`` to the
        start (NaN before there is one), and ``…/state``: 0 stable, 1 drifting, 2 warning.
        """
        found: dict[str, float] = {}
        for name, now in self._now.items():
            found |= {f"{name}/{key}": value for key, value in now.items()}
            relative = self.relative(name) or dict.fromkeys(now, math.nan)
            found |= {f"{name}/{k}_relative": v for k, v in relative.items()}
            found[f"{name}/state"] = float(STATES.index(self.states[name]))
        return found

    def relative(self, layer: str) -> dict[str, float]:
        """Each number of a layer over that of the start, 1 where both are 0; empty before it."""
        layer = checks.choice("layer", layer, list(self.states))
        start, now = self._start.get(layer, {}), self._now.get(layer, {})
        return {key: _ratio(now[key], start[key]) for key in now if start}

    def remove(self) -> None:
        """Take the hooks away; what was measured stays. Calling it twice is harmless."""
        for tap in self._taps.values():
            tap.remove()
        self._taps.clear()

    def state_dict(self) -> dict[str, Any]:
        """The start of the run and the steps so far, so that a resumed run has the same start."""
        counts = {"step": self.steps, "samples": self._samples, "states": self.states}
        return copy.deepcopy({"start": self._start, "now": self._now, **counts})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            TypeError: it is no dict.
            ValueError: something is missing, or it is of other layers.
        """
        parts = dict.fromkeys(("start", "now", "samples", "states"), Mapping)
        checks.saved(state_dict, {**parts, "step": int})
        for state in state_dict["states"].values():
            checks.choice("states", state, STATES)
        if set(state_dict["states"]) != set(self.states) or any(
            set(state_dict[name]) not in (set(), set(self.states)) for name in parts
        ):
            raise ValueError(
                f"Invalid state_dict value: layers {list(state_dict['states'])}; they must be "
                f"{list(self.states)}"
            )
        found = copy.deepcopy(dict(state_dict))
        self.steps, self._samples, self.states = (found[n] for n in ("step", "samples", "states"))
        self._start, self._now = found["start"], found["now"]
        self._want(not self._start or self.steps % self._every == 0)

    def _want(self, wanted: bool) -> None:
        """Whether the next step is measured; what was caught is let go of."""
        self._wanted = wanted
        for tap in self._taps.values():
            tap.want(wanted)

    def _measure(self) -> bool:
        caught = {n: tap.caught for n, tap in self._taps.items() if tap.caught is not None}
        samples = {name: len(as_rows(h)) for name, h in caught.items()}
        few = [n for n, s in samples.items() if s < max(3, min(SAMPLES, self._samples.get(n, 0)))]
        if len(caught) < len(self._taps) or few:
            self._passed_over += 1
            if self._passed_over == max(2, self._every):
                warnings.warn(
                    f"SpectralMonitor measured nothing in {self._passed_over} steps: the layers "
                    "must run in train() mode, on batches no smaller than the first",
                    stacklevel=3,
                )
            return False
        self._passed_over = 0
        self._now = {name: spectrum_of(h) for name, h in caught.items()}
        finite = all(math.isfinite(now["rankme"]) for now in self._now.values())
        if not self._start and finite:
            self._start, self._samples = self._now, samples
        before = self.state
        self.states = {name: self._state_of(name) for name in self.states}
        if self.state == STATES[2] != before and self._alarm is not None:
            self._alarm(self)
        if self._measured is not None:
            self._measured(self)
        return True

    def _state_of(self, name: str) -> str:
        now = self._now[name]["rankme"]
        relative = self.relative(name).get("rankme", 1.0)
        if not math.isfinite(now) or relative < self._warning:
            return STATES[2]
        changed = relative < self._drifting or relative > 1.0 / self._drifting
        return STATES[1] if changed else STATES[0]


def halve_lr(optimizer: Optimizer, lowest: float = 0.0) -> Callable[[SpectralMonitor], None]:
    """An alarm that halves the learning rate of all groups, down to ``lowest``.

    A scheduler that computes the rate anew from its own base rates undoes it.
    """
    checks.optimizer(optimizer)
    lowest = checks.number("lowest", lowest)

    def halve(_: SpectralMonitor) -> None:
        for group in optimizer.param_groups:
            lr = group["lr"]
            new = max(min(float(lr), lowest), 0.5 * float(lr))
            # A rate that is a tensor may be known to a compiled step.
            group["lr"] = lr.fill_(new) if isinstance(lr, Tensor) else new

    return halve


def _decay(variances: Tensor) -> float:
    if len(variances) < 2:
        return 0.0
    x = torch.arange(1, len(variances) + 1, dtype=variances.dtype).log()
    y = variances.log()
    x, y = x - x.mean(), y - y.mean()
    return float(-(x * y).sum() / x.square().sum())


def _ratio(now: float, start: float) -> float:
    if start == 0.0:
        return 1.0 if now == 0.0 else math.inf
    return now / start
