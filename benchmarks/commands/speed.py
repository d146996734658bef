"""`python -m benchmarks speed`: what a step costs, as a ratio in the same run.

Each optimizer takes turns with the fastest torch AdamW of its layout, over sizes, with few large
and many small tensors. SAL's are measured after a consolidation, when a step costs most. The floor
is AdamW's seven passes over memory at the bandwidth of a copy, measured in the same run. Then the
whole training step of three networks, and the part of a step that change detector and diagnostics
take.
"""

from __future__ import annotations

import json
import platform
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.commands.options import check_folder, parser
from benchmarks.cost.contestants import CONTESTANTS, REFERENCES, Contestant, parameters
from benchmarks.cost.figure import draw
from benchmarks.cost.timing import copy_bandwidth, paired
from benchmarks.cost.whole import overhead, whole_steps
from benchmarks.data.errors import UserError, require_choice, require_range
from benchmarks.runs.records import write_atomically
from benchmarks.runs.suite import default_jobs

EXAMPLES = """examples:
  python -m benchmarks speed
  python -m benchmarks speed --sizes 1e4,1e6 --repeats 5
  python -m benchmarks speed --sizes 1e8 --methods "SALAdamW diagonal"
  python -m benchmarks speed --device cuda --sizes 1e6,1e8
"""
FEW, MANY = 4, 256


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    console = Console()
    chosen = [c for c in CONTESTANTS if not args.methods or c.name in args.methods]
    absent = [c.name for c in chosen if not c.installed()]
    if absent:
        console.print(f"not installed, left out: {', '.join(absent)} (pip install .[peers])")
    chosen = [c for c in chosen if c.installed() and c not in REFERENCES]
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {"torch": torch.__version__, "machine": _machine(args), "steps": rows}
    report.update(whole=[], overhead=[])

    def write() -> None:
        """What there is: a run that is stopped leaves what it has measured."""
        write_atomically(args.out / "speed.json", json.dumps(report, indent=1))

    for size in args.sizes:
        for tensors in (FEW, MANY):
            if size // tensors >= 16:
                rows += _layout(chosen, size, tensors, args, console)
                write()
        report["overhead"] += [overhead(size, args.repeats, args.device)]
    if not args.no_networks:
        report["whole"] = whole_steps(args.repeats, args.device, args.threads, console)
    write()
    _tables(report, console)
    draw(rows, args.out / "figures" / "speed.png")
    console.print(
        f"written: {args.out / 'speed.json'}, {args.out / 'figures' / 'speed.png'}", markup=False
    )
    return 0


def _machine(args: Namespace) -> str:
    if args.device != "cpu":
        return torch.cuda.get_device_name(args.device)
    return f"{platform.processor() or platform.machine()}, {args.threads} threads"


def _arguments(argv: Sequence[str] | None) -> Namespace:
    made = parser("python -m benchmarks speed", "Time optimizer steps in turns.", EXAMPLES)
    add = made.add_argument
    add("--sizes", default="1e4,1e5,1e6,1e7", help="elements of all tensors (default: %(default)s)")
    add("--methods", action="append", metavar="NAME", help="repeatable; default: all")
    add("--repeats", type=int, default=15, help="turns (default: %(default)s)")
    add("--threads", type=int, default=default_jobs(), help="default: all cores")
    add("--device", default="cpu", help="cpu, or cuda where there is a card (default: cpu)")
    add("--no-networks", action="store_true", help="leave the whole training steps out")
    add("--out", type=Path, default=Path("results"), help="folder for results (default: results)")
    args = made.parse_args(argv)
    try:
        args.sizes = [float(size) for size in args.sizes.split(",")]
    except ValueError:
        raise UserError(
            f"--sizes: {args.sizes!r} is no list of numbers; allowed: as 1e4,1e6"
        ) from None
    for size in args.sizes:
        require_range("--sizes", size, 1000, 1e9)
    args.sizes = [int(size) for size in args.sizes]
    check_folder(args.out)
    require_range("--repeats", args.repeats, 1)
    require_range("--threads", args.threads, 1)
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    require_choice("--device", args.device, ["cpu", *(["cuda"] if cards else []), *cards])
    known = [c.name for c in CONTESTANTS]
    for name in args.methods or []:
        if name not in known:
            raise UserError(f"--methods: {name!r} is unknown; allowed: {', '.join(known)}")
    return args


def _layout(
    chosen: Sequence[Contestant], size: int, tensors: int, args: Namespace, console: Console
) -> list[dict[str, Any]]:
    """All of one size and number of tensors, against the fastest torch AdamW there."""
    repeats, device = args.repeats, args.device
    bandwidth = copy_bandwidth(size, device)
    makers = {c.name: c.make for c in REFERENCES}
    loop = makers["torch AdamW loop"](parameters(size, tensors, device))
    timed = {}
    for reference in REFERENCES:
        step = reference.make(parameters(size, tensors, device)).step
        timed[reference.name] = paired(step, loop.step, repeats=repeats)
    fastest = min(timed, key=lambda name: timed[name].ratio)
    rows = []
    for contestant in [*REFERENCES, *chosen]:
        rival = makers[fastest](parameters(size, tensors, device))
        step = contestant.make(parameters(size, tensors, device)).step
        found = paired(step, rival.step, repeats=repeats)
        rows.append(
            {
                "optimizer": contestant.name,
                "elements": size,
                "tensors": tensors,
                "ns an element": 1e9 * found.seconds / size,
                "fastest": fastest,
                "floor ns": 1e9 * 28 / bandwidth,
                "passes": contestant.passes,
                **asdict(found),
            }
        )
        console.print(
            f"{size:.0e} x {tensors:3d}  {contestant.name:36s} "
            f"{rows[-1]['ns an element']:8.2f} ns  {found.ratio:6.2f}",
            highlight=False,
        )
    return rows


def _tables(report: dict[str, Any], console: Console) -> None:
    table = Table("optimizer", title="ratio to the fastest torch AdamW of the layout, median")
    rows = report["steps"]
    layouts = sorted({(row["elements"], row["tensors"]) for row in rows})
    for elements, tensors in layouts:
        table.add_column(f"{elements:.0e}\nin {tensors}", justify="right")
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        own = {(r["elements"], r["tensors"]): r["ratio"] for r in rows if r["optimizer"] == name}
        table.add_row(name, *(f"{own[key]:.2f}" for key in layouts))
    console.print(table)
    whole = Table("network", "optimizer", "beside", "ms a step", "ratio", "quartiles")
    for row in report["whole"]:
        whole.add_row(
            row["network"],
            row["optimizer"],
            row["beside"],
            f"{1e3 * row['seconds']:.2f}",
            f"{row['ratio']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
        )
    if report["whole"]:
        console.print(whole)
    parts = Table("elements", "change detector, % of a step", "diagnostics(), % of a step")
    for row in report["overhead"]:
        parts.add_row(
            f"{row['elements']:.0e}",
            f"{100 * row['detector']:.2f}",
            f"{100 * row['diagnostics']:.2f}",
        )
    console.print(parts)
