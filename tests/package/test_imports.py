"""Imports run downward only. They are read from the sources, those inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "sal_optim"

# Usable alone: it imports utils and nothing else, and only the top may import it.
COMPANIONS = "companions"
# Top to bottom. A layer imports from itself, where there is no circle, and from those below it.
TOP = {"__init__", "run", "integrations", "transfer"}
LAYERS = (
    TOP,
    {"monitoring"},
    {"adam", "layer", "lion", "muon", "sgd"},
    {"optimizer"},
    {"checkpoint"},
    {"protection"},
    {"config"},
    {"detection", "importance"},
    {"sharding"},
    {"utils", "_moved", "_version"},
)


def imports_of(code: str, package: str = "sal_optim") -> set[str]:
    """Dotted paths inside the package that are imported, without its name.

    Where a name of a folder is imported, the path ends with it: it may be a file.
    """
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports here are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix(f"{package}.") for name in found if name.startswith(f"{package}.")}


def unit_of(path: str) -> str:
    """The folder or file at the top of the package that a path is in; of a name, ``__init__``."""
    first = path.split(".")[0]
    known = (ROOT / first).is_dir() or (ROOT / f"{first}.py").is_file()
    return first if known else "__init__"


def graph() -> dict[str, set[str]]:
    """What each folder, or file at the top, imports of the others."""
    found: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        unit = path.relative_to(ROOT).parts[0].removesuffix(".py")
        units = {unit_of(name) for name in imports_of(path.read_text(encoding="utf-8"))}
        found.setdefault(unit, set()).update(units - {unit})
    return found


def layer_of(unit: str) -> int:
    """From 0 at the top."""
    return next(index for index, layer in enumerate(LAYERS) if unit in layer)


def violations(found: dict[str, set[str]]) -> list[str]:
    wrong = []
    for unit, units in found.items():
        for other in sorted(units):
            if unit == COMPANIONS:
                allowed = other == "utils"
            elif other == COMPANIONS:
                allowed = unit in TOP
            else:
                allowed = layer_of(unit) <= layer_of(other)
            if not allowed:
                wrong.append(f"{unit} imports {other}")
    return wrong


def test_imports_run_downward() -> None:
    assert violations(graph()) == []


def ordered(found: dict[str, set[str]]) -> list[str]:
    """Lowest first; an error where there is a circle."""
    return list(TopologicalSorter(found).static_order())


def test_there_is_no_circle() -> None:
    assert set(ordered(graph())) == set(graph())


def test_there_is_no_circle_of_files() -> None:
    """But for types, which are imported where no code runs; a folder is all that is in it."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(ROOT.rglob("*.py"))
    }
    found = {}
    for name, path in files.items():
        code = path.read_text(encoding="utf-8").split("if TYPE_CHECKING:\n    from sal")
        names = imports_of(code[0])
        found[name] = {known for full in names if (known := file_of(full, files)) != name}
    assert len(ordered(found)) >= len(files)


def file_of(name: str, files: Mapping[str, object]) -> str:
    """The file that a dotted path is of: itself, or what is left without a name in it."""
    return name if name in files else name.rpartition(".")[0] or "__init__"


def test_all_files_have_a_layer() -> None:
    """A new file at the top is of a layer, or belongs into a folder."""
    placed = {unit for layer in LAYERS for unit in layer} | {COMPANIONS}
    assert placed == set(graph())


@pytest.mark.parametrize(
    ("unit", "code", "told"),
    [
        ("utils", "from sal_optim.config import PULL", ["utils imports config"]),
        ("utils", "def f():\n    import sal_optim.adam", ["utils imports adam"]),
        ("utils", "from sal_optim import SALAdam", ["utils imports __init__"]),
        ("companions", "from sal_optim import optimizer", ["companions imports optimizer"]),
        ("companions", "from sal_optim.utils import checks", []),
        ("adam", "from sal_optim.monitoring import plot", ["adam imports monitoring"]),
        ("detection", "from sal_optim.monitoring import plot", ["detection imports monitoring"]),
        ("importance", "from sal_optim.protection import clock", ["importance imports protection"]),
        ("protection", "import sal_optim.checkpoint", ["protection imports checkpoint"]),
        ("optimizer", "from sal_optim.adam import SALAdam", ["optimizer imports adam"]),
        ("config", "from sal_optim.importance import IMPORTANCE", []),
        ("optimizer", "from sal_optim.companions import Drift", ["optimizer imports companions"]),
        ("monitoring", "from sal_optim.integrations import x", ["monitoring imports integrations"]),
        ("monitoring", "from sal_optim.protection import clock\nimport torch", []),
    ],
)
def test_a_wrong_import_is_seen(unit: str, code: str, told: list[str]) -> None:
    assert violations({unit: {unit_of(name) for name in imports_of(code)}}) == told


def test_a_circle_is_seen() -> None:
    with pytest.raises(CycleError):
        ordered({**graph(), "utils": {"companions"}})
