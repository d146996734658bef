"""What the callbacks of all trainers do, once: observe, load, probe, restore, consolidate, save.

A callback says when, and how its trainer makes batches and a loss of a data set. Nothing here knows
a trainer. Random numbers are drawn aside, so that training is the same with a probe and without.
"""

import contextlib
import itertools
import logging
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from sal_optim.checkpoint.importance_file import check_place, path_text, safetensors
from sal_optim.checkpoint.naming import names_of
from sal_optim.integrations import published
from sal_optim.monitoring.status import protection_line
from sal_optim.protection.base import Protection
from sal_optim.transfer import load_importance, save_importance
from sal_optim.utils import checks
from sal_optim.utils.evaluating import evaluating

logger = logging.getLogger("sal_optim")
_announced: WeakSet[Protection] = WeakSet()


class Continual:
    """Settings that the callbacks share, and what is done by them.

    Args:
        observe: data that the model has learned and should keep; its first batches are observed
            before training. What it may be is the trainer's: a data set, or an iterable of batches.
        observe_batches: how many of them, at least 1.
        probe: old data whose loss is measured while training. It is logged as ``sal/old_loss``.
        probe_batches: how many batches of it, at least 1.
        probe_every: steps from one measurement to the next, at least 1.
        importance_from: a file of :func:`sal_optim.save_importance`, which is loaded before
            training. Neither this nor ``observe`` is done where a run is resumed.
        importance_to: where importance is saved at the end.
        restore: strength of :meth:`SALOptimizer.restore` at the end; 0 restores nothing. Of several
            strengths the one is taken that leaves the least sum of the losses of ``probe`` and
            ``validation``; the weights as they are, strength 0, are tried with them.
        validation: new data, weighed against ``probe`` where ``restore`` is several strengths.
        consolidate: whether the end of training is declared as the end of a task.
    """

    def __init__(
        self,
        *,
        observe: Any = None,
        observe_batches: int = 32,
        probe: Any = None,
        probe_batches: int = 8,
        probe_every: int = 100,
        importance_from: str | os.PathLike[str] | None = None,
        importance_to: str | os.PathLike[str] | None = None,
        restore: float | Sequence[float] = 0.0,
        validation: Any = None,
        consolidate: bool = True,
    ) -> None:
        self.observed, self.probed, self.validation = observe, probe, validation
        self.observe_batches = checks.whole("observe_batches", observe_batches, low=1)
        self.probe_batches = checks.whole("probe_batches", probe_batches, low=1)
        self.probe_every = checks.whole("probe_every", probe_every, low=1)
        self.importance_from, self.importance_to = importance_from, importance_to
        # Text is one number, and of no strengths checks say so.
        given: Sequence[Any] = [restore]
        if isinstance(restore, Sequence) and not isinstance(restore, str) and restore:
            given = restore
        self.restore = [checks.number("restore", strength) for strength in given]
        if len(self.restore) > 1 and (probe is None or validation is None):
            raise ValueError(
                f"Invalid restore value: {restore!r}; several strengths need probe and validation, "
                "by which one of them is chosen"
            )
        self.consolidate = checks.flag("consolidate", consolidate)
        if importance_to is not None and not self.consolidate:
            raise ValueError(
                "Invalid consolidate value: False; with importance_to it must be True, as what is "
                "saved is what is consolidated"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Settings alone: a callback may be pickled where a trainer starts processes."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def begin(
        self,
        protection: Protection,
        model: nn.Module,
        batches: Callable[[Any], Iterable[Any]],
        loss: Callable[[Any], Tensor],
        *,
        resumed: bool = False,
        clip: float = 0.0,
    ) -> None:
        """Load, observe, say in the log what is protected, and measure the old data once.

        Args:
            protection: of the trainer's optimizer.
            model: that is trained.
            batches: batches of a data set, where the model is.
            loss: of a batch, with a graph.
            resumed: whether the optimizer has its state from a checkpoint.
            clip: the norm that the trainer clips gradients to; 0: none.
        """
        self._protection, self._model = protection, model
        self._measured = 0  # the step of the last measurement
        # What can be gone through once alone, such as a generator, is kept.
        for name in ("probed", "validation"):
            data = getattr(self, name)
            if isinstance(data, Iterator):
                setattr(self, name, list(itertools.islice(data, self.probe_batches)))
        self._batches, self._loss = batches, loss
        self._check_end()
        # A trainer that trains once more goes on with what its optimizer knows by now.
        # Made here: a callback is pickled where processes are started.
        begun: WeakSet[Protection] = vars(self).setdefault("_begun", WeakSet())
        resumed = resumed or protection in begun
        begun.add(protection)
        if not resumed:
            if self.importance_from is not None:
                load_importance(protection, self.importance_from, model)
            if self.observed is not None:
                self._observe(clip)
        announce(protection)
        self.measure()

    def _check_end(self) -> None:
        """Refuse now what could not be done when training has ended."""
        controller = self._protection.controller
        if max(self.restore) > 0.0:
            controller.check_anchors()
        if self.importance_to is not None:
            safetensors()
            check_place(path_text(self.importance_to))
            names_of(controller.optimizer.param_groups, self._model)
            if all(group["protection"] == 0.0 for group in controller.groups):
                raise ValueError(
                    f"Invalid importance_to value: {str(self.importance_to)!r}; nothing will be "
                    "consolidated with protection=0, so importance_to must be None"
                )
        if len(self.restore) > 1:
            for name, data in (("probe", self.probed), ("validation", self.validation)):
                self._mean_loss(name, data)

    def stepped(self, step: int, **told: Any) -> bool:
        """After each step of training; measures where that is due, and returns whether it was.

        Args:
            step: how many there were.
            told: numbers for :func:`tell`; None where the trainer has none.
        """
        tell(self._protection, self._model, **told)
        # A trainer that accumulates gradients says the same step several times.
        due = self.probed is not None and step % self.probe_every == 0 and step != self._measured
        if due:
            self._measured = step
            self.measure()
        return due

    def end(self) -> None:
        """Restore, consolidate, save, and measure the old data once more."""
        strength = self._searched() if len(self.restore) > 1 else sum(self.restore)
        if strength > 0.0:
            self._protection.restore(strength)
        if self.consolidate:
            self._protection.consolidate()
        if self.importance_to is not None:
            save_importance(self._protection, self.importance_to, self._model)
        self.measure()

    def measure(self) -> None:
        """The loss of the old data, for the trainer's log; nothing without a probe."""
        if self.probed is not None:
            published[self._protection] = {"old_loss": self._mean_loss("probe", self.probed)}

    def _mean_loss(self, name: str, data: Any) -> float:
        with torch.no_grad(), aside(self._model):
            losses = [
                float(self._loss(batch))
                for batch in itertools.islice(self._batches(data), self.probe_batches)
            ]
        if not losses:
            raise ValueError(f"Invalid {name} value: {data!r:.80}; {name} must have a batch")
        return sum(losses) / len(losses)

    @torch.no_grad()
    def _searched(self) -> float:
        """The strength that leaves the least sum of both losses; the weights are as before."""
        params = list(self._model.parameters())
        weights = [param.detach().clone() for param in params]
        sums = {}
        for strength in sorted({0.0, *self.restore}):
            if strength > 0.0:
                self._protection.restore(strength)
            losses = [
                self._mean_loss("probe", self.probed),
                self._mean_loss("validation", self.validation),
            ]
            sums[strength] = float(_averaged(sum(losses), self._model))
            for param, weight in zip(params, weights, strict=True):
                param.copy_(weight)
        best = min(sums, key=lambda strength: sums[strength])
        logger.info("restored with strength %g, of %s", best, sorted(sums))
        return best

    def _observe(self, clip: float) -> None:
        protection = self._protection
        inner = protection.controller.optimizer
        params = [param for group in inner.param_groups for param in group["params"]]
        count = 0
        with aside(self._model), protection.observe(), torch.enable_grad():
            for batch in itertools.islice(self._batches(self.observed), self.observe_batches):
                inner.zero_grad()
                self._loss(batch).backward()  # type: ignore[no-untyped-call]
                _average(params)
                if clip > 0.0:
                    nn.utils.clip_grad_norm_(params, clip)
                inner.step()
                count += 1
        inner.zero_grad()
        if not count:
            raise ValueError(
                f"Invalid observe value: {self.observed!r:.80}; observe must have a batch"
            )
        protection.consolidate()


def tell(protection: Protection, model: nn.Module, **numbers: Any) -> None:
    """Tell numbers of a step; what is no number is passed over.

    Every process must call it alike: a process has the loss of its own batch, and the mean counts.
    """
    for name, number in numbers.items():
        if getattr(number, "ndim", None) == 0 and not isinstance(number, Tensor):
            number = number.item()  # of numpy
        if isinstance(number, float) or (isinstance(number, Tensor) and number.numel() == 1):
            protection.tell(**{name: _averaged(number, model) if name == "loss" else number})


@contextlib.contextmanager
def aside(model: nn.Module) -> Iterator[None]:
    """Within, the model is evaluated; its modes and all random numbers are as before after it."""
    devices = {param.device for param in model.parameters() if param.is_cuda}
    numpy = sys.modules.get("numpy")
    drawn, of_numpy = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng([device.index for device in devices]), evaluating(model):
            yield
    finally:
        random.setstate(drawn)
        if numpy is not None:
            numpy.random.set_state(of_numpy)


def announce(protection: Protection) -> None:
    """Log what is protected, once; to standard error where no logging is configured."""
    if protection in _announced:
        return
    _announced.add(protection)
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    logger.info(protection_line(protection))


def _processes() -> int:
    distributed = torch.distributed
    there = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if there else 1


def _averaged(number: float | Tensor, model: nn.Module) -> float | Tensor:
    """The mean of a number over all processes, each of which must call this."""
    size = _processes()
    if size == 1:
        return number
    device = next((param.device for param in model.parameters()), None)
    total = torch.as_tensor(number, dtype=torch.float32, device=device).detach().reshape(()).clone()
    torch.distributed.all_reduce(total)
    return total / size


def _average(params: list[Tensor]) -> None:
    """Gradients of replicas, which see batches of their own, are averaged as training does it."""
    size = _processes()
    for param in params:
        if size > 1 and param.grad is not None and type(param.grad) is Tensor:
            torch.distributed.all_reduce(param.grad)
            param.grad.div_(size)
