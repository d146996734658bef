"""Records of runs on disk: one JSON file a run, found again by what decides its result.

The key is a hash of the settings, of the code that the run depends on, and of torch's version.
A record is written whole or not at all; one that cannot be trusted is reported and computed anew.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import platform
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import METHODS
from benchmarks.baselines.bases import BASES
from benchmarks.baselines.packages import base, version
from benchmarks.settings import Settings
from benchmarks.streams import STREAMS

ROOT = Path(__file__).resolve().parent

# What decides the result of every run. Tables, figures and the command line do not.
CORE = ("data.py", "readers.py", "networks.py", "probe.py", "runner.py")


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
    return _hash(settings.plain(), code_version(settings), torch.__version__)


def code_version(settings: Settings) -> str:
    """Hash of the sources that this run depends on: its method's and stream's, not others'."""
    row = METHODS[settings.method]
    files = [ROOT / name for name in CORE]
    for kind in (row.kind, base(row.base).make, STREAMS[settings.stream]):
        files += _sources(kind)
    if row.uses_sal:
        files += _package_sources()
    others = [] if row.base in BASES else [version(row.base)]
    return _hash(*[_source_hash(path) for path in files], *others)


def _sources(kind: Any) -> list[Path]:
    """The file of a class or function, and what it imports from benchmarks, on and on.

    Packages' own files, which only list names, and the core are not followed.
    """
    found: set[Path] = set()
    ahead = {Path(inspect.getfile(kind))}
    while ahead:
        path = ahead.pop()
        if path.name == "__init__.py" or path in found or not path.is_relative_to(ROOT):
            continue
        found.add(path)
        ahead |= _imports(path)
    return sorted(found - {ROOT / name for name in CORE})


@lru_cache
def _imports(path: Path) -> frozenset[Path]:
    """Files of benchmarks that a file imports names from."""
    nodes = ast.walk(ast.parse(path.read_text()))
    modules = [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module]
    ours = [ROOT.parent / (name.replace(".", "/") + ".py") for name in modules]
    return frozenset(file for file in ours if file.is_relative_to(ROOT) and file.is_file())


@lru_cache
def _package_sources() -> tuple[Path, ...]:
    """The files of sal_optim that its optimizers and its layer import, on and on."""
    spec = importlib.util.find_spec("sal_optim")
    if spec is None or not spec.submodule_search_locations:
        return ()
    root = Path(next(iter(spec.submodule_search_locations)))
    found: set[Path] = set()
    ahead = {root / f"{name}.py" for name in ("adam", "sgd", "lion", "communication")}
    while ahead:
        path = ahead.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                inside = [name.partition(".")[2] for name in names if name.startswith("sal_optim.")]
                ahead |= {root / (name.replace(".", "/") + ".py") for name in inside}
    return tuple(sorted(found))


@lru_cache
def _source_hash(path: Path) -> str:
    """Hash of what a file does: comments, docstrings and layout do not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return _hash(path.name, ast.dump(tree))


def _checksum(result: dict[str, Any]) -> str:
    return _hash(json.dumps(result, sort_keys=True))


def _hash(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
