"""A server learning rate that follows the alignment of successive aggregates."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from partwise.core.model import Params
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Update, inner, norm

__all__ = ["HyperRate"]


@dataclass(frozen=True)
class HyperRate:
    """FedHyper-G: alpha <- clip(alpha + rate <D, D'>, 1/gamma, gamma); w <- w + alpha D.

    D is the aggregate and D' that of the commit before, as they come into this transform; alpha begins at 1. Aggregates
    that point the same way raise alpha, opposite ones lower it. Of submodels, the product runs over the coordinates
    that both touch.

    Args:
        gamma: bound of alpha, >= 1; 1 changes nothing.
        rate: how fast alpha follows, >= 0. The product grows with the number of parameters and with the square of the
            updates' size, so that with 1 a large model reaches a bound at once.
        normalize: take the cosine of D and D' in place of the product, which does not depend on their size.

    Source: Wang et al., "FedHyper: a universal and robust learning rate scheduler for federated learning with
        hypergradient descent", ICLR 2024, arXiv:2310.03156 (FedHyper-G).
    Differs: the paper subtracts start minus end, we add end minus start; the product is the same. `rate` and
        `normalize` are ours. Running means and variances are averaged as they come. The released code clips alpha to
        [0.2, 5].

    Example:
        >>> import torch
        >>> from partwise.core.index import Whole
        >>> part, update = HyperRate(), Update(Whole({"w": (1,)}), {"w": torch.tensor([0.5])})
        >>> state = part.init({})
        >>> for _ in range(2):
        ...     step, state = part.apply(update, state, torch.Generator())
        >>> step.values()["w"]
        tensor([0.6250])
    """

    gamma: float = 3.0
    rate: float = 1.0
    normalize: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.gamma < math.inf:
            raise ValueError(
                f"HyperRate(gamma={self.gamma}): must be finite and at least 1, got {self.gamma}. 3 is usual."
            )
        if not 0 <= self.rate < math.inf:
            raise ValueError(
                f"HyperRate(rate={self.rate}): must be finite and at least 0, got {self.rate}. 1 is usual."
            )

    def init(self, params: Params) -> State:
        return self.begin(params, ())

    def begin(self, params: Params, still: Collection[str]) -> State:
        """The first state of one that passes on what is said of running means and variances."""
        return 1.0, None, sorted(still)

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        alpha, before, still = state
        values = update.values()
        own = {n: torch.zeros_like(v) if n in still else v.clone() for n, v in values.items()}
        moved = replace(update, value=own, weight=1.0)
        if before is not None:
            alpha = min(max(alpha + self.rate * self._alignment(moved, before), 1 / self.gamma), self.gamma)
        if alpha != 1:
            update = replace(update, value={n: v if n in still else v * alpha for n, v in values.items()})
        return update, (alpha, moved, still)

    def _alignment(self, update: Update, before: Update) -> float:
        product = inner(update, before)
        if not self.normalize:
            return product
        lengths = norm(update) * norm(before)
        return product / lengths if lengths else 0.0
