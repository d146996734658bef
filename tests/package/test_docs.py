"""The docs: every block of Python in them runs, and no picture is large.

A block has a namespace and a folder of its own; where a page says so, the blocks of the page share
one. A block whose extra is not installed is skipped. Links are checked by ``make docs``.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))
SHARED = "<!-- The blocks of this page share a namespace. -->"
# What an extra brings; any other package that is missing is an error.
EXTRAS = {
    *("accelerate", "avalanche", "fastai", "ignite", "lightning", "matplotlib", "peft"),
    *("pytorch_optimizer", "rich", "sklearn", "skorch", "tensorboard", "transformers"),
}
# Drawn before there was a limit; to be drawn smaller.
LARGE = {"docs/curves.png"}

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    page: str
    line: int  # of its first line of code
    code: str


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text[: match.start(1)].count("\n") + 1, match[1])
        for match in _BLOCK.finditer(text)
    ]


def units() -> list[Any]:
    """What is run together: a block, or all blocks of a page that shares its namespace."""
    found = []
    for page in PAGES:
        shared = SHARED in (ROOT / page).read_text(encoding="utf-8")
        groups = [blocks(page)] if shared else [[block] for block in blocks(page)]
        found += [pytest.param(g, id=f"{page}:{g[0].line}") for g in groups]
    return found


def run(block: Block, namespace: dict[str, Any]) -> None:
    # Lines as on the page, for tracebacks.
    tree = ast.parse("\n" * (block.line - 1) + block.code, filename=block.page)
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for name in {name.partition(".")[0] for name in names} & EXTRAS:
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"{name} is not installed")
    try:
        exec(compile(tree, block.page, "exec"), namespace)
    except ImportError as error:
        if "pip install 'sal_optim[" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("unit", units())
def test_code_runs(unit: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        for block in unit:
            run(block, namespace)


def test_no_block_is_passed_over() -> None:
    """A fence in another spelling would not be found."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        spelled = re.findall(r"(?im)^[ \t]*(?:```|~~~)[ \t]*\{?\.?(?:python3?|py|pycon)\b.*$", text)
        assert spelled == ["```python"] * len(blocks(page)), page
    assert len(units()) >= 5


def test_pictures_are_small() -> None:
    for path in ROOT.glob("docs/*.png"):
        if str(path.relative_to(ROOT)) not in LARGE:
            assert path.stat().st_size < 100_000, path
