"""Text as characters: windows drawn from it, and the loss of the next one.

Shared by all experiments with small language models. A text is a vector of codes below VOCABULARY.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

CONTEXT, VOCABULARY = 64, 128


def windows(text: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """`count` stretches of CONTEXT + 1 characters, drawn with replacement; a new tensor."""
    return stretches(text, torch.randint(len(text) - CONTEXT - 1, (count,), generator=draw))


def stretches(text: Tensor, start: Tensor) -> Tensor:
    """Stretches of CONTEXT + 1 characters from each start; a new tensor."""
    return text[start[:, None] + torch.arange(CONTEXT + 1)]


def next_loss(model: nn.Module, sequences: Tensor) -> Tensor:
    """Mean cross-entropy of the next character, in nats; sequences of (batch, time + 1)."""
    logits = model(sequences[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())


def corpus(size: int = 2_000_000) -> Tensor:
    """The first characters of Python's standard library, as codes below VOCABULARY."""
    text, found = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        codes = [code for code in path.read_bytes() if code < VOCABULARY]
        text += codes
        found += len(codes)
        if found >= size:
            break
    return torch.tensor(text[:size])
