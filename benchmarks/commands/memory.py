"""`python -m benchmarks memory`: bytes a parameter, kept and at the peak of a step.

Kept: what ``state`` holds, counted from the tensors. Peak: by how much the resident memory of a
fresh process rises at most during steps, beyond what it was before them, from Linux's own count.
With ``--plan`` nothing is measured: costs of a model's shapes on many processes, see cost/plan.py.
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
from benchmarks.cost.plan import Model, rows_of
from benchmarks.data.errors import UserError, require_range

EXAMPLES = """examples:
  python -m benchmarks memory
  python -m benchmarks memory --size 1e8
  python -m benchmarks memory --plan 8b
  python -m benchmarks memory --plan MODEL.json --two-byte
"""
TENSORS = 8
# Of a plan: processes, and those that tensor parallelism takes of them.
PROCESSES, PARALLEL = (8, 64, 512, 4096), (1, 8)


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("python -m benchmarks memory", "Bytes a parameter of each optimizer.", EXAMPLES)
    made.add_argument("--size", type=float, default=1.6e7, help="elements (default: %(default)g)")
    made.add_argument("--out", type=Path, default=Path("results"), help="folder for results")
    made.add_argument("--one", help="measure this one in this process, and print it as JSON")
    made.add_argument(
        "--plan", metavar="MODEL", help="costs on paper of shapes in a JSON file: see cost/models/"
    )
    made.add_argument("--two-byte", action="store_true", help="of a plan: state_dtype=bfloat16")
    args = made.parse_args(argv)
    if args.plan:
        _show_plan(Model.read(args.plan), 2 if args.two_byte else 4)
        return 0
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
    console.print(f"written: {args.out / 'memory.json'}", markup=False)
    return 0


def _show_plan(model: Model, item: int) -> None:
    table = Table(
        "GPUs", "of them TP", "parameters", "blocks", "factors, GB", "anchor, GB",
        "B a parameter", "step, Gflop", "consolidation, Gflop", "numbers reduced a step",
        title=f"{model.name}: {model.size:,} parameters; of each GPU",
    )  # fmt: skip
    for parallel in PARALLEL:
        for row in rows_of(model, PROCESSES, parallel, item=item):
            kept = row["factors"] + row["anchor"]
            table.add_row(
                str(row["processes"]),
                str(parallel),
                f"{row['parameters']:.3g}",
                str(row["blocks"]),
                f"{row['factors'] / 1e9:.3f}",
                f"{row['anchor'] / 1e9:.3f}",
                f"{kept / row['parameters']:.2f}",
                f"{row['step'] / 1e9:.3g}",
                f"{row['consolidation'] / 1e9:.3g}",
                f"{row['numbers'] * row['reductions']:.0f}",
            )
    Console(width=120).print(table)


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
