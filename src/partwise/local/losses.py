"""Losses around a model's own: rescaled layers, and nested prefixes of every layer.

Shapes: b examples in a batch.
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

__all__ = ["Nested", "Rescaled"]


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
        narrow = _prefix(params, self.prefixes[drawn])
        if not self.distill:
            return self.model.losses(narrow, batch).mean()
        wide = self.model.outputs(_prefix(params, self.prefixes[-1]), batch, training=True)  # (b, classes, ...)
        if wide.dim() < 2:
            raise ValueError(
                f"Nested(distill=True): the model must give one logit per class, got outputs of shape "
                f"{tuple(wide.shape)}. Give the model two outputs, or turn distillation off."
            )
        taught = self.model.outputs(narrow, batch, training=True)
        return self.model.loss(wide, batch).mean() + F.cross_entropy(taught, wide.detach().softmax(1))


def _prefix(params: Params, lengths: Mapping[str, tuple[int, ...]]) -> Params:
    """Views, so that buffers that move in `forward` move in the held values too."""
    return {n: p[tuple(slice(k) for k in lengths[n])] if n in lengths else p for n, p in params.items()}
