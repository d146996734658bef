"""Checkouts of other people's repositories: which version one is, and its modules on the path.

The path is changed for the whole process, which is why a run has a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.external import AbsentError


def require(checkout: Path | None, repository: str, files: Sequence[str]) -> Path:
    """The checkout as it was given; raises `AbsentError` where it is missing or another one."""
    if checkout is None:
        raise AbsentError(f"needs --checkout, the folder of a clone of {repository}")
    missing = [name for name in files if not (checkout / name).exists()]
    if missing:
        raise AbsentError(f"--checkout: {str(checkout)!r} has no {missing[0]}; "
                          f"allowed: a clone of {repository}")  # fmt: skip
    return checkout


def commit(checkout: Path) -> str:
    """The first ten digits of its commit, or `no git`, with `, changed` where files differ."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(checkout), *words],
                              capture_output=True, text=True, check=False)  # fmt: skip
        return done.stdout.strip() if done.returncode == 0 else ""

    found = git("rev-parse", "HEAD")[:10] or "no git"
    changed = git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
    # A clone without all of its files is the same version, as far as these are not needed.
    edits = [line for line in changed.splitlines() if not line.strip().startswith("D")]
    return f"{found}, changed" if edits else found


def on_path(*folders: Path) -> None:
    """Put folders first on the path of modules."""
    sys.path[:0] = [str(folder) for folder in folders]
