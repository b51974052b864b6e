"""A small GPT.

Shapes: b texts, t symbols of each, k width, h heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GPT"]


class _Block(nn.Module):
    """Attention to what came before, and a layer for each symbol; both added to what they look at."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, k = x.shape
        # In plain operations, so that clients can be stacked with `torch.func.vmap`.
        parts = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, k // self.heads)
        q, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (b, h, t, k / h) each
        later = torch.full((t, t), -math.inf, dtype=x.dtype, device=x.device).triu(1)
        heed = (q @ key.transpose(-1, -2) / math.sqrt(k // self.heads) + later).softmax(-1)  # (b, h, t, t)
        mixed = (heed @ value).transpose(1, 2).reshape(b, t, k)
        x = x + self.out(mixed)
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result


class GPT(nn.Module):
    """The symbol after each one of a text: embeddings, blocks of attention, a head that shares the embedding's table.

    Parameters: about 12 layers width² and (symbols + context) width. Width 64 with 4 layers makes 0.2 million of them,
    128 with 4 0.8, 256 with 4 3.2, 384 with 6 10.7.

    Args:
        symbols: of the alphabet.
        width: k, a multiple of `heads`.
        heads: h.
        layers: blocks.
        context: the longest text, in symbols.

    Source: Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.3.
    Differs: no dropout, which small clients do not need; the attention is written out.
    """

    def __init__(self, symbols: int, width: int = 64, heads: int = 4, layers: int = 4, context: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.place = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # What is added to the stream of every layer is made the smaller the more of them there are.
                is_added = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers) if is_added else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[1], device=text.device)
        x = self.embed(text.long()) + self.place(places)  # (b, t, k)
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.embed.weight)  # (b, t, symbols)
        return logits.transpose(1, 2)  # (b, symbols, t): as losses take classes
