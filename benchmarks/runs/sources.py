"""The source files that a class or function depends on, found by following imports.

It reads the text of modules and runs none of it. It knows no method, stream or record: what it
starts from, and what it must not enter, is said by the caller. A start that leads to no file is an
error, because a key without sources would never change.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

# Files of a package that decide nothing: what is built from sources, and what is read by people.
BUILT = {".pyc", ".so", ".o", ".pyd", ".dll", ".dylib"}
READ = {".md", ".rst", ".txt", ".pyi", ".typed"}


class Wanted(NamedTuple):
    """A name of a module; the whole module where `name` is None."""

    module: str
    name: str | None = None


def sources(starts: Iterable[Any], package: str, without: Collection[str] = ()) -> tuple[Path, ...]:
    """The Python files of `package` that the starts are defined in, and all that these import.

    A package's own file that passes a name on is not counted: the name is followed to where it is
    defined. Imports inside functions, relative ones and `importlib.import_module("…")` count.

    Args:
        starts: classes or functions of the package.
        package: a top-level package. What is imported from others is not followed.
        without: modules that are not entered. Names that they pass on are followed all the same.

    Raises:
        LookupError: a start is not of the package, or a module has no file.
    """
    for module in without:
        file_of(module)
    ahead = [Wanted(start.__module__, start.__qualname__.partition(".")[0]) for start in starts]
    for module, name in ahead:
        if not _is_inside(module, package):
            raise LookupError(f"{module}.{name} is no part of {package}")
    found: set[Path] = set()
    seen: set[Wanted] = set()
    while ahead:
        wanted = ahead.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        passed_on = list(_passed_on(wanted))
        if passed_on:
            ahead += [one for one in passed_on if _is_inside(one.module, package)]
        elif wanted.module not in without:
            found.add(file_of(wanted.module))
            inside = _imports(wanted.module)
            ahead += [one for one in inside if _is_inside(one.module, package)]
    if not found:
        raise LookupError(f"no source of {package} was found")
    return tuple(sorted(found))


def other_sources(package: str) -> tuple[Path, ...]:
    """Files of a package that are not Python and may decide a result, as C++ that it compiles."""
    root = file_of(package).parent
    found = [
        path
        for path in root.rglob("*")
        if path.is_file()
        and path.suffix not in {".py", *BUILT, *READ}
        and not any(part.startswith((".", "__")) for part in path.relative_to(root).parts)
    ]
    return tuple(sorted(found))


@lru_cache
def source_hash(path: Path) -> str:
    """Hash of what a file does: comments, docstrings and layout of Python do not count."""
    if path.suffix != ".py":
        return hash_of(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return hash_of(path.name, ast.dump(tree))


def hash_of(*parts: Any) -> str:
    """SHA-256 of plain values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_of(module: str) -> Path:
    """The file of a module, a package's `__init__.py`; raises a LookupError where there is none."""
    path = _file(module)
    if path is None:
        raise LookupError(f"module {module} has no source file")
    return path


@lru_cache
def _root(package: str) -> Path | None:
    """The folder of a top-level package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _file(module: str) -> Path | None:
    package, *parts = module.split(".")
    root = _root(package)
    if root is None:
        return None
    path = root.joinpath(*parts)
    for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
        if file.is_file() and (parts or file.name == "__init__.py"):
            return file
    return None


def _passed_on(wanted: Wanted) -> Iterator[Wanted]:
    """Where a name comes from that its module only passes on; nothing where it is the module's."""
    module, name = wanted
    if name is None:
        return
    if _file(f"{module}.{name}") is not None:
        yield Wanted(f"{module}.{name}")
    if file_of(module).name == "__init__.py":
        yield from _bound(module).get(name, ())


@lru_cache
def _bound(module: str) -> dict[str, tuple[Wanted, ...]]:
    """The names that a module gets by `from … import …`, and where each is from."""
    found: dict[str, tuple[Wanted, ...]] = {}
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            for alias in node.names:
                place = alias.asname or alias.name
                found[place] = (*found.get(place, ()), Wanted(source, alias.name))
    return found


@lru_cache
def _imports(module: str) -> tuple[Wanted, ...]:
    """All that a module imports, anywhere in its text."""
    found: list[Wanted] = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            names = [alias.name for alias in node.names]
            found += [Wanted(source, None if name == "*" else name) for name in names]
        elif isinstance(node, ast.Import):
            found += [Wanted(alias.name) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.append(Wanted(first.value))
    return tuple(found)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that an import names, from the file of `module`."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    # Of a package the first dot is itself.
    up = node.level - (file_of(module).name == "__init__.py")
    return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


def _tree(module: str) -> ast.Module:
    return ast.parse(file_of(module).read_text())


def _is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
