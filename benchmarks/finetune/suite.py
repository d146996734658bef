"""All runs of a plan: what is missing is computed in parallel, what is on record is read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from rich.console import Console

from benchmarks.finetune.network import pretrained
from benchmarks.finetune.run import Setting, run
from benchmarks.finetune.store import Store
from benchmarks.finetune.texts import load


def complete(
    plan: Sequence[Setting], out: Path, *, data_dir: str | None, jobs: int, console: Console
) -> list[dict[str, Any]]:
    """The results of all runs of the plan, in its order."""
    store = Store(out / "records")
    results = [store.read(setting) for setting in plan]
    missing = [place for place, result in enumerate(results) if result is None]
    console.print(
        f"{len(plan)} runs: {len(plan) - len(missing)} on record, {len(missing)} to compute",
        highlight=False,
    )
    if missing:
        # Two workers must not both pretrain the network of one seed.
        seeds = {(plan[place].old, plan[place].seed): plan[place] for place in missing}
        workers = Parallel(n_jobs=min(jobs, len(missing)), return_as="generator_unordered")
        for _ in workers(delayed(_pretrain)(one, out, data_dir) for one in seeds.values()):
            pass
        tasks = (delayed(_compute)(place, plan[place], out, data_dir) for place in missing)
        for count, (place, result) in enumerate(workers(tasks), start=1):
            results[place] = result
            setting = plan[place]
            console.print(
                f"{count}/{len(missing)} {setting.method} lr {setting.lr:.2g} {setting.options} "
                f"seed {setting.seed}: new {result['points'][-1][0]:.3f}, "
                f"old {result['points'][0][1]:.3f} -> {result['points'][-1][1]:.3f}",
                highlight=False,
            )
    return [result for result in results if result is not None]


def _pretrain(setting: Setting, out: Path, data_dir: str | None) -> None:
    torch.set_num_threads(1)
    pretrained(
        load(setting.old, data_dir),
        setting.pretrain,
        setting.seed,
        out / "pretrained",
        width=setting.width,
        layers=setting.layers,
    )


def _compute(
    place: int, setting: Setting, out: Path, data_dir: str | None
) -> tuple[int, dict[str, Any]]:
    result = run(setting, out / "pretrained", data_dir)
    Store(out / "records").write(setting, result)
    return place, result
