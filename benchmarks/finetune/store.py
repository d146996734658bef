"""Runs on disk, found again by their setting and by the code that decides them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.finetune.methods import METHODS
from benchmarks.finetune.run import Setting, run
from benchmarks.runs.records import package_sources, read_result, write_result
from benchmarks.runs.sources import hash_of, source_hash, sources

# It lists all methods, of which a run has one.
NOT_COUNTED = ("benchmarks.finetune.methods",)


class Store:
    """The records of fine-tuning under one folder."""

    def __init__(self, folder: Path, warn: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.warn = warn

    def path(self, setting: Setting) -> Path:
        return self.folder / f"{setting.method}-seed{setting.seed}-{key(setting)[:16]}.json"

    def read(self, setting: Setting) -> dict[str, Any] | None:
        """The result of a run; None where there is none that can be trusted."""
        return read_result(self.path(setting), key(setting), self.warn)

    def write(self, setting: Setting, result: dict[str, Any]) -> None:
        """Whole or not at all."""
        write_result(self.path(setting), key(setting), result, {"setting": setting.plain()})


def key(setting: Setting) -> str:
    """Hash of everything that decides the result."""
    return hash_of(setting.plain(), code_version(setting.method), torch.__version__)


def code_version(method: str) -> str:
    """Hash of the sources that a run of this method depends on."""
    row = METHODS[method]
    files = sources((run, row.kind), "benchmarks", NOT_COUNTED)
    if row.is_sal:
        files = (*files, *package_sources())
    return hash_of([source_hash(path) for path in files])
