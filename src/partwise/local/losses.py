"""Losses around a model's own: rescaled layers, nested prefixes of every layer, and chosen edges of fixed weights.

Shapes: b examples in a batch. A parameter has n edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from partwise.core.model import Model, Params
from partwise.core.plan import LossFn
from partwise.core.population import Batch
from partwise.core.rng import Rng

__all__ = ["EdgePopup", "Nested", "Rescaled", "leading", "top_edges"]


@dataclass(frozen=True, eq=False)
class Rescaled:
    """The loss under some parameters multiplied by a constant, in training only.

    Multiplying weight and bias of a linear map multiplies its output; multiplying the weight alone multiplies its
    input. So scalers and inverted dropout need no hook in the module.

    Args:
        loss: what is evaluated.
        factors: name -> factor. A name left out keeps its value.
    """

    loss: LossFn
    factors: Mapping[str, float] = field(repr=False)

    def __call__(self, params: Params, batch: Batch, rng: Rng) -> Tensor:
        scaled = {n: p * self.factors[n] if n in self.factors else p for n, p in params.items()}
        return self.loss(scaled, batch, rng)


@dataclass(frozen=True, eq=False)
class Nested:
    """The loss of a prefix of every layer, drawn anew for each batch.

    Args:
        model: whose loss.
        prefixes: one candidate per width, narrow to wide: name -> how many leading entries of each axis. A name left
            out is whole. The last one is what the client holds.
        distill: the loss of all that is held, plus the cross-entropy of the drawn prefix against the softmax of the
            held model's logits, which is not differentiated.
    """

    model: Model = field(repr=False)
    prefixes: Sequence[Mapping[str, tuple[int, ...]]] = field(repr=False)
    distill: bool = False

    def __call__(self, params: Params, batch: Batch, rng: Rng) -> Tensor:
        drawn = int(torch.randint(len(self.prefixes), (), generator=rng))
        narrow = leading(params, self.prefixes[drawn])
        if not self.distill:
            return self.model.losses_of_each(narrow, batch).mean()
        held, once = leading(params, self.prefixes[-1]), self.model.spared(batch)
        wide = self.model.outputs(held, once, training=True)  # (b, classes, ...)
        if wide.dim() < 2:
            raise ValueError(
                f"Nested(distill=True): the model must give one logit per class, got outputs of shape "
                f"{tuple(wide.shape)}. Give the model two outputs, or turn distillation off."
            )
        taught = self.model.outputs(narrow, batch, training=True)
        return self.model.loss(wide, batch).mean() + F.cross_entropy(taught, wide.detach().softmax(1))


def leading(params: Params, lengths: Mapping[str, tuple[int, ...]]) -> Params:
    """The leading entries of each axis; a name left out is whole.

    Views, so that buffers that move in `forward` move in the held values too.
    """
    return {n: p[tuple(slice(k) for k in lengths[n])] if n in lengths else p for n, p in params.items()}


def top_edges(scores: Tensor, keep: float, *, abs_scores: bool = False) -> Tensor:
    """Which round(keep n) edges have the largest scores, and one at least: bool, of the scores' shape.

    Of edges with equal scores those with the higher numbers are taken, as in a stable order from the lowest.

    Args:
        scores: one per edge.
        keep: share of the edges, in (0, 1].
        abs_scores: go by the size of a score, not by its sign.

    Example:
        >>> top_edges(torch.tensor([-0.9, -0.5, 0.4, 0.1]), 0.5).tolist()
        [False, False, True, True]
        >>> top_edges(torch.tensor([-0.9, -0.5, 0.4, 0.1]), 0.5, abs_scores=True).tolist()
        [True, True, False, False]
    """
    size = (scores.abs() if abs_scores else scores).reshape(-1)
    left_out = len(size) - max(1, round(keep * len(size)))
    if not left_out:
        return torch.ones_like(scores, dtype=torch.bool)
    cut = size.kthvalue(left_out).values  # a tenth of what sorting a million costs
    tied = size == cut
    below = left_out - (size < cut).sum()
    return ((size > cut) | (tied & (tied.cumsum(0) > below))).reshape(scores.shape)


@dataclass(frozen=True, eq=False)
class EdgePopup:
    """The loss of a network of fixed weights, of which only the edges with the largest scores are there.

    What is trained are the scores. The gradient of an edge's score is that of its effective weight times its fixed one,
    whether the edge is there or not: the mask is passed straight through.

    Args:
        loss: what is evaluated.
        weights: name -> fixed weights; the parameters of these names are scores.
        fixed: name -> every other parameter of the model.
        keep: share of the edges of each parameter that are there.
        abs_scores: go by the sizes of scores.

    Source: Ramanujan et al., "What's hidden in a randomly weighted neural network?", CVPR 2020, arXiv:1911.13299.
    """

    loss: LossFn
    weights: Params = field(repr=False)
    fixed: Params = field(repr=False)
    keep: float = 0.5
    abs_scores: bool = False

    def __call__(self, params: Params, batch: Batch, rng: Rng) -> Tensor:
        network = dict(self.fixed)
        for name, weight in self.weights.items():
            scores = params[name]
            mask = top_edges(scores.detach(), self.keep, abs_scores=self.abs_scores).to(scores)
            network[name] = weight * (mask + (scores - scores.detach())).to(weight)  # in this order 0 and 1 are exact
        return self.loss(network, batch, rng)
