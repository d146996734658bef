"""One run of a harness, in a process of its own: `python -m benchmarks.external.child REQUEST`.

It is started by jobs.py. The working folder is a temporary one, where harnesses may write.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.data.sets import load
from benchmarks.external import harness
from benchmarks.external.jobs import Job
from benchmarks.runs.records import write_atomically


def main(text: str) -> None:
    """Run the request, and write its result where that says."""
    request = json.loads(text)
    job = Job(**request["job"])
    data = load(request["data"], request["data_dir"])
    if job.split == "validation":
        data = data.validation()
    checkout = Path(request["checkout"]).resolve() if request["checkout"] else None
    torch.set_num_threads(1)
    # Harnesses warn of what they look for and do not need here.
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="external-run-") as folder:
        os.chdir(folder)
        begun = perf_counter()
        result = harness(job.harness).run(job, data, Path(folder), checkout)
        result["seconds"] = round(perf_counter() - begun, 1)
        os.chdir("/")
    write_atomically(Path(request["answer"]), json.dumps(result, allow_nan=False))


if __name__ == "__main__":
    main(sys.argv[1])
