"""What a record depends on, on packages of every shape that ours may take."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.runs.sources import other_sources, source_hash, sources

FILES = {
    "__init__.py": "from {0}.optimizers import Kind\nfrom {0}.shown.plot import draw\n",
    "optimizers/__init__.py": "from {0}.optimizers.kind import Kind as Kind\n"
    "from .rival import Rival\n",
    "optimizers/kind.py": "from {0}.steps import gate\nimport {0}.state.tensors\n\n"
    "class Kind:\n    pass\n",
    "optimizers/rival.py": "from {0}.steps.pull import pull\n\nclass Rival:\n    pass\n",
    "steps/__init__.py": "from {0}.steps.pull import pull\nfrom .late import late\n",
    "steps/gate.py": "from . import inner\nfrom ..steps import late\n\n"
    "def lazily():\n    import importlib\n    return importlib.import_module('{0}.backend')\n",
    "steps/inner.py": "from {0}.values import *\n",
    "steps/late.py": "def late():\n    from {0}.state import made\n",
    "steps/pull.py": "pull = 1\n",
    "state/__init__.py": "def made():\n    return 1\n",
    "state/tensors.py": "import torch\n",
    "values.py": "VALUE = 1\n",
    "backend.py": "import math\n",
    "native/step.cpp": "int step() {{ return 1; }}\n",
    "shown/__init__.py": "",
    "shown/plot.py": "def draw():\n    pass\n",
    "README.md": "What it is.\n",
    "py.typed": "",
    "__pycache__/values.cpython-312.pyc": "",
}
KIND = {
    "optimizers/kind.py", "steps/gate.py", "steps/inner.py", "steps/late.py", "state/__init__.py",
    "state/tensors.py", "values.py", "backend.py",
}  # fmt: skip


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """A package of several folders, under a name that no other test has."""
    name = f"package_{abs(hash(request.node.name))}"
    for place, text in FILES.items():
        path = tmp_path / name / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(name))
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name)


def names_of(package: Any, found: tuple[Path, ...]) -> set[str]:
    root = Path(package.__file__).parent
    return {path.relative_to(root).as_posix() for path in found}


def test_imports_are_followed_through_packages(package: Any) -> None:
    """Modules, re-exports, relative, late and star imports; of two kinds only what each needs."""
    assert names_of(package, sources([package.Kind], package.__name__)) == KIND
    rival = package.optimizers.Rival
    expected = {"optimizers/rival.py", "steps/pull.py"}
    assert names_of(package, sources([rival], package.__name__)) == expected


def test_a_class_that_names_its_package_is_followed_to_its_file(package: Any) -> None:
    package.Kind.__module__ = package.__name__
    assert names_of(package, sources([package.Kind], package.__name__)) == KIND


def test_what_a_list_passes_on_is_followed_though_the_list_is_not(package: Any) -> None:
    name = package.__name__
    (Path(package.__file__).parent / "run.py").write_text(
        f"from {name}.lists import ALL, Kind\n\ndef run():\n    pass\n"
    )
    (Path(package.__file__).parent / "lists").mkdir()
    (Path(package.__file__).parent / "lists/__init__.py").write_text(
        f"from {name}.optimizers import Kind, Rival\n\nALL = [Kind, Rival]\n"
    )
    run = importlib.import_module(f"{name}.run").run
    whole = names_of(package, sources([run], name))
    assert whole == {*KIND, "run.py", "lists/__init__.py", "optimizers/rival.py", "steps/pull.py"}
    assert names_of(package, sources([run], name, [f"{name}.lists"])) == {*KIND, "run.py"}


def test_where_nothing_is_found_is_an_error(package: Any) -> None:
    name = package.__name__
    with pytest.raises(LookupError, match=r"pathlib.*no part of"):
        sources([Path], name)
    with pytest.raises(LookupError, match="no source"):
        sources([], name)
    with pytest.raises(LookupError, match=r"gone has no source file"):
        sources([package.Kind], name, [f"{name}.gone"])
    package.Kind.__module__ = f"{name}.gone"
    with pytest.raises(LookupError, match=r"gone has no source file"):
        sources([package.Kind], name)


def test_sources_that_are_not_python(package: Any) -> None:
    """C++ counts with every byte; what is built and what is read by people does not."""
    found = other_sources(package.__name__)
    assert names_of(package, found) == {"native/step.cpp"}
    before = source_hash(found[0])
    found[0].write_text("int step() { return 2; }\n")
    source_hash.cache_clear()
    assert source_hash(found[0]) != before
