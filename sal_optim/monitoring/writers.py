"""Writers: the diagnostics of a run as rows in memory, rows of a CSV file, or TensorBoard scalars.

A writer hooks itself onto the optimizer's step and can be removed; ``step_listener.py`` counts
steps. Where the optimizer keeps no steps, a CSV file is gone on with from its last row.
"""

import csv
import os
import warnings
from pathlib import Path
from typing import Any

from sal_optim.monitoring.lookup import required_protection
from sal_optim.monitoring.step_listener import StepListener
from sal_optim.utils import checks


class _Writer(StepListener):
    """Calls :meth:`_write` after every ``every``-th step."""

    def __init__(self, optimizer: object, every: int) -> None:
        self._every = checks.whole("every", every, low=1)
        super().__init__(optimizer)

    def _stepped(self) -> None:
        if self._step % self._every == 0:
            self._write(self._protection.diagnostics())

    def _write(self, diagnostics: dict[str, float]) -> None:
        raise NotImplementedError


class Recorder(_Writer):
    """Keeps rows of diagnostics in memory, for :func:`sal_optim.plot.history` or a data frame.

    Memory is bounded: when ``limit`` rows are there, every second one is dropped, and from then on
    a row is kept half as often.

    Args:
        optimizer: one of the family, a ``CommunicationLayer``, or the optimizer inside of one.
        every: steps from row to row, at first.
        limit: rows that are kept at most, at least 2.

    Attributes:
        rows: dicts of ``step`` and :meth:`diagnostics` by name, the oldest first.
    """

    def __init__(self, optimizer: object, every: int = 1, limit: int = 10_000) -> None:
        self._limit = checks.whole("limit", limit, low=2)
        self.rows: list[dict[str, float]] = []
        super().__init__(optimizer, every)

    def _write(self, diagnostics: dict[str, float]) -> None:
        self.rows.append({"step": float(self._step), **diagnostics})
        if len(self.rows) >= self._limit:
            self._every *= 2
            self.rows[:] = [row for row in self.rows if row["step"] % self._every == 0.0]


class CSVWriter(_Writer):
    """Appends a row of diagnostics to a CSV file: ``step``, then :meth:`diagnostics` by name.

    Each row is on disk when the step is over. An existing file of this kind is gone on with. When
    the file can't be written any more, or was deleted, the writer warns and removes itself: a run
    does not end for its log. Of several processes, one should write.

    Args:
        optimizer: one of the family, a ``CommunicationLayer``, or the optimizer inside of one.
        path: of the file, in a folder that exists.
        every: steps from row to row.

    Raises:
        ValueError: ``path`` is no place for a file, or the file holds something else.
    """

    def __init__(self, optimizer: object, path: str | os.PathLike[str], every: int = 1) -> None:
        columns = ["step", *required_protection(optimizer).diagnostics()]
        every = checks.whole("every", every, low=1)
        self.path, last = _prepare(path, columns)
        super().__init__(optimizer, every)
        self._step = self._step or last

    def _write(self, diagnostics: dict[str, float]) -> None:
        try:
            # Not created anew where it was deleted: it would have no header.
            with open(self.path, "a", newline="", encoding="utf-8", opener=_existing) as file:
                csv.writer(file).writerow([self._step, *diagnostics.values()])
        except OSError as error:
            self.remove()
            warnings.warn(f"CSVWriter stops at step {self._step}: {error}", stacklevel=2)


class TensorBoardWriter(_Writer):
    """Passes diagnostics to a TensorBoard writer, one scalar each, and flushes it.

    When the writer was closed, this one removes itself; when it can't write any more, this one
    warns and removes itself.

    Args:
        optimizer: one of the family, a ``CommunicationLayer``, or the optimizer inside of one.
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar``.
        every: steps from value to value.
        prefix: put before the names.
    """

    def __init__(
        self, optimizer: object, writer: Any, every: int = 1, prefix: str = "sal/"
    ) -> None:
        if not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(
                f"Invalid writer value: a {type(writer).__name__}; writer must have add_scalar("
                "tag, value, step), as torch.utils.tensorboard.SummaryWriter has"
            )
        if not isinstance(prefix, str):
            raise TypeError(f"Invalid prefix value: {prefix!r}; prefix must be a str")
        super().__init__(optimizer, every)
        self._writer, self._prefix = writer, prefix

    def _write(self, diagnostics: dict[str, float]) -> None:
        # A closed SummaryWriter has None here, and would open another file.
        if getattr(self._writer, "all_writers", self) is None:
            self.remove()
            return
        try:
            for name, value in diagnostics.items():
                self._writer.add_scalar(f"{self._prefix}{name}", value, self._step)
            if callable(getattr(self._writer, "flush", None)):
                self._writer.flush()
        except (OSError, ValueError) as error:  # a closed file raises the second
            self.remove()
            warnings.warn(f"TensorBoardWriter stops at step {self._step}: {error}", stacklevel=2)


def _existing(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT)


def _prepare(path: Any, columns: list[str]) -> tuple[Path, int]:
    """Make the file ready for the next row; returns it and the step of its last row, or 0."""
    allowed = "path must be that of a new file, or of one that CSVWriter wrote"
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"Invalid path value: {path!r}; {allowed}")
    file = Path(path).absolute()
    if file.is_dir() or not file.parent.is_dir():
        raise ValueError(f"Invalid path value: {str(path)!r}; {allowed}, in a folder that exists")
    header = ",".join(columns) + "\r\n"
    if not file.exists() or file.stat().st_size == 0:
        file.write_text(header, encoding="utf-8", newline="")
        return file, 0
    content = file.read_bytes()
    if not content.startswith(header.encode()):
        raise ValueError(
            f"Invalid path value: {str(path)!r}, a file that begins {content[:40]!r}; {allowed}, "
            f"which begins {header.strip()!r}"
        )
    # A run that was killed may leave a part of a row.
    whole = content[: content.rindex(b"\n") + 1]
    if whole != content:
        os.truncate(file, len(whole))
    last = whole.splitlines()[-1].split(b",")[0]
    return file, int(last) if last.isdigit() else 0
