"""The small models that the built-in workloads train.

Shapes: b examples, t history length, k embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["AttentionRecommender"]


class AttentionRecommender(nn.Module):
    """Attention over a history of items, then one logit for a candidate, in the manner of DIN.

    a_j = MLP(h_j, c, h_j * c);  u = sum_j softmax(a)_j h_j;  logit = MLP(u, c, u * c).

    Args:
        num_items: rows of the table.
        dim: k, embedding width.
        hidden: units of both hidden layers.
        scale: standard deviation of the table's first values. Much smaller, and attention stays even for the
            first fifty rounds, for its gradient is a product of two rows; the default is tuned on StdlibCode.

    Source: Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv 1706.06978,
    equation 3.
    Differs: softmax weights; ReLU for Dice; no batch statistics, which small clients cannot estimate.
    """

    def __init__(self, num_items: int, dim: int = 16, hidden: int = 8, scale: float = 0.35) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items, dim)
        self.attend = nn.Sequential(nn.Linear(3 * dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.score = nn.Sequential(nn.Linear(3 * dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        nn.init.normal_(self.items.weight, std=scale)

    def forward(self, history: Tensor, candidate: Tensor) -> Tensor:
        past = self.items(history)  # (b, t, k)
        next_ = self.items(candidate)  # (b, k)
        beside = next_.unsqueeze(1).expand_as(past)  # (b, t, k)
        heed = self.attend(torch.cat([past, beside, past * beside], 2)).softmax(1)  # (b, t, 1)
        user = (heed * past).sum(1)  # (b, k)
        logit: Tensor = self.score(torch.cat([user, next_, user * next_], 1)).squeeze(1)  # (b,)
        return logit
