"""SmolLM2 fine-tuned on several texts in turn: for each a new Trainer of transformers.

This is how people fine-tune: each run begins with the weights of the one before, at the Trainer's
own defaults (AdamW's settings, clipping, a learning rate that falls to 0). SALAdamW observes text
that the pretrained model knows before the first run, and hands importance on by a file. EWC
observes the same text, and as many sequences of each text that it has learned. The result of each
text is kept; a command that was stopped goes on after the last that is done.
"""

from __future__ import annotations

import copy
import json
import shutil
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.data.errors import require_choice
from benchmarks.finetune.methods import METHODS, Method
from benchmarks.finetune.methods.base import copies
from benchmarks.finetune.methods.peers import EWC
from benchmarks.finetune.smollm2 import Measure, held_out, loaded, sequences, token_loss
from benchmarks.finetune.trainer import code_of, precision, recorded
from benchmarks.runs.records import write_atomically
from sal_optim import SALAdamW

Results = dict[tuple[str, int], list[dict[str, float]]]  # by label and seed
LENGTH = 64  # tokens of a row; the Trainer has 8 rows in a batch


@dataclass(frozen=True)
class Way:
    """A method of the small network's, or SALAdamW as it comes, and a learning rate."""

    name: str
    lr: float
    strength: float | None = None  # of a penalty
    share: float = 1.0  # of each text's change that is kept

    @property
    def label(self) -> str:
        """Of its row, and of its record."""
        said = f", strength {self.strength:g}" if self.strength is not None else ""
        return f"{self.name} {self.lr:g}{said}"

    @property
    def sal(self) -> bool:
        return self.name == "sal-adamw"

    def method(self, model: Any) -> Method:
        options = {} if self.strength is None else {"strength": self.strength}
        return METHODS["adamw" if self.sal else self.name].kind(model, lr=self.lr, **options)


WAYS = (
    Way("adamw", 3e-4),
    Way("sal-adamw", 3e-4),
    Way("adamw", 5e-5),
    Way("wise-ft", 3e-4, share=0.5),
    Way("fapm", 3e-4, share=0.1),
    Way("ewc", 3e-4, strength=1e5),
    Way("l2-sp", 3e-4, strength=0.3),
    Way("sal-adamw", 5e-5),
)


def main(args: Namespace, console: Console) -> int:
    """All ways that were asked for, each on record as far as it has come."""
    for name in args.methods or []:
        require_choice("--methods", name, {way.name: way for way in WAYS})
    tokenizer = loaded()[1]
    names = [*args.domains, args.old]
    texts = {name: held_out(tokenizer, name, args.data_dir) for name in names}
    measure = Measure(tokenizer, texts)
    results: Results = {}
    for seed in range(args.seeds):
        for way in WAYS:
            if not args.methods or way.name in args.methods:
                results[way.label, seed] = _run(way, seed, args, measure, console)
    made = markdown(results, args)
    write_atomically(args.out / f"sequence-{'-'.join(args.domains)}.md", made)
    console.print(_table(results, args))
    return 0


def _run(
    way: Way, seed: int, args: Namespace, measure: Measure, console: Console
) -> list[dict[str, float]]:
    """Losses in nats a token, and parts of questions known: before, and after each text."""
    pristine, _ = loaded()
    size = f"{args.steps}x{args.batch}-{precision(args)}-{seed}"
    texts = "-".join([args.old, *args.domains])
    stem = f"{way.label.replace(' ', '_')}{code_of(way.sal)}-{texts}-{size}"
    path, folder = args.out / "sequence" / f"{stem}.json", args.out / "sequence" / stem
    before = args.out / "sequence" / f"before-{texts}-{precision(args)}.json"
    found: Any = recorded(path) or recorded(before)
    if found is None:
        found = [_measured(pristine, measure, args)]
        write_atomically(before, json.dumps(found))
    for place in range(len(found) - 1, len(args.domains)):
        model = copy.deepcopy(pristine)
        if place:
            model.load_state_dict(torch.load(folder / f"{place - 1}.pt", weights_only=True))
        start = copies(list(model.parameters()))
        method = way.method(model)
        _trained(way, method, folder, place, seed, args)
        if way.share < 1.0:
            method.give_back(start, way.share)
        torch.save(model.state_dict(), folder / f"{place}.pt")
        found.append(_measured(model, measure, args))
        write_atomically(path, json.dumps(found))
        console.print(f"{way.label}, seed {seed}, after {args.domains[place]}: {found[-1]}")
    shutil.rmtree(folder, ignore_errors=True)
    return list(found)


def _trained(
    way: Way, method: Method, folder: Path, place: int, seed: int, args: Namespace
) -> None:
    """One text through a Trainer: everything that is not named here is as it comes."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from sal_optim.integrations.transformers import SALCallback

    tokenizer, text = loaded()[1], args.domains[place]
    settings = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        learning_rate=way.lr,
        bf16=args.bf16,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
    )
    options: dict[str, Any] = {}
    folder.mkdir(parents=True, exist_ok=True)
    count = 16 * args.batch  # rows of 128, of which two of 64 are made
    if way.sal:
        handed: dict[str, Any] = {"importance_to": folder / f"{place}.safetensors"}
        if place:
            handed["importance_from"] = folder / f"{place - 1}.safetensors"
        else:
            handed["observe"] = _rows(sequences(tokenizer, args.old, args.data_dir, 0, count))
        options["callbacks"] = [SALCallback(**handed)]
        options["optimizer_cls_and_kwargs"] = (SALAdamW, {"lr": way.lr})
    elif way.strength is not None:

        class Penalty(TrainerCallback):  # type: ignore[misc]
            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                method.before_step()

        options["callbacks"] = [Penalty()]
        options["optimizers"] = (method.optimizer, None)
    if isinstance(method, EWC):
        known = args.domains[place - 1] if place else args.old
        if place:  # what is observed is added
            method.fisher = torch.load(folder / f"fisher-{place - 1}.pt", weights_only=True)
        seen = sequences(tokenizer, known, args.data_dir, 0, count).view(-1, LENGTH)
        method.observe([seen], token_loss)
        torch.save(method.fisher, folder / f"fisher-{place}.pt")
    rows = _rows(sequences(tokenizer, text, args.data_dir, 0, args.batch * args.steps // 2))
    Trainer(method.model, settings, train_dataset=rows, **options).train()


def _rows(tokens: Tensor) -> list[dict[str, Tensor]]:
    parts = tokens.view(-1, LENGTH)
    return [{"input_ids": row, "labels": row} for row in parts]


def _measured(model: Any, measure: Measure, args: Namespace) -> dict[str, float]:
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=args.bf16):
        losses = measure.losses(model)
    return {**losses, **measure.knowledge(model)}


def rows(results: Results) -> list[tuple[str, list[str]]]:
    """A way's name and, of each measure, its mean over seeds at the end; the first is before."""
    every = [("before", [run[0] for run in results.values()])]
    for label in dict.fromkeys(label for label, _ in results):
        every.append((label, [run[-1] for (name, _), run in results.items() if name == label]))
    return [
        (label, [f"{sum(run[key] for run in runs) / len(runs):.2f}" for key in runs[0]])
        for label, runs in every
    ]


def _columns(results: Results) -> list[str]:
    return list(next(iter(results.values()))[0])


def markdown(results: Results, args: Namespace) -> str:
    """The table, and what every run had after each text."""
    columns = _columns(results)
    lines = [f"| way | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]
    lines += [f"| {label} | {' | '.join(cells)} |" for label, cells in rows(results)]
    lines.append("")
    for (label, seed), run in results.items():
        for text, after in zip(args.domains, run[1:], strict=True):
            said = ", ".join(f"{key} {value:.3f}" for key, value in after.items())
            lines.append(f"- {label}, seed {seed}, after {text}: {said}")
    return "\n".join(lines) + "\n"


def _table(results: Results, args: Namespace) -> Table:
    made = Table("way", *_columns(results), title=f"{', '.join(args.domains)}: {args.steps} steps")
    for label, cells in rows(results):
        made.add_row(label, *cells)
    return made
