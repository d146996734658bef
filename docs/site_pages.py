"""A hook of mkdocs: files outside docs/ are pages of the site too, and all links hold there.

It makes the page of the command line from each command's ``--help``, completes the navigation, and
gives links whose text is a file's name the title of that page. It is no page, and no part of the
package.
"""

import contextlib
import importlib
import io
import os
import os.path
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
COMMANDS = "commands.md"
# Where the repository is, for its link; else its own remote, where that is an address of the web.
REPOSITORY = "SAL_OPTIM_REPOSITORY"
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")
_FILE_AS_TEXT = re.compile(r"\[`?[\w./-]+\.md`?\]\((?!\w+:|#|/)([^)#\s]+)")


def on_config(config: Any) -> Any:
    """Set the link to the repository, and put the pages of single trainers into the navigation."""
    config.repo_url = config.repo_url or _repository()
    config.nav = _completed(config.nav)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file in ``PAGES``, and that of the command line."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, COMMANDS, content=_commands()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that hold in the repository into links that hold on the site."""
    name = page.file.src_uri
    source = next((s for s, target in PAGES.items() if target == name), f"docs/{name}")

    def path_of(link: str) -> str:
        return os.path.normpath(os.path.join(os.path.dirname(source), link))

    def titled(match: re.Match[str]) -> str:
        return f"[{_title(path_of(match[1]))}]({match[1]}"

    def linked(match: re.Match[str]) -> str:
        target = path_of(match[1])
        if target in PAGES:
            target = f"docs/{PAGES[target]}"
        if not target.startswith("docs/"):
            return match[1]
        return os.path.relpath(target, os.path.dirname(f"docs/{name}"))

    return _LINK.sub(linked, _FILE_AS_TEXT.sub(titled, markdown))


def _title(path: str) -> str:
    """Of a page, in the middle of a sentence."""
    text = (ROOT / path).read_text(encoding="utf-8")
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    title = found[1] if found else Path(path).stem
    return title if title[1:2].isupper() else title[0].lower() + title[1:]


def _completed(nav: Any) -> Any:
    """The navigation with a page for each file that an entry with a ``*`` stands for."""
    if isinstance(nav, dict):
        return {title: _completed(inside) for title, inside in nav.items()}
    if not isinstance(nav, list):
        return nav
    named = {value for item in nav if isinstance(item, dict) for value in item.values() if
             isinstance(value, str)}  # fmt: skip
    found: list[Any] = []
    for item in nav:
        if isinstance(item, str) and "*" in item:
            paths = [*ROOT.glob(f"docs/{item}.md"), *ROOT.glob(f"docs/{item}/**/*.md")]
            pages = sorted(str(path.relative_to(ROOT / "docs")) for path in paths)
            found += [page for page in pages if page not in named]
        else:
            found.append(_completed(item))
    return found


def _repository() -> str | None:
    named = os.environ.get(REPOSITORY)
    if named:
        return named
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    address = re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", done.stdout.strip())
    return address.removesuffix(".git") if address.startswith("https://") else None


def _commands() -> str:
    """What each command of the benchmark says to --help."""
    # benchmarks/ is no installed package.
    sys.path.insert(0, str(ROOT))
    from benchmarks import __main__ as start

    parts = ["# Command line", "", "What each command says to `--help`.", "", _block(start.usage())]
    with mock.patch.dict(os.environ, {"COLUMNS": "88"}):
        for name, (module, summary) in start.COMMANDS.items():
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
                importlib.import_module(module).main(["--help"])
            parts += ["", f"## {name}", "", f"{summary[0].upper()}{summary[1:]}.", ""]
            parts += [_block(said.getvalue())]
    return "\n".join(parts) + "\n"


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"
