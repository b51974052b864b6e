"""The small models that the built-in workloads train.

Shapes: b examples, t history length, k embedding width, h hidden units.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["AttentionRecommender", "ImageCNN", "ImageMLP", "NextSymbol", "SparseLinear"]

Widths = dict[str, tuple["str | None", ...]]


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


class ImageCNN(nn.Sequential):
    """Two convolutions 5 x 5, each halved by max-pooling, a dense layer and a head.

    Args:
        channels: of the image.
        side: height and width of the image, a multiple of 4.
        conv1: channels after the first convolution.
        conv2: channels after the second.
        dense: units.
        classes: logits.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS
    2017, arXiv 1602.05629, section 3: (1, 28, 32, 64, 512) has its 1,663,370 parameters.
    """

    def __init__(
        self, channels: int = 1, side: int = 28, conv1: int = 16, conv2: int = 32, dense: int = 128, classes: int = 10
    ) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(channels, conv1, 5, padding=2),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(conv1, conv2, 5, padding=2),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flat=nn.Flatten(1),  # whatever the number of channels: widths come from the weights
                dense=nn.Linear(conv2 * (side // 4) ** 2, dense),
                relu3=nn.ReLU(),
                head=nn.Linear(dense, classes),
            )
        )

    @staticmethod
    def widths(side: int = 28) -> Widths:
        """`Model.widths` of this network."""
        return {
            "conv1.weight": ("conv1", None, None, None),
            "conv1.bias": ("conv1",),
            "conv2.weight": ("conv2", "conv1", None, None),
            "conv2.bias": ("conv2",),
            "dense.weight": ("dense", f"conv2*{(side // 4) ** 2}"),
            "dense.bias": ("dense",),
            "head.weight": (None, "dense"),
            "head.bias": (None,),
        }


class ImageMLP(nn.Sequential):
    """Two dense layers and a head on the pixels.

    Args:
        pixels: channels * height * width.
        hidden: units of both layers. 200 on MNIST: McMahan's "2NN", 199,210 parameters.
        classes: logits.
    """

    def __init__(self, pixels: int = 784, hidden: int = 200, classes: int = 10) -> None:
        super().__init__(
            OrderedDict(
                flat=nn.Flatten(1),
                dense1=nn.Linear(pixels, hidden),
                relu1=nn.ReLU(),
                dense2=nn.Linear(hidden, hidden),
                relu2=nn.ReLU(),
                head=nn.Linear(hidden, classes),
            )
        )

    @staticmethod
    def widths() -> Widths:
        """`Model.widths` of this network."""
        return {
            "dense1.weight": ("dense1", None),
            "dense1.bias": ("dense1",),
            "dense2.weight": ("dense2", "dense1"),
            "dense2.bias": ("dense2",),
            "head.weight": (None, "dense2"),
            "head.bias": (None,),
        }


class _LSTM(nn.Module):
    """One LSTM layer in plain operations, so that clients can be stacked with `torch.func.vmap`."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(inputs, 4 * hidden)
        self.recur = nn.Linear(hidden, 4 * hidden, bias=False)
        bound = hidden**-0.5  # torch.nn.LSTM's initialisation
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)
        with torch.no_grad():
            self.inputs.bias[hidden : 2 * hidden] += 1.0  # forget gates begin open

    def forward(self, x: Tensor) -> Tensor:
        pushes = self.inputs(x)  # (b, t, 4h)
        hidden = pushes.new_zeros(len(x), self.recur.in_features)
        cell = hidden
        states = []
        for push in pushes.unbind(1):
            keep_in, forget, new, out = (push + self.recur(hidden)).chunk(4, 1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(keep_in) * torch.tanh(new)
            hidden = torch.sigmoid(out) * torch.tanh(cell)
            states.append(hidden)
        return torch.stack(states, 1)  # (b, t, h)


class NextSymbol(nn.Module):
    """The symbol after a window of text: embedding, LSTM layers, a head at the last position.

    Args:
        symbols: characters or words.
        embedding: k.
        hidden: h.
        layers: LSTM layers.

    Source: McMahan et al., AISTATS 2017, arXiv 1602.05629, section 3 (embedding 8, two layers of 256).
    Differs: one layer of 128 unless said otherwise; the loss is taken at the last position only, as in LEAF.
    """

    def __init__(self, symbols: int, embedding: int = 8, hidden: int = 128, layers: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, embedding)
        sizes = [embedding, *[hidden] * layers]
        self.layers = nn.Sequential(*(_LSTM(a, b) for a, b in pairwise(sizes)))
        self.head = nn.Linear(hidden, symbols)

    def forward(self, history: Tensor) -> Tensor:
        states = self.layers(self.embed(history.long()))  # (b, t, h)
        logits: Tensor = self.head(states[:, -1])  # (b, symbols)
        return logits


class SparseLinear(nn.Module):
    """The sum of the weights of the active features: linear regression whose weights can be held by rows.

    Args:
        num_features: rows of the table `weights.weight` (num_features, 1). All begin at 0.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weights = nn.Embedding(num_features, 1)
        nn.init.zeros_(self.weights.weight)

    def forward(self, features: Tensor) -> Tensor:
        logit: Tensor = self.weights(features).sum((1, 2))  # (b, active, 1) -> (b,)
        return logit
