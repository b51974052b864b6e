"""Local optimisers: the rule of one step on a client."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partwise.core.model import Params, Values
from partwise.core.update import wide_type

__all__ = ["SGD", "AdamW"]


def _decay_(param: Tensor, update: Tensor, amount: float, cautious: bool) -> None:
    """Decoupled decay, in place; cautious: only where it does not oppose the step (update * param >= 0)."""
    if cautious:
        param.sub_(param * (update * param >= 0), alpha=amount)
    else:
        param.mul_(1 - amount)


@dataclass(frozen=True)
class SGD:
    """v <- v - lr * u, with u the gradient or its momentum buffer.

    Args:
        lr: local learning rate, > 0.
        momentum: of the gradient, in [0, 1); the buffer starts anew with every task.
        weight_decay: decay rate, >= 0; added to the gradient, as torch.optim.SGD does, unless `cautious`.
        cautious: decay apart from the gradient, and only where it does not oppose the step.

    Source: Chen et al., "Cautious weight decay", ICLR 2026, arXiv:2510.12402 (`cautious`).

    Example:
        >>> v = {"v": torch.tensor([2.0])}
        >>> SGD(lr=0.5).step_(v, {"v": torch.tensor([1.0])}, ())
        ()
        >>> v["v"]
        tensor([1.5000])
    """

    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    cautious: bool = False

    def __post_init__(self) -> None:
        _positive("SGD", "lr", self.lr)
        _share("SGD", "momentum", self.momentum)
        _nonnegative("SGD", "weight_decay", self.weight_decay)

    def init(self, params: Params) -> Any:
        return {name: torch.zeros_like(t) for name, t in params.items()} if self.momentum else ()

    def step_(self, params: Values, grads: Values, state: Any) -> Any:
        names = list(grads)
        values, updates = [params[n] for n in names], [grads[n] for n in names]
        if self.weight_decay and not self.cautious:
            torch._foreach_add_(updates, values, alpha=self.weight_decay)
        if self.momentum:
            buffers = [state[n] for n in names]
            torch._foreach_mul_(buffers, self.momentum)
            torch._foreach_add_(buffers, updates)
            updates = buffers
        if self.weight_decay and self.cautious:
            for value, update in zip(values, updates, strict=True):
                _decay_(value, update, self.lr * self.weight_decay, cautious=True)
        torch._foreach_add_(values, updates, alpha=-self.lr)
        return state


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay; its moments start anew with every task.

    Moments of half-precision parameters are kept in single precision: in float16, small squares and `eps` are 0.

    Args:
        lr: local learning rate, > 0.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        eps: added to the root of the second moment, > 0.
        weight_decay: decay rate, >= 0, apart from the gradient.
        cautious: decay only where it does not oppose the step.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, arXiv:1711.05101;
        Chen et al., "Cautious weight decay", ICLR 2026, arXiv:2510.12402.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    cautious: bool = False

    def __post_init__(self) -> None:
        _positive("AdamW", "lr", self.lr)
        _share("AdamW", "beta1", self.beta1)
        _share("AdamW", "beta2", self.beta2)
        _positive("AdamW", "eps", self.eps)
        _nonnegative("AdamW", "weight_decay", self.weight_decay)

    def init(self, params: Params) -> Any:
        zeros = {n: torch.zeros_like(t, dtype=wide_type(t.dtype)) for n, t in params.items()}
        return 0, zeros, {name: t.clone() for name, t in zeros.items()}

    def step_(self, params: Values, grads: Values, state: Any) -> Any:
        count, first, second = state
        count += 1
        for name, grad in grads.items():
            m, v = first[name], second[name]
            grad = grad.to(m.dtype)
            m.mul_(self.beta1).add_(grad, alpha=1 - self.beta1)
            v.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
            root = (v / (1 - self.beta2**count)).sqrt_().add_(self.eps)
            update = (m / (1 - self.beta1**count)).div_(root)
            if self.weight_decay:
                _decay_(params[name], update, self.lr * self.weight_decay, self.cautious)
            params[name].sub_(update, alpha=self.lr)
        return count, first, second


def _positive(part: str, field: str, value: float) -> None:
    if not 0 < value < math.inf:
        rule = "must be above 0" if value <= 0 else "must be a finite number above 0"
        raise ValueError(f"{part}({field}={value}): {rule}, got {value}. Use a small positive number.")


def _nonnegative(part: str, field: str, value: float) -> None:
    if not 0 <= value < math.inf:
        rule = "must be at least 0" if value < 0 else "must be a finite number, at least 0"
        raise ValueError(f"{part}({field}={value}): {rule}, got {value}. Use 0 to turn it off.")


def _share(part: str, field: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{part}({field}={value}): must lie in [0, 1), got {value}. 0.9 is usual, 0 turns it off.")
