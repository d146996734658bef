"""`python -m benchmarks report`: everything on record under --out as one self-contained HTML page.

It computes nothing anew: it reads the manifests that `continual` left and the records they name. A
run whose record is gone, or was made by other code, is reported and its row left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.commands.options import check_file, parser
from benchmarks.data.errors import UserError, require_choice
from benchmarks.reports.comparison import REFERENCE, read, section_of
from benchmarks.reports.document import document
from benchmarks.reports.page import page
from benchmarks.runs.manifest import manifests
from benchmarks.runs.records import write_atomically

EXAMPLES = """\
examples:
  python -m benchmarks continual --methods all --seeds 10
  python -m benchmarks continual --methods adam ewc sal-adam --grid lr=3e-4,1e-3,3e-3
  python -m benchmarks report
  python -m benchmarks report --reference ewc --write results/against-ewc.html
  python -m benchmarks report --markdown docs/tables.md
"""


def arguments() -> argparse.ArgumentParser:
    made = parser("python -m benchmarks report", "Make one HTML page of all results.", EXAMPLES)
    add = made.add_argument
    add("--out", type=Path, default=Path("results"), help="folder with results (default: results)")
    add("--write", type=Path, help="the page (default: report.html in --out)")
    add("--markdown", type=Path, help="also write the tables as Markdown, for a document")
    add("--reference", help=f"row that the others are compared with (default: {REFERENCE})")
    add("--panels", nargs="+", metavar="ROW", help="rows that get a panel in the figures")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    messages = Console(stderr=True)
    target = args.write or args.out / "report.html"
    for argument, path in (("--write", target), ("--markdown", args.markdown)):
        if path is not None and (path != args.out / "report.html" or args.out.is_dir()):
            check_file(path, argument)
    found = list(manifests(args.out))
    if not found:
        raise UserError(
            f"--out: {str(args.out)!r} has no results; allowed: a folder that "
            "`python -m benchmarks continual --out` wrote"
        )
    comparisons = [made for one in found if (made := read(one, args.out, messages))]
    labels = list(dict.fromkeys(label for one in comparisons for label in one.results))
    for name, given in (("--reference", [args.reference]), ("--panels", args.panels or [])):
        for label in given:
            if label is not None:
                require_choice(name, label, labels)
    folder = args.out / "figures" / "report"
    sections = [
        section_of(one, args.reference, args.panels, folder / f"{number:02}")
        for number, one in enumerate(comparisons)
    ]
    write_atomically(target, page(sections))
    if args.markdown:
        write_atomically(args.markdown, document(sections))
    Console().print(
        f"written: {target} and its figures under {folder}", highlight=False, markup=False
    )
    return 0
