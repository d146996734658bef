"""SmolLM2 fine-tuned through transformers' Trainer, with sal_optim by its flag `--optim saladamw`.

A run is a few dozen steps on a CPU. What was finished is on record: a command that was stopped goes
on with the next way.
"""

from __future__ import annotations

import copy
import json
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.errors import UserError
from benchmarks.finetune.methods.directions import strength_of
from benchmarks.finetune.smollm2 import (
    LENGTH,
    Measure,
    loaded,
    required,
    sequences,
    token_loss,
)
from benchmarks.records import write_atomically
from sal_optim.protection import Protection


@dataclass(frozen=True)
class Way:
    """How the model is fine-tuned."""

    name: str
    lr: float
    optim: str = "adamw_torch"
    optim_args: str = ""
    rank: int = 0  # of LoRA's adapters
    observes: str | None = None  # whose sequences: "old", "new" or "own"


ALONG = "granularity=kronecker,rank=64,protection=0.01,pull=2000.0"
LOOSE = "granularity=kronecker,rank=64,protection=0.01,pull=100.0"
WAYS = (
    Way("adamw", 2e-4),
    Way("adamw-fast", 5e-4),
    Way("sal-kronecker", 5e-4, "saladamw", ALONG, observes="old"),
    Way("sal-restore", 5e-4, "saladamw", LOOSE, observes="old"),
    Way("sal-restore-new", 5e-4, "saladamw", LOOSE, observes="new"),
    Way("sal-restore-own", 5e-4, "saladamw", LOOSE, observes="own"),
    Way("lora", 1e-3, rank=8),
)
# Shares of the change that are kept after the last step: AdamW's by averages with the pretrained
# weights (WiSE-FT), SAL's by its restore().
KEPT = (0.75, 0.5, 0.25)


def looks(steps: int) -> list[int]:
    """Steps after which losses are measured."""
    return sorted({max(1, round(steps * part)) for part in (0.25, 0.5, 1.0)})


def run(way: Way, args: Namespace, console: Console) -> dict[str, Any]:
    """Fine-tune in one way through the Trainer."""
    pristine, tokenizer = loaded()
    model = copy.deepcopy(pristine)
    measure = Measure(tokenizer, args.new, args.data_dir)
    start = [p.detach().clone() for p in model.parameters()]
    path = args.out / "smollm2" / f"pretrained-{args.new}.json"
    result = _recorded(path)
    if result is None:
        result = {"steps": [0], "losses": [measure.losses(model)]}
        result["knowledge"] = [measure.knowledge(model)]
        result["examples"] = [measure.examples(model)]
        write_atomically(path, json.dumps(result))
    console.print(f"{way.name} at 0: {result['losses'][0]} {result['knowledge'][0]}")
    if way.rank:
        required("peft")
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=way.rank, lora_alpha=2 * way.rank, target_modules="all-linear")
        model = get_peft_model(model, config)
    trained = sequences(tokenizer, args.new, args.data_dir, 0, args.batch * args.steps)

    def seen(step: int) -> None:
        result["steps"].append(step)
        result["losses"].append(measure.losses(model))
        console.print(f"{way.name} at {step}: {result['losses'][-1]}")

    trainer = _trainer(model, way, trained, args, seen)
    if way.observes is not None:
        result["seconds_observing"] = _observe(trainer, measure, way, args)
    trainer.train()
    result["knowledge"].append(measure.knowledge(model))
    result["examples"].append(measure.examples(model))
    result["seconds_step"] = trainer.seconds / args.steps
    state = trainer.optimizer.state.values()
    tensors = [value for one in state for value in one.values() if isinstance(value, Tensor)]
    result["bytes_per_parameter"] = sum(t.numel() * t.element_size() for t in tensors) / sum(
        p.numel() for p in start
    )
    if not way.rank:
        result["kept"] = _given_back(model, start, trainer.optimizer, measure)
        console.print(f"{way.name}, a part given back: {result['kept']}")
        moved = zip(model.parameters(), start, strict=True)
        result["distance"] = sum(float((a.detach() - b).square().sum()) for a, b in moved) ** 0.5
    return result


@torch.no_grad()
def _given_back(
    model: Any, start: list[Tensor], optimizer: Any, measure: Measure
) -> dict[str, dict[str, float]]:
    """Losses where only a share of the change is kept; the model is left as it was."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # out of accelerate's wrapper
    params = list(model.parameters())
    last, found = [p.detach().clone() for p in params], {}
    for share in KEPT:
        if isinstance(optimizer, Protection):
            optimizer.restore(strength_of(share))
        else:
            for param, first in zip(params, start, strict=True):
                param.lerp_(first, 1 - share)
        found[f"{share:g}"] = measure.losses(model)
        for param, value in zip(params, last, strict=True):
            param.copy_(value)
    return found


def _trainer(model: Any, way: Way, trained: Tensor, args: Namespace, seen: Any) -> Any:
    """transformers' Trainer, with the optimizer by its flag; `seen` is called after the looks."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    import sal_optim.integrations

    sal_optim.integrations.register()

    class Looking(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.process_time()

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            trainer.seconds += time.process_time() - self.begun
            if state.global_step in looks(args.steps):
                seen(state.global_step)

    settings = TrainingArguments(
        output_dir=str(args.out / "trainer"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        learning_rate=way.lr,
        warmup_steps=max(1, args.steps // 10),
        weight_decay=0.01,
        optim=way.optim,
        optim_args=way.optim_args or None,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
        use_cpu=not torch.cuda.is_available(),
    )
    examples = [{"input_ids": row, "labels": row} for row in trained]
    trainer = Trainer(model, settings, train_dataset=examples, callbacks=[Looking()])
    trainer.seconds = 0.0
    return trainer


def _observe(trainer: Any, measure: Measure, way: Way, args: Namespace) -> float:
    """Gather evidence before training; the Trainer then goes on with this optimizer."""
    begun = time.process_time()
    tokenizer = measure.tokenizer
    model, optimizer = trainer.model, trainer.create_optimizer()
    device = next(model.parameters()).device
    if way.observes == "own":
        blank = torch.full((args.sequences, 1), tokenizer.bos_token_id, device=device)
        with torch.no_grad():
            rows = model.generate(blank, max_new_tokens=LENGTH - 1, do_sample=True, top_k=0)
    elif way.observes == "new":
        rows = sequences(tokenizer, args.new, args.data_dir, 0, args.sequences)
    else:
        kept = [name for name in measure.texts if name != "new"]
        parts = [
            sequences(tokenizer, n, args.data_dir, 0, args.sequences // len(kept)) for n in kept
        ]
        rows = torch.cat(parts)
    with optimizer.observe():
        for row in rows:
            optimizer.zero_grad()
            token_loss(model, row[None].to(device)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    optimizer.zero_grad()
    optimizer.consolidate()
    return time.process_time() - begun


def main(args: Namespace, console: Console) -> int:
    """All ways that were asked for; each is on record once it is finished."""
    names = [way.name for way in WAYS]
    for name in args.methods or []:
        if name not in names:
            raise UserError(
                f"--methods: {name!r} is unknown to smollm2; allowed: {', '.join(names)}"
            )
    results = {}
    for way in WAYS:
        if args.methods and way.name not in args.methods:
            continue
        key = f"{way.name}-{args.new}-{args.steps}x{args.batch}-{args.sequences}-{way.lr:g}"
        path = args.out / "smollm2" / f"{key}-{way.optim_args or 'plain'}.json"
        results[way.name] = _recorded(path) or run(way, args, console)
        write_atomically(path, json.dumps(results[way.name]))
    console.print(table(results))
    return 0


def _recorded(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except (OSError, ValueError):
        return None


def table(results: dict[str, dict[str, Any]]) -> Table:
    """Losses at every look; what is known before and after, and what it costs."""
    made = Table("way", "step", title="SmolLM2-135M-Instruct", title_justify="left")
    texts = list(next(iter(results.values()))["losses"][0])
    for name in (*texts, "facts", "instructions", "distance", "bytes", "s a step"):
        made.add_column(name, justify="right")
    for way, result in results.items():
        looked = zip(result["steps"], result["losses"], strict=True)
        for place, (step, losses) in enumerate(looked):
            last = step == result["steps"][-1]
            cells = [f"{losses[text]:.3f}" for text in texts]
            if last or not place:
                cells += [f"{part:.0%}" for part in result["knowledge"][int(last)].values()]
            if last:
                cells += [
                    f"{result.get('distance', float('nan')):.2f}",
                    f"{result['bytes_per_parameter']:.1f}",
                    f"{result['seconds_step']:.1f}",
                ]
            made.add_row(way, str(step), *cells)
        for share, losses in result.get("kept", {}).items():
            made.add_row(way, f"{share} kept", *(f"{losses[text]:.3f}" for text in texts))
    return made
