"""Who may import whom in benchmarks/: a folder imports from folders below it, and from itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2] / "benchmarks"
# From top to bottom. Folders of one line do not import from each other.
LAYERS = (
    {"commands"},
    {"companions"},
    {"cost", "external", "finetune"},
    {"reports"},
    {"runs"},
    {"methods"},
    {"streams", "metrics"},
    {"data"},
)
HEIGHT = {folder: -depth for depth, layer in enumerate(LAYERS) for folder in layer}
FILES = sorted(
    path.relative_to(ROOT) for folder in HEIGHT for path in (ROOT / folder).rglob("*.py")
)
MOST_LINES = 350


def imported(path: Path) -> Iterator[str]:
    """The folders of benchmarks/ that a file imports from, anywhere in its text."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("benchmarks."))


def test_every_folder_has_its_place() -> None:
    """At the top are the start and the README; all else is in a folder that has a height."""
    found = {path for path in ROOT.iterdir() if path.name != "__pycache__"}
    assert {path.name for path in found if path.is_dir()} == set(HEIGHT)
    assert {path.name for path in found if path.is_file()} == {
        "README.md", "__init__.py", "__main__.py",
    }  # fmt: skip
    assert len(FILES) > 90
    assert {module.split(".")[1] for module, _ in COMMANDS.values()} == {"commands"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_downward(path: Path) -> None:
    own = path.parts[0]
    for other in imported(path):
        assert other == own or HEIGHT[other] < HEIGHT[own], f"{path} imports from {other}/"


def test_no_file_is_long() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in FILES}
    assert {path: n for path, n in lengths.items() if n > MOST_LINES} == {}
