"""The example notebook: valid, without outputs, and runs from top to bottom."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

PATH = Path(__file__).parents[2] / "examples" / "continual.ipynb"


def notebook() -> dict[str, Any]:
    return json.loads(PATH.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_it_is_a_notebook_without_outputs() -> None:
    found = notebook()
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in found["cells"]]
    assert len(set(ids)) == len(ids) > 5
    for cell in found["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    if importlib.util.find_spec("nbformat") is not None:
        import nbformat

        nbformat.validate(found)


def test_its_cells_run_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "sklearn"):
        pytest.importorskip(name)
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        for index, cell in enumerate(notebook()["cells"]):
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"cell {index}", "exec"), namespace)
    namespace["plt"].close("all")
    found = namespace["optimizer"].diagnostics()
    assert found["changes"] == 2.0
    assert found["consolidations"] > 5.0
    average = {name: sum(namespace[f"{name}_looks"][-1]) / 3 for name in ("adam", "sal")}
    assert average["sal"] > average["adam"]
    assert namespace["sal_looks"][-1][-1] > 75.0  # it learns the last task


def test_a_notebook_shows_its_pictures() -> None:
    """In a kernel, where one is installed."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    pytest.importorskip("ipykernel")
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    shown = nbformat.read(PATH, as_version=4)  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(shown, timeout=120, kernel_name="python3").execute()
    kinds = [
        kind
        for cell in shown.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    ]
    assert kinds.count("image/png") == 3
