"""A small language model over characters, which several experiments train."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.data.characters import CONTEXT, VOCABULARY


class GPT(nn.Module):
    """Two pre-norm blocks over ASCII characters; 116 thousand parameters."""

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.place = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, text: Tensor) -> Tensor:
        """Logits of the next character; (batch, CONTEXT) -> (batch, CONTEXT, VOCABULARY)."""
        x = self.token(text) + self.place.weight
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        logits: Tensor = self.head(self.norm(x))
        return logits
