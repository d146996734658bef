"""Optuna studies on disk: one for each method on each stream, in one journal that survives.

A study is found again by what decides its values: the settings but for what is tuned, the code,
the seeds and the objective. What a killed command left half done is asked for again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from benchmarks.runs.records import code_version
from benchmarks.runs.settings import Settings
from benchmarks.runs.spaces import Range

SAMPLER_SEED = 0


def _tpe(trials: int) -> BaseSampler:
    return TPESampler(seed=SAMPLER_SEED, n_startup_trials=max(2, trials // 3), multivariate=True)


def _random(trials: int) -> BaseSampler:
    return RandomSampler(seed=SAMPLER_SEED)


def _qmc(trials: int) -> BaseSampler:
    """Sobol points: as even as a grid, with any number of them."""
    return QMCSampler(seed=SAMPLER_SEED, scramble=True)


SAMPLERS = {"tpe": _tpe, "qmc": _qmc, "random": _random}


def _cut(journal: Path) -> None:
    """Drop a line at the end whose writing was cut short."""
    if journal.is_file():
        whole = journal.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        if len(kept) < len(whole):
            journal.write_bytes(kept)


class Study:
    """The trials of one method on one stream."""

    def __init__(
        self,
        journal: Path,
        plain: Settings,
        ranges: dict[str, Range],
        *,
        sampler: str,
        trials: int,
        seeds: int,
        objective: str,
        known: dict[str, Any] | None = None,
    ) -> None:
        """`known`: values that an earlier tuning chose; tried after the defaults."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal.parent.mkdir(parents=True, exist_ok=True)
        _cut(journal)
        self.plain, self.ranges, self.trials = plain, ranges, trials
        self.starts = [self.default, *([{**self.default, **known}] if known else [])]
        shape = replace(plain, seed=0, lr=0.0, options={}).plain()
        spans = {name: (span.low, span.high, span.start) for name, span in ranges.items()}
        parts = [shape, code_version(plain), sampler, trials, seeds, objective, spans]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name=f"{plain.data}/{plain.stream}/{plain.method}/{digest}",
            direction="maximize",
            sampler=SAMPLERS[sampler](trials),
            load_if_exists=True,
        )
        self._tidy()

    def _tidy(self) -> None:
        """Ask again for what was under way when a command was killed; begin with the starts."""
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                self.study.enqueue_trial(trial.params)
        if not self.study.trials:
            for start in self.starts:
                self.study.enqueue_trial(start, skip_if_exists=True)

    @property
    def default(self) -> dict[str, Any]:
        """Where the ranges start."""
        return {name: span.start for name, span in self.ranges.items()}

    @property
    def finished(self) -> list[FrozenTrial]:
        """Trials that have a value."""
        return self.study.get_trials(states=(TrialState.COMPLETE,))

    @property
    def left(self) -> int:
        """Trials that are still to be made."""
        return max(0, self.trials - len(self.finished))

    def ask(self) -> tuple[int, dict[str, Any]]:
        """The number and the values of the next trial."""
        trial = self.study.ask()
        values: dict[str, Any] = {}
        for name, span in self.ranges.items():
            if span.whole:
                values[name] = trial.suggest_int(name, int(span.low), int(span.high), log=True)
            else:
                values[name] = trial.suggest_float(name, span.low, span.high, log=True)
        return trial.number, values

    def tell(self, number: int, value: float) -> None:
        """The objective of a trial."""
        self.study.tell(number, value)

    @property
    def best(self) -> FrozenTrial:
        """The best trial; of equals the first, so that the default wins a tie."""
        return max(self.finished, key=lambda trial: (trial.value, -trial.number))

    @property
    def first(self) -> FrozenTrial:
        """The trial of the defaults; it is not number 0 if that was killed."""
        return next((t for t in self.finished if t.params == self.default), self.finished[0])
