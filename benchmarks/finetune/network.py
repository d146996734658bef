"""The small GPT over characters: how it is pretrained, kept on disk, measured and sampled from."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.data.characters import CONTEXT, VOCABULARY, next_loss, stretches, windows
from benchmarks.finetune.texts import Text

WIDTH, LAYERS, HEADS = 200, 2, 4
PRETRAIN_BATCH, PRETRAIN_LR = 16, 2e-3


class Block(nn.Module):
    """Pre-norm attention and feed-forward, of plain linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        batch, time, width = x.shape
        normed = self.norm1(x)
        query, key, value = (
            layer(normed).view(batch, time, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        fed: Tensor = self.down(functional.gelu(self.up(self.norm2(x))))
        return x + fed


class GPT(nn.Module):
    """Two blocks over ASCII characters; a million parameters by default."""

    def __init__(self, width: int = WIDTH, layers: int = LAYERS, heads: int = HEADS) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.place = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of the next character; (batch, time) -> (batch, time, VOCABULARY)."""
        x = self.token(text) + self.place.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def spread_windows(text: Tensor, count: int) -> Tensor:
    """`count` stretches of CONTEXT + 1, evenly spaced: the same in every run."""
    return stretches(text, torch.linspace(0, len(text) - CONTEXT - 1, count).long())


@torch.no_grad()
def held_out(model: nn.Module, sequences: Tensor) -> float:
    """The loss on sequences that are not trained on."""
    return next_loss(model, sequences).item()


@torch.no_grad()
def sample(model: nn.Module, prompts: Tensor, length: int, draw: torch.Generator) -> Tensor:
    """Continue each prompt to `length` characters, drawn from the model's own distribution."""
    text = prompts
    while text.shape[1] < length:
        chances = model(text[:, -CONTEXT:])[:, -1].softmax(-1)
        text = torch.cat([text, torch.multinomial(chances, 1, generator=draw)], 1)
    return text


def pretrained(text: Text, steps: int, seed: int, folder: Path, **shape: int) -> GPT:
    """A GPT trained on `text`; read from `folder` if it was made before, else made and kept."""
    sizes = "x".join(str(size) for size in shape.values()) or f"{WIDTH}x{LAYERS}"
    path = folder / f"{text.fingerprint()}-{sizes}-{steps}-seed{seed}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(**shape)
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAIN_LR, weight_decay=0.01)
    for step in range(steps):
        warm, falling = min(1.0, (step + 1) / 30), 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = PRETRAIN_LR * warm * falling
        optimizer.zero_grad()
        next_loss(model, windows(text.train, PRETRAIN_BATCH, draw)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    _save(model, path)
    return model


def _save(model: nn.Module, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    torch.save(model.state_dict(), temporary)
    os.replace(temporary, path)
