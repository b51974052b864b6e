"""Changes to the local gradient; each holds the tensors it needs of its client."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from partwise.core.model import Params, Values
from partwise.core.update import wide

__all__ = ["ClipGradient", "Decay", "Proximal", "Shift", "Times"]


@dataclass(frozen=True, eq=False)
class Proximal:
    """grad + mu * (v - anchor): a pull towards where the task began.

    Args:
        mu: strength, >= 0.
        anchor: name -> the values at the start, of the held shapes. A name left out is not pulled.

    Source: Li et al., "Federated optimization in heterogeneous networks", MLSys 2020, arXiv:1812.06127.
    """

    mu: float
    anchor: Params = field(repr=False)

    def __call__(self, params: Params, grads: Values, step: int) -> Values:
        anchor = self.anchor
        return {n: g.add(params[n] - anchor[n], alpha=self.mu) if n in anchor else g for n, g in grads.items()}


@dataclass(frozen=True, eq=False)
class Shift:
    """grad + by: SCAFFOLD's correction, with by = c - c_i.

    Args:
        by: name -> what is added, of the held shapes. A name left out is not shifted.
    """

    by: Params = field(repr=False)

    def __call__(self, params: Params, grads: Values, step: int) -> Values:
        return {n: g + self.by[n] if n in self.by else g for n, g in grads.items()}


@dataclass(frozen=True, eq=False)
class Times:
    """grad * factor: a loss that is a client's own multiple of the model's.

    Args:
        factor: (), of one client.
    """

    factor: Tensor

    def __call__(self, params: Params, grads: Values, step: int) -> Values:
        return {n: g * self.factor for n, g in grads.items()}


@dataclass(frozen=True)
class ClipGradient:
    """The gradient scaled to a norm of at most `max_norm`, over all held parameters together.

    Args:
        max_norm: > 0.
    """

    max_norm: float

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise ValueError(
                f"ClipGradient(max_norm={self.max_norm}): must be above 0, got {self.max_norm}. 5 is usual."
            )

    def __call__(self, params: Params, grads: Values, step: int) -> Values:
        total = torch.stack([torch.linalg.vector_norm(wide(g)) for g in grads.values()]).norm()
        factor = (self.max_norm / (total + 1e-12)).clamp(max=1.0)
        return {n: (wide(g) * factor).to(g.dtype) for n, g in grads.items()}


@dataclass(frozen=True)
class Decay:
    """grad + rate * v: weight decay as part of the gradient, for what comes after it to see.

    In front of `ClipGradient` it is FedNAR: v <- v - lr s z with z = g + rate v and s = min(1, max_norm / ||z||).

    Args:
        rate: >= 0.

    Source: Li et al., "FedNAR: federated optimization with normalized annealing regularization", NeurIPS 2023,
        arXiv:2310.03163.
    """

    rate: float

    def __post_init__(self) -> None:
        if not self.rate >= 0:
            raise ValueError(f"Decay(rate={self.rate}): must be at least 0, got {self.rate}. Use 0 to turn it off.")

    def __call__(self, params: Params, grads: Values, step: int) -> Values:
        return {n: g.add(params[n], alpha=self.rate) for n, g in grads.items()}
