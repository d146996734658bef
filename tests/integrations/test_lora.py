"""Two data sets through one adapter of PEFT, by the example."""

from __future__ import annotations

import re
from pathlib import Path

from tests.integrations.runs import EXAMPLES, needs, run


def test_lora(tmp_path: Path) -> None:
    needs("peft")
    needs("transformers")
    script, old, new = str(EXAMPLES / "lora_two_tasks.py"), {}, {}
    for name in ("adamw", "saladamw"):
        shown = run([script, "--optimizer", name, "--steps", "150", "--report"], tmp_path)
        found = re.findall(r"W: old (\d+\.\d+), new (\d+\.\d+)", shown)
        old[name], new[name] = (float(value) for value in found[-1])
    assert old["saladamw"] < 0.85 * old["adamw"]
    assert new["saladamw"] < 1.1 * new["adamw"]
    assert "base_model" not in shown, "names of tensors are short"
