"""One local step of many clients: their losses and the gradients, in one of two ways.

Shapes: A clients, b examples of each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from partwise.core.model import Model, Params, Values
from partwise.core.plan import LossFn
from partwise.core.population import Batch
from partwise.runtimes.executors.factors import Factors
from partwise.runtimes.executors.folded import Fold, Held, PaddedTableError, UnstackableError

__all__ = ["Folded", "Vmapped", "beyond", "check_ids", "collected", "of_function", "of_model"]


def check_ids(bad: Sequence[Tensor]) -> None:
    """Refuse what has looked beyond a client's own rows. Asked once, after training, for a GPU would have to wait."""
    if bad and bool(torch.stack([b.any() for b in bad]).any()):
        raise IndexError("an id is outside the rows of its client")


@dataclass
class Folded:
    """The clients folded into the batch: see `folded`.

    Args:
        model: whose losses.
        factors: on parameters, in the loss.
        names: what gets a gradient.
        num_rows: table -> rows of every client, (C,), where they may differ.
        kept: name -> what is kept as factors.
        linear: name -> rows of each example, of what the last call used by one linear map alone.
    """

    model: Model
    factors: Mapping[str, float]
    names: Sequence[str]
    num_rows: Mapping[str, Tensor]
    kept: Mapping[str, Factors] = field(default_factory=dict)
    bad: list[Tensor] = field(default_factory=list)
    linear: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, values: Values, batch: Batch, shares: Tensor, lr: float) -> tuple[Tensor, Values | None]:
        """Losses (A,) and gradients; where `lr` is not 0, plain SGD has been applied and there are none."""
        clients, width = shares.shape
        fold = Fold(clients, width, lr, torch.zeros((), device=shares.device, requires_grad=True))
        held = {
            n: Held(fold, t, n in self.names, self.factors.get(n, 1.0), n in self.num_rows, self.kept.get(n))
            for n, t in values.items()
        }
        losses = self.model.losses(held, batch)  # type: ignore[arg-type]
        if losses.shape != (clients * width,):
            raise UnstackableError(f"the losses have the shape {tuple(losses.shape)}")
        torch.autograd.backward(losses, shares.reshape(-1))  # the gradient of the sum of the clients' means
        means = (losses.detach().view(clients, width) * shares).sum(1)
        self.linear = {n: held[n].rows // width for n in self.names if held[n].rows}
        for name, parameter in held.items():
            if parameter.bounds:
                self.bad += beyond(parameter, self.num_rows.get(name))
        return means, collected(held, values, self.names, lr)


def collected(held: Mapping[str, Held], values: Values, names: Sequence[str], lr: float) -> Values | None:
    """The gradients that parameters have received; where `lr` is not 0, the rest of plain SGD, and None."""
    found = {n: held[n].settle() for n in names}
    if not lr:
        return {n: torch.zeros_like(values[n]) if g is None else g for n, g in found.items()}
    for name, grad in found.items():
        if grad is not None:
            values[name].add_(grad, alpha=-lr)
    return None


def beyond(table: Held, rows: Tensor | None) -> list[Tensor]:
    """Where clients have looked up rows that they do not have. rows: how many they have, if that differs, (C,)."""
    limit = table.shape[0] if rows is None else rows[: table.fold.clients]
    pairs = zip(table.bounds[::2], table.bounds[1::2], strict=True)
    return [is_bad for low, high in pairs for is_bad in (low < 0, high >= limit)]


@dataclass
class Vmapped:
    """`torch.func.vmap` over the clients; refuses dropout and other chance, whose streams cannot be the same.

    Args:
        loss: of one client, with its batch and every example's share of the mean.
        names: what gets a gradient.
        num_rows: table -> rows of every client, (C,), where they may differ.
    """

    loss: Callable[[Params, Batch, Tensor], Tensor]
    names: Sequence[str]
    num_rows: Mapping[str, Tensor]
    bad: list[Tensor] = field(default_factory=list)

    def __call__(self, values: Values, batch: Batch, shares: Tensor, lr: float) -> tuple[Tensor, Values | None]:
        clients, width = shares.shape
        params = {n: t.detach().requires_grad_(n in self.names) for n, t in values.items()}
        rows = {n: r[:clients] for n, r in self.num_rows.items()}
        by_client = {n: c.view(clients, width, *c.shape[1:]) for n, c in batch.items()}
        run = torch.func.vmap(self._one, randomness="error")
        with warnings.catch_warnings():
            # Of operations that are run in a loop; whether that is worth it is not for the user to decide.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            means, bad = run(params, by_client, shares, rows)
        found = torch.autograd.grad(means.sum(), [params[n] for n in self.names], allow_unused=True)
        self.bad.append(bad)
        grads = {n: torch.zeros_like(values[n]) if g is None else g for n, g in zip(self.names, found, strict=True)}
        if not lr:
            return means.detach(), grads
        for name, grad in grads.items():
            values[name].add_(grad, alpha=-lr)
        return means.detach(), None

    def _one(self, params: Params, batch: Batch, shares: Tensor, rows: Params) -> tuple[Tensor, Tensor]:
        with _Lookups({id(params[n]): r for n, r in rows.items()}) as lookups:
            loss = self.loss(params, batch, shares)
        bad = torch.zeros_like(shares[0], dtype=torch.bool)
        for found in lookups.bad:
            bad = bad | found
        return loss, bad


class _Lookups(TorchFunctionMode):
    """Notes ids that are outside their table, which vmap would take from the next client's.

    A table whose last rows a client may not have is used by lookups alone.
    """

    def __init__(self, rows: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.rows, self.bad = rows, list[Tensor]()

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.embedding and len(args) > 1:
            ids, limit = args[0], self.rows.get(id(args[1]), len(args[1]))
            self.bad.append(((ids < 0) | (ids >= limit)).any())
            still = (kwargs or {}).get("padding_idx")
            if still is not None:  # vmap would keep that row of the first client's table alone from moving
                rows = func(*args, **{**(kwargs or {}), "padding_idx": None})
                return torch.where((ids == still % limit).unsqueeze(-1), rows.detach(), rows)
        elif any(id(arg) in self.rows for arg in tree_leaves((args, kwargs))):
            raise PaddedTableError("a table of which clients hold some rows is used by more than lookups")
        return func(*args, **(kwargs or {}))


def of_model(model: Model, factors: Mapping[str, float]) -> Callable[[Params, Batch, Tensor], Tensor]:
    """A model's mean loss of one client, for `Vmapped`."""

    def loss(params: Params, batch: Batch, shares: Tensor) -> Tensor:
        scaled = {n: p * factors[n] if n in factors else p for n, p in params.items()}
        return (model.losses_of_each(scaled, batch) * shares).sum()

    return loss


def of_function(function: LossFn) -> Callable[[Params, Batch, Tensor], Tensor]:
    """A loss that is known as a function only; one that draws from its generator finds none, and is refused."""

    def loss(params: Params, batch: Batch, shares: Tensor) -> Tensor:
        return function(params, batch, None)  # type: ignore[arg-type]

    return loss
