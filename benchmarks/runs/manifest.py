"""What a command compared, on disk: one file a stream and shape, for `report` to find the runs.

A manifest lists settings, not results: these are in the records. Commands that compare other
methods on the same stream add their rows to it; a row of the same label is replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.data.errors import UserError
from benchmarks.runs.records import write_atomically
from benchmarks.runs.settings import Settings

FOLDER = "suites"


@dataclass(frozen=True)
class Manifest:
    """One comparison: a title, and the settings of every row's runs."""

    title: str
    rows: dict[str, list[Settings]]

    @property
    def shape(self) -> Settings:
        """Settings of which all but the method's own are those of every row."""
        return next(iter(self.rows.values()))[0]


def same_shape(settings: Settings) -> Settings:
    """What runs of one comparison share; equal for two settings that may be compared."""
    return replace(settings, method="", seed=0, lr=0.0, options={})


def write_manifest(out: Path, title: str, rows: Mapping[str, Sequence[Settings]]) -> None:
    """Add the rows to the manifest of their stream and shape."""
    shape = same_shape(next(iter(rows.values()))[0])
    digest = hashlib.sha256(json.dumps(shape.plain(), sort_keys=True).encode()).hexdigest()[:8]
    path = out / FOLDER / f"{Path(shape.data).name}-{shape.stream}-{digest}.json"
    kept = _read(path).rows if path.is_file() else {}
    merged = {**kept, **rows}
    plain = {label: [s.plain() for s in settings] for label, settings in merged.items()}
    write_atomically(path, json.dumps({"title": title, "rows": plain}, indent=1))


def manifests(out: Path) -> Iterator[Manifest]:
    """All comparisons under `out`, by name."""
    for path in sorted((out / FOLDER).glob("*.json")):
        yield _read(path)


def _read(path: Path) -> Manifest:
    try:
        found = json.loads(path.read_text())
        rows = {
            label: [Settings.from_plain(plain) for plain in settings]
            for label, settings in found["rows"].items()
        }
        return Manifest(found["title"], rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--out: {path} is no manifest of this version ({error}); remove it and run "
            "`python -m benchmarks continual` again: its records are kept"
        ) from error
