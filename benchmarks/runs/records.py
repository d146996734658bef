"""Records of runs on disk: one JSON file a run, found again by what decides its result.

The key is a hash of the settings, of the code that the run depends on, and of torch's version.
A record is written whole or not at all; one that cannot be trusted is reported and computed anew.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.methods import METHODS, Row
from benchmarks.methods.bases import BASES
from benchmarks.methods.packages import base, version
from benchmarks.runs.runner import run
from benchmarks.runs.settings import Settings
from benchmarks.runs.sources import hash_of, other_sources, source_hash, sources
from benchmarks.streams import STREAMS

# Modules that a run imports, and that do not count as its sources. Two list all methods and all
# streams, of which a run has one. The values of the settings are in the key.
NOT_COUNTED = ("benchmarks.methods", "benchmarks.streams", "benchmarks.runs.settings")
# What the benchmark uses of sal_optim.
CLASSES = ("SALAdam", "SALAdamW", "SALSGD", "SALLion", "SALMuon", "CommunicationLayer")


class Store:
    """The records under one folder."""

    def __init__(self, folder: Path, warn: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.warn = warn

    def path(self, settings: Settings) -> Path:
        """Readable at the front, and unique by the hash at the end."""
        name = f"{settings.method}-seed{settings.seed}-{key(settings)[:16]}.json"
        return self.folder / f"{Path(settings.data).name}-{settings.stream}" / name

    def read(self, settings: Settings) -> dict[str, Any] | None:
        """The result of these settings, or None where there is none that can be trusted."""
        return read_result(self.path(settings), key(settings), self.warn)

    def write(self, settings: Settings, result: dict[str, Any]) -> Path:
        """Whole or not at all."""
        path = self.path(settings)
        about = {"settings": settings.plain(), "code": code_version(settings)}
        write_result(path, key(settings), result, about)
        return path


def read_result(path: Path, expected: str, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The result in a record, or None where there is none that can be trusted.

    What is damaged, or belongs to another run than that of the `expected` key, is told to `warn`.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        warn(f"record {path}: cannot be read ({error}); computing it anew")
        return None
    try:
        record = json.loads(text)
        if record["key"] != expected:
            raise ValueError("the key is another run's")
        if record["checksum"] != _checksum(record["result"]):
            raise ValueError("the checksum does not match")
    except (ValueError, KeyError, TypeError) as error:
        warn(f"record {path}: corrupted ({error}); computing it anew")
        return None
    result: dict[str, Any] = record["result"]
    return result


def write_result(path: Path, known_as: str, result: dict[str, Any], about: dict[str, Any]) -> None:
    """Write to a temporary file beside it, then rename: never a torn record.

    Args:
        path: of the record.
        known_as: the key of the run.
        result: what is read back.
        about: what a reader of the file should know besides.
    """
    record = {
        "key": known_as,
        "checksum": _checksum(result),
        **about,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "result": result,
    }
    write_atomically(path, json.dumps(record, allow_nan=False))


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def key(settings: Settings) -> str:
    """Hash of everything that decides the result."""
    return hash_of(settings.plain(), code_version(settings), torch.__version__)


def code_version(settings: Settings) -> str:
    """Hash of the sources that this run depends on: its method's and stream's, not others'."""
    row = METHODS[settings.method]
    files = run_sources(row, settings.stream)
    if row.uses_sal:
        files = (*files, *package_sources())
    others = [] if row.base in BASES else [version(row.base)]
    return hash_of(row.base, dict(row.fixed), [source_hash(path) for path in files], *others)


def run_sources(row: Row, stream: str) -> tuple[Path, ...]:
    """The files of the benchmark that decide a run of a method on a stream.

    Tables, figures and the command line are not among them, because a run imports none of these.
    """
    starts = (run, row.kind, base(row.base).make, STREAMS[stream])
    return sources(starts, "benchmarks", NOT_COUNTED)


@lru_cache
def package_sources() -> tuple[Path, ...]:
    """The files of sal_optim that its optimizers and its layer depend on, C++ included."""
    package = importlib.import_module("sal_optim")
    starts = [getattr(package, name) for name in CLASSES]
    return (*sources(starts, "sal_optim"), *other_sources("sal_optim"))


def _checksum(result: dict[str, Any]) -> str:
    return hash_of(json.dumps(result, sort_keys=True))
