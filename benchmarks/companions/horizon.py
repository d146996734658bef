"""Survival of generated sequences: is the length that a share of them survives ln target / ln p?

A small GPT learns sequences of brackets of two kinds that nest. A generated token is an error if it
closes what is not open, or opens beyond the depth; p is the share of right tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from joblib import Parallel, delayed
from torch import Tensor

from benchmarks.companions.page import Options, Outcome, interval, spread, table
from benchmarks.data.characters import CONTEXT, next_loss
from benchmarks.reports.drawing import panels_of
from benchmarks.reports.palette import CYCLE
from benchmarks.runs.gpt import GPT
from sal_optim.companions import horizon

PREDICTION = (
    "p^L assumes that errors are independent and equally likely at each place. They are neither: "
    "few places of a sequence are hard, and the hard ones come late, when depth has grown. With p "
    "from the first tokens, the horizon is too long by more than a third; with p over the whole "
    "length it is within a third of what is measured."
)
PARTS: tuple[str, ...] = ()
START, OPEN, CLOSE, DEPTH = 0, (1, 2), (3, 4), 6
STEPS, BATCH, SEQUENCES, FIRST = 150, 16, 100, 16
TARGETS = (0.9, 0.5)


def sequences(count: int, draw: torch.Generator) -> Tensor:
    """Right sequences of CONTEXT tokens after a start."""
    choice = torch.rand(count, CONTEXT, 2, generator=draw).tolist()
    rows = []
    for row in choice:
        stack: list[int] = []
        tokens = [START]
        for opens, kind in row:
            if not stack or (len(stack) < DEPTH and opens < 0.5):
                stack.append(int(kind < 0.5))
                tokens.append(OPEN[stack[-1]])
            else:
                tokens.append(CLOSE[stack.pop()])
        rows.append(tokens)
    return torch.tensor(rows)


def survived(tokens: list[int]) -> int:
    """How many tokens there are before the first error."""
    stack: list[int] = []
    for place, token in enumerate(tokens):
        if token in OPEN and len(stack) < DEPTH:
            stack.append(OPEN.index(token))
        elif not (token in CLOSE and stack and stack.pop() == CLOSE.index(token)):
            return place
    return len(tokens)


@torch.no_grad()
def generated(model: GPT, count: int, seed: int) -> list[list[int]]:
    """Sampled sequences of CONTEXT - 1 tokens."""
    draw = torch.Generator().manual_seed(seed)
    text = torch.zeros(count, CONTEXT, dtype=torch.long)
    for place in range(CONTEXT - 1):
        shares = model(text)[:, place].softmax(-1)
        text[:, place + 1] = torch.multinomial(shares, 1, generator=draw).squeeze(1)
    return text[:, 1:].tolist()


def one(seed: int, steps: int, count: int = SEQUENCES) -> dict[str, Any]:
    """Train, generate, and count survivors."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, draw = GPT(32), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = sequences(BATCH, draw)
        loss = next_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    lengths = torch.tensor([survived(tokens) for tokens in generated(model.eval(), count, seed)])
    length = CONTEXT - 1
    found: dict[str, Any] = {
        "curve": [float((lengths >= place).float().mean()) for place in range(length + 1)]
    }
    for name, end in (("first", min(FIRST, length)), ("all", length)):
        # Right tokens over tokens at risk, which end with the first error.
        errors = float((lengths < end).sum())
        right = float(lengths.clamp_max(end).sum())
        found[f"p, {name}"] = right / max(1.0, right + errors)
    for target in TARGETS:
        measured = next((i for i, s in enumerate(found["curve"]) if s < target), None)
        found[f"measured, {target}"] = measured
        for name in ("first", "all"):
            p = found[f"p, {name}"]
            found[f"{name}, {target}"] = horizon(p, target) if 0.0 < p < 1.0 else None
    return found


def run(options: Options) -> Outcome:
    steps = options.length(STEPS)
    runs = Parallel(n_jobs=options.jobs)(delayed(one)(s, steps) for s in range(options.seeds))
    rows = []
    for target in TARGETS:
        for name in ("first", "all"):
            both = [(r[f"{name}, {target}"], r[f"measured, {target}"]) for r in runs]
            known = [(told, seen) for told, seen in both if told is not None and seen is not None]
            cells = [f"{len(known)} of {len(runs)}"]
            if known:
                cells += [spread([seen for _, seen in known]), spread([told for told, _ in known])]
                cells.append(interval([told / max(1, seen) for told, seen in known], digits=2))
            rows.append([f"{target:g}, p of {name} tokens", *cells, *[""] * (4 - len(cells))])
    heads = ["target, p", "runs that fell below it", "measured", "horizon", "horizon / measured"]
    ps = [[r[f"p, {name}"] for r in runs] for name in ("first", "all")]
    text = (
        f"Brackets of two kinds, {steps} steps of {BATCH}, {SEQUENCES} generated sequences of "
        f"{CONTEXT - 1}, {options.seeds} seeds. p: first {FIRST} tokens {spread(ps[0], 1, 4)}, all "
        f"{spread(ps[1], 1, 4)}."
    )
    figure, axes = panels_of(1, width=5.0, height=3.2, title="Survival, and p^L")
    for run_, color in zip(runs[:4], CYCLE, strict=False):
        axes[0].plot(run_["curve"], color=color)
        axes[0].plot([run_["p, all"] ** i for i in range(CONTEXT)], "--", color=color)
    axes[0].set(xlabel="tokens", ylabel="share without an error")
    return Outcome(
        "Horizon: p^L", [f"{text}\n\n{table(heads, rows)}"], {"runs": runs}, {"survival": figure}
    )
