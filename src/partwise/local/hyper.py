"""A local learning rate that follows the alignment of gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from partwise.core.model import Params, Values
from partwise.core.plan import LocalOptimizer
from partwise.local.optimizers import SGD

__all__ = ["HyperStep"]


@dataclass(frozen=True, eq=False)
class HyperStep:
    """FedHyper-CL's step: that of another optimiser, its rate multiplied by b.

    b <- clip(b + rate (<g, g'> - share <g, direction>), 1/gamma, gamma) before every step. g is the gradient that the
    step takes, after all gradient terms, and g' that of the step before, which the first step has not; b begins at 1.

    Args:
        lr: learning rate where b is 1, > 0; in place of that of `inner`.
        inner: the rule of a step.
        direction: name -> the last aggregate (to be added, hence the minus), of the held shapes. A name left out counts
            as 0.
        share: of the product with the direction, >= 0: 1/K.
        gamma: bound of b, >= 1; 1 leaves the rate alone.
        rate: how fast b follows, >= 0.
        normalize: take cosines in place of inner products.

    Source: as `FedHyper`.
    """

    lr: float = 0.1
    inner: LocalOptimizer = field(default_factory=SGD)
    direction: Params = field(default_factory=dict, repr=False)
    share: float = 1.0
    gamma: float = 10.0
    rate: float = 1.0
    normalize: bool = False

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"HyperStep(lr={self.lr}): must be above 0, got {self.lr}. Use a small positive number.")
        if not 1 <= self.gamma < math.inf:
            raise ValueError(
                f"HyperStep(gamma={self.gamma}): must be finite and at least 1, got {self.gamma}. 10 is usual."
            )
        for name in ("share", "rate"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"HyperStep({name}={value}): must be finite and at least 0, got {value}. 1 is the method's."
                )

    def init(self, params: Params) -> Any:
        return 1.0, {}, self.inner.init(params)

    def step_(self, params: Values, grads: Values, state: Any) -> Any:
        factor, before, own = state
        change = self._product(grads, before) - self.share * self._product(grads, self.direction)
        if math.isfinite(change):  # else the values are lost anyway, and refused as such
            factor = min(max(factor + self.rate * change, 1 / self.gamma), self.gamma)
        kept = {name: g.clone() for name, g in grads.items()}  # `inner` may overwrite them
        rule = replace(self.inner, lr=self.lr * factor)  # type: ignore[type-var]
        return factor, kept, rule.step_(params, grads, own)

    def _product(self, grads: Values, others: Params) -> float:
        product = _dot({n: g for n, g in grads.items() if n in others}, others)
        if not self.normalize or not product:
            return product
        return product / math.sqrt(_dot(grads, grads) * _dot(others, others))


def _dot(ones: Params, others: Params) -> float:
    return sum(float(torch.dot(t.reshape(-1).double(), others[n].reshape(-1).double())) for n, t in ones.items())
