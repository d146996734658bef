"""Protection: what the family of optimizers and the layer around any optimizer have in common.

It watches gradients, decides by the shared threshold when to consolidate, and answers what a user
asks of it. Where parameters, settings and state are kept, and how parameters are moved, is for
``optimizer.py`` and ``communication.py``.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sal_optim import stability
from sal_optim.captured import DeviceThreshold, to_host
from sal_optim.consolidation import (
    INTERVAL,
    PENDING_HORIZON,
    consolidate,
    count_pending,
    halve_pending,
)
from sal_optim.diagnostics import Spectrum, diagnose
from sal_optim.evidence import GRANULARITIES
from sal_optim.norms import gradient_norm, gradient_squares
from sal_optim.pieces import Work, plain
from sal_optim.state import State, draw_back, lists
from sal_optim.threshold import (
    ThresholdState,
    decline,
    is_ready,
    limit,
    may_confirm,
    new_threshold,
    observe_norm,
    record_norm,
)
from sal_optim.utils import checks
from sal_optim.utils.rounding import Number

Group = dict[str, Any]
# The parameters of each group that have a gradient.
GroupedWork = list[tuple[Group, list[Work]]]


class Survey(NamedTuple):
    """What the gradients of one step say."""

    gathers: bool  # evidence is gathered from them
    pulls: bool  # the pull is due
    surprising: bool  # above the threshold
    scale: Number  # 1 / rms of all gradients; 0 if they tell nothing
    gathered: Number  # the same, by which evidence is gathered; 0 if they are surprising
    unit: Number  # of the pull, the typical size of one scalar's gradient; 0 if it is not due


# What is known of a step before its gradients are looked at, if it is foreseen.
FORESEEN = Survey(gathers=False, pulls=False, surprising=False, scale=0.0, gathered=0.0, unit=0.0)


class Protection:
    """Evidence, threshold and consolidation over groups of parameters."""

    # State tensors that are set to zero when the regime changes.
    _momenta: tuple[str, ...] = ()
    # Whether the gate sees how active an element is at present.
    _activity: bool = False
    # Whether an update has size 1 whatever the size of the gradient (sign-based optimizers).
    _unit_update: bool = False

    # Never stored on an instance for longer than a call or a ``with`` block: pickling, deepcopy
    # and checkpoints keep ``state``, ``param_groups`` and ``defaults`` alone.
    _observing: bool = False
    # The norm of the step before, on its way to the host: see _survey_ahead().
    _underway: Tensor | None = None
    _arrived: Any = None
    # The threshold where no step may read anything: see _survey_captured().
    _captured: DeviceThreshold | None = None
    _spectrum: Spectrum | None = None

    # ---------------------------------------------------------------- what a subclass supplies

    def _groups(self) -> list[Group]:
        """Groups of parameters with the settings of the protection; the first's hold for all."""
        raise NotImplementedError

    def _state_of(self, param: Tensor) -> State:
        """The state of a parameter; empty where there is none. Looking creates nothing."""
        raise NotImplementedError

    def _threshold_owner(self) -> Group:
        """The dict that keeps the threshold's state through checkpoints."""
        raise NotImplementedError

    def _moment_names(self, group: Group) -> tuple[str, ...]:
        """State tensors of the base optimizer, shaped and typed like the parameter."""
        return ()

    def _moved(self) -> GroupedWork:
        """The parameters of the last step, as they are before a next one."""
        raise NotImplementedError

    def _take_back(self, work: GroupedWork) -> None:
        """Undo the last update, by which a change that is now confirmed first did damage."""
        raise NotImplementedError

    # ---------------------------------------------------------------- a step's gradients

    def _live(self) -> Mapping[str, Any]:
        """The threshold's state as a step sees it: on the device, where nothing may be read."""
        return self._threshold() if self._captured is None else self._captured.values()

    def _threshold(self) -> ThresholdState:
        """The state that belongs to all groups together; it lives in the first."""
        owner = self._threshold_owner()
        if "threshold" not in owner:
            owner["threshold"] = new_threshold()
        state: ThresholdState = owner["threshold"]
        return state

    def _foreseen(self) -> bool:
        """Whether the next step does the same whatever the norm of its gradients.

        It may then be taken first, and the norm on the way: one pass over memory less.
        """
        steps, every = self._threshold()["steps"], self._groups()[0]["consolidate_every"]
        return not (
            self._observing
            or self._activity
            or steps % INTERVAL == 0.0  # evidence and the pull are due
            or (every is not None and steps >= every)
            or may_confirm(self._threshold())
        )

    def _survey(self, work: GroupedWork, *, moves: bool, loss_scale: float = 1.0) -> Survey:
        """Pass the norm of all gradients to the threshold; consolidate if it says so.

        Args:
            work: what is to be stepped.
            moves: whether any learning rate is above 0.
            loss_scale: factor that the gradients still carry, as with a fused GradScaler.
        """
        self._hear(work)
        norm, size = gradient_norm([item for _, items in work for item in items])
        # A zero gradient, a non-finite one or a zero learning rate tells nothing about the data.
        informative = 0.0 < norm < math.inf and (moves or self._observing)
        ordinary = informative and self._listen(norm / loss_scale, work)
        due = informative and (self._observing or self._threshold()["steps"] % INTERVAL == 1.0)
        gathers = ordinary and due
        if gathers:
            count_pending(self)
        return Survey(
            gathers=gathers,
            pulls=due,
            surprising=informative and not ordinary,
            scale=math.sqrt(size) / norm if informative else 0.0,
            gathered=math.sqrt(size) / norm if gathers else 0.0,
            unit=self._gradient_unit(size) if due else 0.0,
        )

    def _survey_ahead(self, work: GroupedWork, *, moves: bool) -> Survey:
        """The same without a wait for an accelerator: its norm is judged in the next step.

        Whether evidence is gathered is decided there, by what the threshold makes of all norms
        before; only a consolidation, and what it takes back, comes one step later.
        """
        self._hear(work)
        norm, known, scale, size = _measured(work, moves)
        self._underway, self._arrived = to_host(torch.where(known, norm, 0.0))
        due = moves and self._threshold()["steps"] % INTERVAL == 0.0
        ordinary = norm <= self._limit()
        return Survey(
            gathers=due,
            pulls=due,
            surprising=False,
            scale=scale,
            gathered=torch.where(ordinary, scale, 0.0),
            unit=self._gradient_unit(size) if due else 0.0,
        )

    def _survey_captured(self, work: GroupedWork, *, moves: bool | Tensor) -> Survey:
        """The same with all decisions on the device: a replayed CUDA graph makes them anew.

        What every fourth step does is done in each, by numbers that are 0 in the three others.
        """
        captured, first = self._captured, self._groups()[0]
        if captured is None:
            return FORESEEN  # there is no gradient
        norm, known, scale, size = _measured(work, moves)
        state = captured.values()
        due = known & (state["steps"] % INTERVAL == 0.0)
        if self._observing:
            due = known
        gathers = captured.listen(
            norm,
            known,
            due,
            tau0=first["tau0"],
            alpha=first["alpha"],
            beta=first["stats_beta"],
            observing=self._observing,
        )
        return Survey(
            gathers=True,
            pulls=True,
            surprising=False,
            scale=scale,
            gathered=torch.where(gathers, scale, 0.0),
            unit=torch.where(due, self._gradient_unit(size), 0.0),
        )

    def _settle(self) -> None:
        """Do what captured steps can't, if they have asked for it: consolidate, halve sums."""
        captured, every = self._captured, self._groups()[0]["consolidate_every"]
        # A resumed run has its state where checkpoints keep it.
        seen = self._threshold() if captured is None else captured.arrived()
        if seen is None:
            return
        lasted = every is not None and seen["steps"] >= every
        full = seen["pending_steps"] >= PENDING_HORIZON
        if lasted or full or seen["unheard"] > 0.0:
            self._hear(self._moved())
            threshold = self._threshold()
            if every is not None and threshold["steps"] >= every:
                consolidate(self, decline(threshold))
            if threshold["pending_steps"] >= PENDING_HORIZON:
                halve_pending(self)
            if captured is not None:
                captured.write(threshold)

    def _limit(self) -> float:
        """The norm above which the next step is surprising."""
        first, threshold = self._groups()[0], self._threshold()
        if not is_ready(threshold):
            return math.inf
        return float(limit(threshold, tau0=first["tau0"], alpha=first["alpha"]))

    def _fetch(self) -> None:
        """Wait for what only the device knows, and keep it where checkpoints do."""
        if self._captured is not None:
            self._threshold().update(self._captured.read())
        underway = self._underway
        if underway is not None:
            if self._arrived is not None:
                self._arrived.synchronize()
            self._threshold()["unheard"] = float(underway)
            self._drop("_underway", "_arrived")

    def _drop(self, *names: str) -> None:
        """Forget what an instance keeps beside its state: all, or what is named."""
        for name in names or ("_underway", "_arrived", "_captured", "_kept"):
            vars(self).pop(name, None)

    def _hear(self, work: GroupedWork) -> None:
        """Judge the norm of the step before, if that was not done in its step."""
        self._fetch()
        threshold = self._threshold()
        norm, threshold["unheard"] = threshold["unheard"], 0.0
        if norm > 0.0:
            gathered = threshold["steps"] % INTERVAL == 0.0 and norm <= self._limit()
            if gathered:
                count_pending(self)
            self._listen(norm, work)

    def _listen(self, norm: float, work: GroupedWork) -> bool:
        """Pass the norm to the threshold, consolidate if it says so; is the step ordinary?"""
        first, threshold = self._groups()[0], self._threshold()
        if self._observing:
            record_norm(threshold, norm, beta=first["stats_beta"])
            return True
        every = first["consolidate_every"]
        if every is not None and threshold["steps"] >= every:
            consolidate(self, decline(threshold))
        settings = {
            "tau0": first["tau0"],
            "alpha": first["alpha"],
            "beta": first["stats_beta"],
        }
        verdict = observe_norm(threshold, norm, **settings)
        if verdict.change is not None:
            self._take_back(work)
            consolidate(self, verdict.change)
            # The first norm of the new regime opens its statistics.
            verdict = observe_norm(threshold, norm, **settings)
        return not verdict.surprising

    def _gradient_unit(self, size: int) -> Number:
        """The typical size of one scalar's gradient, in which the pull is measured."""
        if self._unit_update:
            return 1.0
        unit: Number = self._live()["unit"] / math.sqrt(max(size, 1))
        return unit

    # ---------------------------------------------------------------- what users call

    @torch.no_grad()
    def consolidate(self) -> None:
        """Declare that a regime ends here: what was learned is protected from now on.

        Harmless before any step, and when there is nothing new to consolidate. Where parameters
        are sharded (DTensor), every process must call it.
        """
        self._hear([])
        threshold = self._threshold()
        consolidate(self, decline(threshold))
        if self._captured is not None:
            self._captured.write(threshold)

    @contextlib.contextmanager
    def observe(self) -> Iterator[None]:
        """A context in which ``step()`` gathers evidence and changes no parameter.

        For a model that arrives trained: run a few batches of what it should keep, with backward
        and ``step()``, then call :meth:`consolidate`.
        """
        self._observing = True
        try:
            yield
        finally:
            self._observing = False

    @torch.no_grad()
    def restore(self, strength: float) -> None:
        """Draw all weights back to their anchors, each as far as its evidence asks for.

        For the end of a fine-tuning: what the new data had no need of, and the old data suffers
        from, goes back first. By ``k / (1 + k)`` with k = ``strength`` times the evidence, whose
        mean is 1 after :meth:`observe` and :meth:`consolidate`; along directions with
        ``granularity="kronecker"``. Try several on copies of the weights, as WiSE-FT tries shares.

        Args:
            strength: at least 0, which changes nothing; the larger, the less of the change is kept.

        Raises:
            ValueError: ``strength`` is out of its range, or a group keeps no anchor (``pull=0``).
        """
        # More than 1e30 draws back entirely too, and leaves the range of float32.
        strength = min(checks.number("strength", strength), 1e30)
        groups = self._groups()
        if any(group["pull"] == 0.0 for group in groups):
            raise ValueError(
                "Invalid pull value: 0.0; restore() draws weights to anchors, which are kept with "
                "a pull above 0"
            )
        for group in groups:
            for param in group["params"]:
                draw_back(param, self._state_of(param), group, strength)

    def stability(self, param: Tensor) -> Tensor:
        """The stability s of each element of a parameter at mean activity, in [0, 1).

        Args:
            param: a parameter of this optimizer.

        Returns:
            A new tensor of the shape of ``param``; 0 is free to move, near 1 is held.
        """
        evidence, group = self._evidence(param)
        return stability.stability(evidence, group["protection"]).clone()

    def _evidence(self, param: Tensor) -> tuple[Tensor, Group]:
        """Evidence of each element, in the shape of the real local parameter, and its group."""
        for group in self._groups():
            if any(param is candidate for candidate in group["params"]):
                state = self._state_of(param)
                real = plain(param.detach())
                if state.get("evidence_weight", 0.0) == 0.0:
                    return torch.zeros_like(real), group
                evidence = GRANULARITIES[group["granularity"]].evidence(lists(state), [real])[0]
                return evidence.expand_as(real), group
        raise ValueError(
            f"Invalid param value: a tensor of shape {tuple(param.shape)}; param must be one of "
            "this optimizer's parameters"
        )

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """What SAL does, as finite floats for any logger; see :mod:`sal_optim.diagnostics`."""
        self._fetch()
        return diagnose(self)


def _measured(work: GroupedWork, moves: bool | Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """The norm of all gradients, whether it tells anything, 1 / rms, and how many scalars."""
    items = [item for _, items in work for item in items]
    squares, size = gradient_squares(items, wait=False)
    norm = torch.as_tensor(squares).sqrt()
    known = (norm > 0.0) & (norm < math.inf) & moves
    return norm, known, torch.where(known, math.sqrt(size) / norm, 0.0), size
