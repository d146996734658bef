"""What was chosen on validation text: a file that says how, and the settings that come of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.data.errors import UserError
from benchmarks.finetune.analysis import CHOSEN, best, forgetting, gain, matched_lr, target
from benchmarks.finetune.methods import METHODS, Trial
from benchmarks.finetune.run import Setting
from benchmarks.runs.records import write_atomically

TUNED = Path(__file__).parent / "tuned.json"
TUNING_SEED = 1000
REFERENCE, AVERAGE = "adamw", "wise-ft"
OURS, MATCHED = "sal-adamw", "control-distance"
# Where nothing was tuned: of the new text's first loss, the part that is to be gained.
USUAL_GAIN = 0.14


def trials_of(plain: Setting, method: str) -> list[Setting]:
    """The trials of a method, on validation text and a seed that is not reported."""
    return [
        replace(plain, method=method, lr=lr, options=options, seed=TUNING_SEED, split="validation")
        for lr, options in METHODS[method].trials
    ]


def choose(
    found: Mapping[str, Sequence[dict[str, Any]]], gained: float | None = None
) -> dict[str, Any]:
    """From the results of all trials by method: the best of each, and the control's rate."""
    runs = {name: [result["points"] for result in results] for name, results in found.items()}
    if gained is None:
        gained = gain(runs[REFERENCE])
    chosen: dict[str, Any] = {}
    for name, curves in runs.items():
        place = best(METHODS[name].trials, curves, gained)
        lr, options = METHODS[name].trials[place]
        chosen[name] = {"lr": lr, "options": options, "trials": []}
        for (rate, values), points, result in zip(
            METHODS[name].trials, curves, found[name], strict=True
        ):
            rise = forgetting(points, target(points, gained, CHOSEN))
            chosen[name]["trials"].append(
                {"lr": rate, "options": values, "lost": rise, "distance": result["distance"]}
            )
    if REFERENCE in chosen and OURS in chosen:
        mine = METHODS[OURS].trials.index((chosen[OURS]["lr"], chosen[OURS]["options"]))
        rates = [lr for lr, _ in METHODS[REFERENCE].trials]
        distances = [result["distance"] for result in found[REFERENCE]]
        lr = matched_lr(rates, distances, found[OURS][mine]["distance"])
        chosen[MATCHED] = {"lr": lr, "options": {}, "trials": []}
    return {"gain": gained, "level": CHOSEN, "chosen": chosen}


def write(path: Path, made_by: str, plain: Setting, choices: dict[str, Any]) -> None:
    """As a file that a run can be told of."""
    texts, lengths = ("old", "new"), ("steps", "batch", "pretrain", "sequences", "together")
    names = [*texts, *lengths, "width", "layers", "held_out"]
    about = {"made_by": made_by, **{name: getattr(plain, name) for name in names}}
    write_atomically(path, json.dumps({**about, **choices}, indent=1) + "\n")


def read(path: Path | None) -> dict[str, Any]:
    """The choices in a file; without one, nothing is chosen."""
    if path is None:
        return {"gain": USUAL_GAIN, "chosen": {}}
    try:
        choices: dict[str, Any] = json.loads(path.read_text())
        if not {"gain", "chosen"} <= choices.keys():
            raise ValueError("it lacks 'gain' or 'chosen'")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"--tuned: {str(path)!r} cannot be used ({error}); "
            "allowed: a file that finetune --tune wrote, or none"
        ) from None
    return choices


def trial_for(choices: dict[str, Any], method: str) -> Trial:
    """What was chosen for a method, else its default."""
    chosen = choices["chosen"]
    known = chosen.get(method) or chosen.get(METHODS[method].like)
    if known is not None:
        return float(known["lr"]), dict(known["options"])
    return METHODS[method].trials[0]
