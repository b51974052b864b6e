"""A matrix that many clients begin with alike and change by few examples: kept once, with the factors of its changes.

The gradient of a linear map's weight is G^T X, of no higher rank than the batch has rows. After some steps of plain SGD
client c has W_c = W - lr * sum over p of G_p^T X_p, where p counts its steps. Neither W_c nor a copy of W is needed for
x W_c^T = x W^T - lr * sum over p of (x X_p^T) G_p, and the sum of the changes of all clients is one product.

Shapes: C clients, A of them not finished yet, n rows of each in a step, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partwise.core.update import wide

__all__ = ["Factors", "pays"]


@dataclass(eq=False)
class Factors:
    """One weight of all clients.

    Args:
        start: (o, i), what all begin with; not changed.
        lr: of plain SGD.
        clients: C.
        past: G (A, n, o) and X (A, n, i) of every step so far; the clients with most steps come first.
    """

    start: Tensor
    lr: float
    clients: int
    past: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def forward(self, x: Tensor) -> Tensor:
        """x W_c^T: (A, n, i) -> (A, n, o)."""
        found = torch.mm(x.reshape(-1, x.shape[2]), self.start.t()).view(*x.shape[:2], -1)
        for grad, seen in self.past:
            found.baddbmm_(torch.bmm(x, seen[: len(x)].transpose(1, 2)), grad[: len(x)], alpha=-self.lr)
        return found

    def backward(self, grad: Tensor) -> Tensor:
        """g W_c: (A, n, o) -> (A, n, i)."""
        found = torch.mm(grad.reshape(-1, grad.shape[2]), self.start).view(*grad.shape[:2], -1)
        for other, seen in self.past:
            found.baddbmm_(torch.bmm(grad, other[: len(grad)].transpose(1, 2)), seen[: len(grad)], alpha=-self.lr)
        return found

    def step_(self, grad: Tensor, x: Tensor) -> None:
        """Take a step of which the gradient is grad^T x."""
        self.past.append((grad, x))

    def changes(self) -> Tensor:
        """W_c - W of every client, (C, o, i)."""
        found = self.start.new_zeros(self.clients, *self.start.shape)
        for grad, x in self.past:
            found[: len(x)].baddbmm_(grad.transpose(1, 2), x, alpha=-self.lr)
        return found

    def weighted(self, weights: Sequence[float]) -> Tensor:
        """Sum over clients of weight, C of them, times W_c - W, (o, i), in single precision at least."""
        found = torch.zeros_like(wide(self.start))
        factors = -self.lr * found.new_tensor(weights)
        for grad, x in self.past:
            scaled = wide(grad) * factors[: len(x), None, None]
            left, right = scaled.view(-1, grad.shape[2]).t(), wide(x).reshape(-1, x.shape[2])
            found.addmm_(left, right)
        return found


def pays(shape: torch.Size, rows: int, steps: int) -> bool:
    """Whether factors cost little more arithmetic than the matrix: what they save is reading and writing it.

    Args:
        shape: (o, i).
        rows: n.
        steps: of a client.
    """
    outputs, inputs = shape
    return (steps - 1) * rows * (inputs + outputs) <= inputs * outputs and inputs * outputs >= _LEAST


_LEAST = 1 << 14  # entries; a smaller matrix stays in the cache anyway
