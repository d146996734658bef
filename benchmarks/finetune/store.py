"""Runs on disk, found again by their setting and by the code that decides them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.finetune.methods import METHODS
from benchmarks.finetune.run import Setting
from benchmarks.records import (
    _hash,
    _package_sources,
    _source_hash,
    _sources,
    write_atomically,
)

HERE = Path(__file__).resolve().parent
CORE = ("../characters.py", "texts.py", "network.py", "run.py")


class Store:
    """The records of fine-tuning under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, setting: Setting) -> Path:
        digest = _hash(setting.plain(), code_version(setting.method), torch.__version__)[:16]
        return self.folder / f"{setting.method}-seed{setting.seed}-{digest}.json"

    def read(self, setting: Setting) -> dict[str, Any] | None:
        """The result of a run; None where there is none that can be read."""
        try:
            record = json.loads(self.path(setting).read_text())
            result: dict[str, Any] = record["result"]
            return result
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, setting: Setting, result: dict[str, Any]) -> None:
        """Whole or not at all."""
        record = {"setting": setting.plain(), "torch": torch.__version__, "result": result}
        write_atomically(self.path(setting), json.dumps(record))


def code_version(method: str) -> str:
    """Hash of the sources that a run of this method depends on."""
    row = METHODS[method]
    files: Sequence[Path] = [*(HERE / name for name in CORE), *_sources(row.kind)]
    if row.is_sal:
        files = [*files, *_package_sources()]
    return _hash(*[_source_hash(path) for path in files])
