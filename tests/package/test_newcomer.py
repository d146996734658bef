"""A newcomer's path: the first example runs beside torch alone, and mistakes are told clearly."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sal_optim
from sal_optim import SALSGD, CommunicationLayer, LiveView, SALAdam, SALAdamW
from sal_optim.monitoring import writers

ROOT = Path(__file__).parents[2]
OTHERS = ("lightning", "matplotlib", "pandas", "rich", "scipy", "sklearn", "transformers")


def test_the_first_example_pasted_into_a_file(tmp_path: Path) -> None:
    """In a new process and another folder, where no package but torch can be imported."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = text.split("```python\n", 1)[1].split("```", 1)[0]
    hidden = f"import sys; sys.modules.update(dict.fromkeys({OTHERS!r}))\n"
    # Where the package is not installed, it is found beside the tests.
    found = f"sys.path.append({str(ROOT)!r})\n"
    script = tmp_path / "train.py"
    script.write_text(hidden + found + example, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"'threshold': \d", done.stdout)


def test_looking_at_a_run_imports_nothing_before_it_is_asked_for() -> None:
    code = (
        "import sys\n"
        "from sal_optim.monitoring import live_view, plot, report, writers\n"
        "print([n for n in ('matplotlib', 'rich', 'tensorboard') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


model = nn.Linear(2, 2)


def params() -> Any:
    return model.parameters()


# A mistake, and what its error says, in this order.
MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "an old name": (
        lambda: sal_optim.SALadam,  # type: ignore[attr-defined]
        AttributeError,
        ("sal_optim", "SALadam"),
    ),
    "no parameters": (lambda: SALAdam([]), ValueError, ("empty parameter list",)),
    "text for a number": (
        lambda: SALAdamW(params(), lr="fast"),  # type: ignore[arg-type]
        ValueError,
        ("learning rate", "'fast'", "[0, inf)"),
    ),
    "below its range": (
        lambda: SALSGD(params(), protection=-1),
        ValueError,
        ("protection", "-1", "[0, inf)"),
    ),
    "not one of the names": (
        lambda: SALAdam(params(), importance="layer"),  # type: ignore[arg-type]
        ValueError,
        ("importance", "'layer'", "'kronecker', 'diagonal', 'factored'"),
    ),
    "an argument that is not there": (
        lambda: SALAdam(params(), protect=1),  # type: ignore[call-arg]
        TypeError,
        ("protect",),
    ),
    "a layer around a model": (
        lambda: CommunicationLayer(model),  # type: ignore[arg-type]
        TypeError,
        ("optimizer", "Linear", "torch.optim.Optimizer"),
    ),
    "a layer around one of the family": (
        lambda: CommunicationLayer(SALAdam(params())),
        ValueError,
        ("optimizer", "SALAdam", "protected already"),
    ),
    "a report in the wrong order": (
        lambda: sal_optim.report(model, SALAdam(params())),  # type: ignore[arg-type]
        TypeError,
        ("optimizer", "Linear", "one of sal_optim", "CommunicationLayer"),
    ),
    "a view of a plain optimizer": (
        lambda: LiveView(torch.optim.Adam(params())),
        TypeError,
        ("optimizer", "Adam", "one of sal_optim", "CommunicationLayer"),
    ),
    "rows of a plain optimizer": (
        lambda: writers.Recorder(torch.optim.Adam(params())),
        TypeError,
        ("optimizer", "Adam", "one of sal_optim", "CommunicationLayer"),
    ),
    "a history of an optimizer": (
        lambda: sal_optim.plot.history(SALAdam(params())),  # type: ignore[arg-type]
        TypeError,
        ("source", "SALAdam", "CSVWriter", "Recorder.rows"),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_what_to_do(mistake: str) -> None:
    if "view" in mistake:
        pytest.importorskip("rich")
    make, kind, words = MISTAKES[mistake]
    with pytest.raises(kind, match=".*".join(map(re.escape, words))):
        make()
