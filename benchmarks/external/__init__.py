"""Harnesses that others wrote, with an optimizer of this package handed in as a user would.

Each harness is a module with the attributes of `Harness`. Nothing of theirs is copied: a package is
imported, and a checkout is given by its path. Which runs there are, and where they are recorded, is
in jobs.py; a run happens in a process of its own (child.py), because checkouts name their modules
`data`, `main` and `core`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

# name -> (module, what --help says)
HARNESSES = {
    "avalanche": ("benchmarks.external.avalanche", "Avalanche's MNIST benchmarks and strategies"),
    "vandeven": ("benchmarks.external.vandeven", "a checkout of GMvandeVen/continual-learning"),
    "upgd": ("benchmarks.external.upgd", "a checkout of mohmdelsayed/upgd"),
    "plasticity": ("benchmarks.external.plasticity", "a checkout of shibhansh/loss-of-plasticity"),
}


class AbsentError(Exception):
    """A harness or its data are not on this machine; the message says how they come there."""


class Harness(Protocol):
    """What a module of a harness has."""

    # Streams by name, and a line about each.
    BENCHMARKS: Mapping[str, str]
    # Methods by name: the strengths to choose from on validation data, empty where there is none.
    METHODS: Mapping[str, Sequence[float]]
    # Plain values by name; `None` is the harness's own choice.
    SETTINGS: Mapping[str, Any]

    def version(self, checkout: Path | None) -> str:
        """Of the harness, as text; raises `AbsentError` where it is not there."""

    def check(self, data: Any) -> None:
        """Raise a UserError where the data cannot be used here."""

    def run(self, job: Any, data: Any, folder: Path, checkout: Path | None) -> dict[str, Any]:
        """Train and measure, in a process of its own whose working folder is `folder`.

        The result has accuracies as fractions: `matrix`, R[t][j] on task j after task t, or, where
        the harness looks at the stream alone, `final`, its last row, and `online`, by task.
        """


def harness(name: str) -> Harness:
    """The harness called `name`, a key of HARNESSES."""
    return cast(Harness, importlib.import_module(HARNESSES[name][0]))
