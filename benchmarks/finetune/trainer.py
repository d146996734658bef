"""SmolLM2 fine-tuned through transformers' Trainer, with sal_optim by its flag `--optim saladamw`.

The ways are those of the small network (`methods/`). A run takes minutes to hours on a CPU, so each
look leaves a checkpoint of the Trainer's: a command that was stopped goes on from there.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.data.errors import UserError
from benchmarks.finetune import report
from benchmarks.finetune.methods import METHODS, Method
from benchmarks.finetune.methods.base import copies
from benchmarks.finetune.methods.directions import strength_of
from benchmarks.finetune.methods.sal import SALW
from benchmarks.finetune.smollm2 import (
    LENGTH,
    Measure,
    loaded,
    new_and_old,
    required,
    sequences,
    token_loss,
)
from benchmarks.finetune.trainer_tables import KEPT, markdown, points, rows, table
from benchmarks.runs.records import package_sources, write_atomically
from benchmarks.runs.sources import hash_of, source_hash
from sal_optim import CommunicationLayer, SALAdamW, SALOptimizer


@dataclass(frozen=True)
class Way:
    """How the model is fine-tuned: a method of the small network's, and settings for this model."""

    method: str
    lr: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Of its row, and of its record."""
        said = [f"{name} {value:g}" for name, value in self.options.items()]
        return ", ".join([f"{self.method} {self.lr:g}", *said])


RATE = 3e-4
PULLED, RESTORED = ({"protection": 1.0, "pull": pull} for pull in (40.0, 10.0))
# SAL's options and EWC's strength are those of the small network, unseen here.
WAYS = (
    Way("adamw", 1e-4),
    Way("adamw", RATE),
    Way("sal-kronecker", RATE, PULLED),
    Way("sal-restore", RATE, RESTORED),
    Way("sal-restore-own", RATE, RESTORED),
    Way("sal-restore-new", RATE, RESTORED),
    Way("lora", 1e-3, {"rank": 8}),
    Way("ewc", RATE, {"strength": 1e5}),
    Way("l2-sp", RATE, {"strength": 0.3}),
    Way("spd", RATE, {"strength": 1.0}),
    Way("mofo", RATE, {"fraction": 0.15}),
    Way("half", RATE),
    Way("sal-adamw", RATE, {"protection": 1.0, "pull": 100.0}),
    Way("sal-lion", RATE / 10),
    Way("muon", RATE),
)
TOGETHER = 4  # observed sequences in a gradient
LOOKS = (0.05, 0.15, 0.3, 0.5, 0.75, 1.0)


def looks(steps: int) -> list[int]:
    """Steps after which losses are measured, and from which a stopped run goes on."""
    return sorted({max(1, round(steps * part)) for part in LOOKS})


class Run:
    """One way through the Trainer: what it has found so far, and how it goes on."""

    def __init__(self, way: Way, args: Namespace, console: Console) -> None:
        self.way, self.args, self.console = way, args, console
        self.pristine, self.tokenizer = loaded()
        texts = new_and_old(self.tokenizer, args.new, args.data_dir)
        self.measure = Measure(self.tokenizer, texts)
        self.folder = args.out / "trainer" / key(way, args)
        self.method: Method = METHODS[way.method].kind(
            copy.deepcopy(self.pristine), lr=way.lr, **way.options
        )
        self.trainer = self._trainer()

    def result(self) -> dict[str, Any]:
        """Train, from the last checkpoint if there is one, and measure."""
        from transformers.trainer_utils import get_last_checkpoint

        last = get_last_checkpoint(str(self.folder)) if self.folder.is_dir() else None
        found = recorded(Path(last) / "measured.json") if last is not None else None
        self.found = found if found is not None else self._before()
        # A checkpoint has all that an optimizer has gathered, and nothing of what others keep.
        goes_on = found is not None
        if self.method.observes and not (goes_on and isinstance(self.method, SALW)):
            begun = time.process_time()
            with self._precision():
                self.method.observe(self._observed(), token_loss)
            self.method.optimizer.zero_grad()
            self.found["seconds_observing"] = time.process_time() - begun
        self.trainer.train(resume_from_checkpoint=last if goes_on else None)
        self._after()
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.found

    def _before(self) -> dict[str, Any]:
        """Of the pretrained model; the same for all ways, so measured once."""
        path = self.args.out / "smollm2" / f"pretrained-{self.args.new}-{precision(self.args)}.json"
        found = recorded(path)
        if found is None:
            found = {"steps": [0], "seconds": 0.0, **self._known()}
            found["losses"] = [self._losses()]
            write_atomically(path, json.dumps(found))
        self.console.print(f"pretrained: {found['losses'][0]} {found['knowledge'][0]}")
        return found

    def _known(self) -> dict[str, list[Any]]:
        model = self.method.model
        return {
            "knowledge": [self.measure.knowledge(model)],
            "examples": [self.measure.examples(model)],
        }

    def _losses(self) -> dict[str, float]:
        with self._precision():
            return self.measure.losses(self.method.model)

    def _precision(self) -> AbstractContextManager[Any]:
        device = next(self.method.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.args.bf16)

    def _after(self) -> None:
        """What is left of the run when the last step is done."""
        found, method = self.found, self.method
        for name, value in self._known().items():
            found[name] += value
        start = copies(list(self.pristine.parameters()))
        found["seconds_step"] = found["seconds"] / self.args.steps
        found["bytes_per_parameter"] = method.bytes_kept() / sum(p.numel() for p in start)
        moved = [w.cpu() for w in method.weights()]
        gone = sum(float((a - b).square().sum()) for a, b in zip(moved, start, strict=True))
        found["distance"] = gone**0.5
        if len(list(method.model.parameters())) == len(start):
            found["kept"] = self._given_back(start)
            self.console.print(f"{self.way.label}, a part given back: {found['kept']}")

    @torch.no_grad()
    def _given_back(self, start: Sequence[Tensor]) -> dict[str, list[dict[str, float]]]:
        """Losses where only a share of the change is kept, by each way to give the rest back."""
        method, params = self.method, list(self.method.model.parameters())
        last = copies(params)
        first = [value.to(last[0].device) for value in start]
        found: dict[str, list[dict[str, float]]] = {}
        ways: dict[str, Callable[[float], None]] = {
            "average": lambda share: Method.give_back(method, first, share)
        }
        protection = method.optimizer
        if isinstance(protection, (SALOptimizer, CommunicationLayer)):
            ways["restore"] = lambda share: protection.restore(strength_of(share))
        for name, give_back in ways.items():
            found[name] = []
            for share in KEPT:
                give_back(share)
                found[name].append(self._losses())
                for param, value in zip(params, last, strict=True):
                    param.copy_(value)
        return found

    def _observed(self) -> Sequence[Tensor]:
        """The sequences that the method asked for, in batches."""
        args, model = self.args, self.method.model
        device = next(model.parameters()).device
        if self.method.observes == "own":
            torch.manual_seed(0)
            blank = torch.full((args.sequences, 1), self.tokenizer.bos_token_id, device=device)
            made: Any = model
            asked = {"max_new_tokens": LENGTH - 1, "do_sample": True, "top_k": 0}
            with torch.no_grad():
                written = [made.generate(some, **asked) for some in torch.split(blank, 32)]
            return torch.split(torch.cat(written), TOGETHER)
        names = [name for name in self.measure.texts if name != "new"]
        if self.method.observes == "new":
            names = [args.new]
        each = max(1, args.sequences // len(names))
        parts = [sequences(self.tokenizer, name, args.data_dir, 0, each) for name in names]
        return torch.split(torch.cat(parts).to(device), TOGETHER)

    def _trainer(self) -> Any:
        """transformers' Trainer; SALAdamW comes by its flag, any other optimizer as it is."""
        from transformers import Trainer, TrainerCallback, TrainingArguments

        import sal_optim.integrations

        sal_optim.integrations.register()
        run, method, args = self, self.method, self.args
        ours = isinstance(method.optimizer, SALAdamW)

        class Looking(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.begun = time.process_time()

            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                method.before_step()

            def on_optimizer_step(self, *_: Any, **__: Any) -> None:
                method.after_step()

            def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
                run.found["seconds"] += time.process_time() - self.begun
                if state.global_step in looks(args.steps):
                    run.found["steps"].append(state.global_step)
                    run.found["losses"].append(run._losses())
                    where = f"{run.way.label} at {state.global_step}"
                    run.console.print(f"{where}: {run.found['losses'][-1]}")
                    control.should_save = state.global_step < args.steps

            def on_save(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
                path = run.folder / f"checkpoint-{state.global_step}" / "measured.json"
                write_atomically(path, json.dumps(run.found))

        settings = TrainingArguments(
            output_dir=str(self.folder),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            learning_rate=self.way.lr,
            warmup_steps=max(1, args.steps // 10),
            weight_decay=0.01,
            optim="saladamw" if ours else "adamw_torch",
            optim_args=_as_text(method.settings) if ours and isinstance(method, SALW) else None,
            max_grad_norm=0.0,
            bf16=args.bf16,
            save_strategy="no",
            save_total_limit=1,
            report_to=[],
            disable_tqdm=True,
            seed=0,
            use_cpu=not torch.cuda.is_available(),
        )
        rows = sequences(self.tokenizer, args.new, args.data_dir, 0, args.batch * args.steps)
        trainer = Trainer(
            method.model,
            settings,
            train_dataset=[{"input_ids": row, "labels": row} for row in rows],
            callbacks=[Looking()],
            optimizers=(None if ours else method.optimizer, None),
        )
        if ours:
            method.optimizer = trainer.create_optimizer()
        return trainer


def _as_text(settings: dict[str, Any]) -> str:
    """Options as the flag `--optim_args` takes them."""
    written = {name: str(value).removeprefix("torch.") for name, value in settings.items()}
    return ",".join(f"{name}={value}" for name, value in written.items())


def precision(args: Namespace) -> str:
    return "bf16" if args.bf16 else "fp32"


def code_of(is_sal: bool) -> str:
    """Of the package's sources, which decide what its optimizers come to; of others nothing."""
    return f"-{hash_of([source_hash(path) for path in package_sources()])[:8]}" if is_sal else ""


def key(way: Way, args: Namespace) -> str:
    """By which a run is found again."""
    label = way.label.replace(", ", "-").replace(" ", "_") + code_of(METHODS[way.method].is_sal)
    size = f"{args.steps}x{args.batch}-{args.sequences}-{precision(args)}"
    return f"{label}-{args.new}-{size}"


def main(args: Namespace, console: Console) -> int:
    """All ways that were asked for; each is on record once it is finished."""
    names = {way.method: None for way in WAYS}
    for name in args.methods or []:
        if name not in names:
            raise UserError(
                f"--methods: {name!r} is unknown to smollm2; allowed: {', '.join(names)}"
            )
    if args.methods and "lora" in args.methods:
        required("peft")
    results: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        if args.methods and way.method not in args.methods:
            continue
        path = args.out / "smollm2" / f"{key(way, args)}.json"
        found = recorded(path)
        if found is None:
            found = Run(way, args, console).result()
            write_atomically(path, json.dumps(found))
        results[way.label] = found
    made = rows(results)
    console.print(table(made))
    stem = args.out / f"smollm2-{args.new}"
    write_atomically(stem.with_suffix(".md"), markdown(made, results))
    if not args.no_figures:
        curves = {name: [{"points": points(found)}] for name, found in results.items()}
        report.draw("SmolLM2-135M-Instruct", curves, {}, stem.with_suffix(".png"))
    console.print(f"written: {stem}.md")
    return 0


def recorded(path: Path) -> dict[str, Any] | None:
    """What a run has found; None where there is nothing that can be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except (OSError, ValueError):
        return None
