"""What Oort wants to know of a client, around any algorithm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from partwise.algorithms.ranking import FedRank
from partwise.core.algorithm import Algorithm, ClientState, Site, Task
from partwise.core.around import Around
from partwise.core.errors import CompositionError
from partwise.core.model import Values
from partwise.core.plan import Trained

__all__ = ["Utility"]


@dataclass(frozen=True)
class Utility(Around):
    """An algorithm whose clients also tell how useful they are: |B| sqrt(mean of loss(k)^2 over k in B).

    B are the client's examples, and the losses those of the model that the client uses, as it was before training. It
    costs one pass forward over them. The server learns the number as `utility`, and `Oort` chooses by it. Must be the
    outermost: what `LocalOnly` keeps is not seen from inside it.

    Args:
        inner: what is really done.
        batch_size: examples in one pass, >= 1; of no influence on the result but for rounding.

    Source: Lai et al., "Oort: efficient federated learning via guided participant selection", OSDI 2021,
        arXiv:2010.06081, section 4.2.
    Differs: the model is in evaluation mode, without dropout and with batch norm's running statistics. The paper
        takes the losses of training, at no cost, and so does the released code, as a moving average over batches.
    """

    inner: Algorithm
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(
                f"Utility(batch_size={self.batch_size}): must be at least 1, got {self.batch_size}. 256 is usual."
            )
        if self.inner.hides_holders:
            raise CompositionError(
                f"Utility({type(self.inner).__name__}): has clients tell the losses of their examples, got one "
                "that hides which rows these touch. Use a choice that asks for no utility, such as Uniform()."
            )
        inside: Any = self.inner
        while hasattr(inside, "inner"):  # an algorithm around another one
            inside = inside.inner
        if isinstance(inside, FedRank):
            raise CompositionError(
                "Utility(FedRank): takes the losses of the model that a client holds, got an algorithm whose clients "
                "hold scores of edges. Use a choice that asks for no utility, such as Uniform()."
            )

    @property
    def needs_all(self) -> bool:
        return True  # losses are those of the model that the client uses

    @property
    def reports(self) -> bool:
        return True

    def report(
        self, held: Mapping[str, Values], trained: Trained, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, float]:
        told = self.inner.report(held, trained, task, own, site)
        values = self.inner.personalize(held["model"], own)
        data = site.localized(
            self.inner.select(task, own, site)
        )  # select gives what it gave: task and own are the same
        positions, total = torch.arange(len(data)), 0.0
        with torch.no_grad():
            for at in positions.split(self.batch_size):
                try:
                    losses = site.model.losses(values, data.batch(at), training=False)
                except KeyError as missing:
                    raise CompositionError(
                        f"Utility({type(self.inner).__name__}): needs all of the model that the client uses, got "
                        f"values without {missing}. Put Utility outside of what keeps them: Utility(LocalOnly(...))."
                    ) from missing
                total += float(losses.double().square().sum())
        utility = math.sqrt(len(data) * total)
        return {**told, "utility": utility} if math.isfinite(utility) else told
