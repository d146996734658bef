"""`python -m benchmarks memory`: bytes a parameter, kept and at the peak of a step.

Kept: what ``state`` holds, counted from the tensors. Peak: by how much the resident memory of a
fresh process rises at most during steps, beyond what it was before them, from Linux's own count.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.commands.options import check_folder, parser
from benchmarks.cost.contestants import CONTESTANTS, parameters
from benchmarks.data.errors import UserError, require_range

EXAMPLES = """examples:
  python -m benchmarks memory
  python -m benchmarks memory --size 1e8
"""
TENSORS = 8


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("python -m benchmarks memory", "Bytes a parameter of each optimizer.", EXAMPLES)
    made.add_argument("--size", type=float, default=1.6e7, help="elements (default: %(default)g)")
    made.add_argument("--out", type=Path, default=Path("results"), help="folder for results")
    made.add_argument("--one", help="measure this one in this process, and print it as JSON")
    args = made.parse_args(argv)
    require_range("--size", args.size, 1e5, 1e10)
    check_folder(args.out)
    if args.one:
        print(json.dumps(_measure(args.one, int(args.size))))
        return 0
    table = Table("optimizer", "state, B a parameter", "beyond its base", "peak, B a parameter")
    console, rows = Console(), []
    for contestant in CONTESTANTS:
        if not contestant.installed():
            console.print(f"not installed, left out: {contestant.name}")
            continue
        command = [sys.executable, "-m", "benchmarks", "memory", "--size", str(args.size), "--one"]
        done = subprocess.run([*command, contestant.name], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{contestant.name}: {done.stderr.strip().splitlines()[-1]}")
        row = json.loads(done.stdout.splitlines()[-1])
        base = 8 if contestant.family == "adam" else 4
        rows.append(row)
        table.add_row(
            row["optimizer"],
            f"{row['state']:.2f}",
            f"{row['state'] - base:+.2f}",
            f"{row['peak']:.2f}",
        )
    console.print(table)
    (args.out / "memory.json").write_text(json.dumps(rows, indent=1))
    console.print(f"written: {args.out / 'memory.json'}")
    return 0


def _measure(name: str, size: int) -> dict[str, Any]:
    found = [c for c in CONTESTANTS if c.name == name]
    if not found:
        raise UserError(
            f"--one: {name!r} is unknown; allowed: {', '.join(c.name for c in CONTESTANTS)}"
        )
    params = parameters(size, TENSORS)
    optimizer = found[0].make(params)
    for _ in range(8):
        optimizer.step()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    for _ in range(8):
        optimizer.step()
    count = sum(param.numel() for param in params)
    kept = _bytes(getattr(optimizer, "state", {}))
    return {
        "optimizer": name,
        "elements": count,
        "state": kept / count,
        "peak": max(0, _resident("VmHWM") - before) / count,
    }


def _bytes(state: Any) -> int:
    """Of all tensors in containers, however deep."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(_bytes(value) for value in state.values())
    if isinstance(state, (list, tuple)):
        return sum(_bytes(value) for value in state)
    return 0


def _resident(field: str) -> int:
    """Bytes of resident memory, now (VmRSS) or at its peak (VmHWM)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if not found:
        raise UserError(f"/proc/self/status has no {field}; this needs Linux")
    return 1024 * int(found.group(1))
