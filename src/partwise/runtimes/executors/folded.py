"""A model of many clients in one pass: the clients are folded into the batch, and only what a parameter touches knows.

What happens to an example between two parameters is the same for every client, so the module's own `forward` sees one
long batch, client after client. In the place of each parameter stands a `Held`, which meets the functions that use it:
a linear map becomes a batched product, a lookup goes to the client's own part of one table.

Shapes: A clients, b examples of each, n rows of an input per client (a multiple of b), i inputs, o outputs, k row
width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from partwise.runtimes.executors.factors import Factors

__all__ = [
    "USUAL",
    "BetterAloneError",
    "Fold",
    "Held",
    "PaddedTableError",
    "UnstackableError",
    "by_client",
    "linear",
    "linear_backward",
    "lookup",
    "rows_of",
]


class UnstackableError(Exception):
    """A parameter is used in a way that is not known for many clients."""


class PaddedTableError(UnstackableError):
    """Rows that a client does not have would count."""


class BetterAloneError(Exception):
    """It could be done for many clients, and would take longer."""


@dataclass
class Fold:
    """What all parameters share in one local step.

    Args:
        clients: A.
        examples: b.
        lr: apply plain SGD of this rate during the backward pass, where that is exact; 0 to collect gradients. -1 where
            what comes back are steps already, as from a tape.
        tie: a scalar that requires a gradient, so that the backward pass reaches every trainable parameter.
    """

    clients: int
    examples: int
    lr: float
    tie: Tensor

    def lead(self, x: Tensor) -> Tensor:
        """(A * n, ...) -> (A, n, ...)."""
        each = self.clients * self.examples
        if not x.dim() or not x.shape[0] or x.shape[0] % each:
            raise UnstackableError(f"an input of shape {tuple(x.shape)} does not begin with the examples")
        return x.reshape(self.clients, -1, *x.shape[1:])


@dataclass(eq=False)
class Held:
    """One parameter of all clients, in the place of a tensor of one.

    Args:
        fold: of this step.
        value: (A, ...). Changed in place where `fold.lr` is not 0.
        is_trainable: whether it gets a gradient.
        factor: what the value is multiplied by wherever it is used.
        is_padded: whether a client may have fewer rows than there are; then none may be used but by its number.
        factors: the value as one matrix and factors, if it is kept so; `value` is what it was at the beginning then.
        bounds: lowest and highest id looked up so far, (A,) each.
        rows: n of the linear map it was used by, if that was its only use.
    """

    fold: Fold
    value: Tensor
    is_trainable: bool = True
    factor: float = 1.0
    is_padded: bool = False
    factors: Factors | None = None
    grad: Tensor | None = None
    bounds: list[Tensor] = field(default_factory=list)
    rows: int = 0
    _num_uses: int = 0
    _num_lookups: int = 0
    _leaf: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.value.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        return self.value.device

    def dim(self) -> int:
        return self.value.dim() - 1

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in _USES:
            raise UnstackableError(f"{getattr(func, '__name__', func)} is not known for many clients")
        return _USES[func](*args, **(kwargs or {}))

    def __mul__(self, other: Any) -> Tensor:
        return _mul(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return _mul(other, self)

    def __add__(self, other: Any) -> Tensor:
        return _add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return _add(other, self)

    # Uses, noted in the forward pass

    def used(self, *, in_lookup: bool = False, rows: int = 0) -> None:
        if self.is_padded and not in_lookup:
            raise PaddedTableError("a table of which clients hold some rows is used by more than lookups")
        if self.factors is not None and (self._num_uses or not rows):
            raise UnstackableError("a weight that was used by one linear map is used otherwise")
        self.rows = rows if not self._num_uses else 0
        self._num_uses += 1
        self._num_lookups += in_lookup

    def tie(self) -> Tensor | None:
        return self.fold.tie if self.is_trainable else None

    @property
    def _is_fused(self) -> bool:
        """Whether a step may be taken as soon as its gradient is known: nobody will read the old value again."""
        return self.fold.lr != 0 and self._num_uses in (1, self._num_lookups)

    def leaf(self) -> Tensor:
        """The value as autograd knows it, for uses that have no backward pass of their own."""
        if self._leaf is None:
            self._leaf = self.value.detach().requires_grad_(self.is_trainable)
        return self._leaf if self.factor == 1 else self._leaf * self.factor

    # Gradients, received in the backward pass

    def receive_product(self, left: Tensor, right: Tensor) -> None:
        """A gradient left @ right, (A, ...) each."""
        if self._is_fused:
            self.value.baddbmm_(left, right, alpha=-self.fold.lr * self.factor)
        elif self.grad is None:
            self.grad = torch.bmm(left, right)
            if self.factor != 1:
                self.grad.mul_(self.factor)
        else:
            self.grad.baddbmm_(left, right, alpha=self.factor)

    def receive(self, grad: Tensor) -> None:
        if self._is_fused:
            self.value.add_(grad, alpha=-self.fold.lr * self.factor)
        elif self.grad is None:
            self.grad = grad * self.factor
        else:
            self.grad.add_(grad, alpha=self.factor)

    def receive_rows(self, at: Tensor, grad: Tensor) -> None:
        """A gradient (rows, k) that belongs to the rows `at` of the table (A * V, k) of all clients."""
        if self._is_fused:
            target, scale = self.value, -self.fold.lr * self.factor
        else:
            if self.grad is None:
                self.grad = torch.zeros_like(self.value)
            target, scale = self.grad, self.factor
        _add_rows_(target.view(-1, grad.shape[1]), at, grad if scale == 1 else grad * scale)

    def settle(self) -> Tensor | None:
        """The gradient that has not been applied yet, if any."""
        if self._leaf is not None and self._leaf.grad is not None:
            self.grad = self._leaf.grad if self.grad is None else self.grad + self._leaf.grad
        return self.grad


def _add_rows_(table: Tensor, at: Tensor, values: Tensor) -> None:
    if values.device.type != "cpu":
        table.index_put_((at,), values, accumulate=True)  # the one that has the same order every time
    elif values.shape[1] == 1:
        table.view(-1).index_add_(0, at, values.view(-1))
    else:  # five times faster than index_add_ on rows
        table.scatter_add_(0, at.unsqueeze(1).expand_as(values), values)


def linear(x: Tensor, weight: Held, bias: Held | None) -> Tensor:
    """x W^T + b of every client: (A, n, i) -> (A, n, o)."""
    if weight.factors is not None:
        result = weight.factors.forward(x)
        if bias is not None:
            result.add_(bias.value.unsqueeze(1), alpha=bias.factor)
        return result
    over = weight.value.transpose(1, 2)  # (A, i, o)
    if bias is not None:
        return torch.baddbmm(bias.value.unsqueeze(1), x, over, beta=bias.factor, alpha=weight.factor)
    result = torch.bmm(x, over)  # (A, n, o)
    return result if weight.factor == 1 else result.mul_(weight.factor)


def linear_backward(grad: Tensor, x: Tensor, weight: Held, bias: Held | None, *, is_wanted: bool) -> Tensor | None:
    """What `linear` gives back to weight and bias, and to its input where that is wanted, (A, n, i)."""
    before = None
    if is_wanted:  # read before the weight takes its step
        before = weight.factors.backward(grad) if weight.factors else torch.bmm(grad, weight.value)
        if weight.factor != 1:
            before.mul_(weight.factor)
    if weight.factors is not None:
        weight.factors.step_(grad, x)
    elif weight.is_trainable:
        weight.receive_product(grad.transpose(1, 2), x)
    if bias is not None and bias.is_trainable:
        bias.receive(grad.sum(1))
    return before


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _tie: Tensor | None, *args: Any) -> Tensor:
        ctx.args = args
        return linear(*args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None, None]:
        return None, linear_backward(grad, *ctx.args, is_wanted=ctx.needs_input_grad[1]), None, None


def by_client(input: Tensor, weight: Held, bias: Held | None) -> Tensor:
    """The input of a linear map, (A, n, i); notes that weight and bias are used by it."""
    x = weight.fold.lead(input)
    if x.dim() != 3:
        x = x.reshape(weight.fold.clients, -1, input.shape[-1])
    weight.used(rows=x.shape[1])
    if bias is not None:
        bias.used()
    return x


def _linear(input: Tensor, weight: Held, bias: Held | None = None) -> Tensor:
    if not isinstance(input, Tensor) or not isinstance(weight, Held) or isinstance(bias, Tensor):
        raise UnstackableError("a linear map of a parameter")
    x = by_client(input, weight, bias)
    tie = weight.tie()
    if bias is not None and tie is None:
        tie = bias.tie()
    result: Tensor = _Linear.apply(tie, x, weight, bias)  # type: ignore[no-untyped-call]
    return result.view(*input.shape[:-1], result.shape[-1])


def rows_of(ids: Tensor, table: Held) -> Tensor:
    """Where the rows of these ids lie in the table (A * V, k) of all clients; notes the ids' bounds and the use."""
    clients, rows, _ = table.value.shape
    lead = table.fold.lead(ids).reshape(clients, -1)
    table.bounds += torch.aminmax(lead, dim=1)
    table.used(in_lookup=True)
    offsets = torch.arange(0, clients * rows, rows, device=ids.device).unsqueeze(1)
    return (lead + offsets).view(-1)


def lookup(at: Tensor, table: Held) -> Tensor:
    """Rows of the table (A * V, k) of all clients."""
    rows = table.value.view(-1, table.value.shape[2]).index_select(0, at)
    return rows if table.factor == 1 else rows.mul_(table.factor)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _tie: Tensor | None, *args: Any) -> Tensor:
        ctx.at, ctx.table = args
        return lookup(*args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        if ctx.table.is_trainable:
            ctx.table.receive_rows(ctx.at, grad.contiguous())
        return None, None, None


USUAL = {"padding_idx": None, "max_norm": None, "scale_grad_by_freq": False, "sparse": False}


def _embedding(input: Tensor, weight: Held, **settings: Any) -> Tensor:
    if not isinstance(weight, Held) or any(settings[key] != usual for key, usual in USUAL.items()):
        raise UnstackableError("an embedding with special settings")
    at = rows_of(input, weight)
    found: Tensor = _Lookup.apply(weight.tie(), at, weight)  # type: ignore[no-untyped-call]
    return found.view(*input.shape, weight.value.shape[2])


def _beside(x: Any, held: Held) -> tuple[Tensor, Tensor]:
    """x as (A, n, ...), and a parameter that broadcasts over its trailing axes."""
    if not isinstance(x, Tensor):
        raise UnstackableError("arithmetic between parameters")
    lead = held.fold.lead(x)
    leaf = held.leaf()
    if leaf.dim() > x.dim():
        raise UnstackableError("arithmetic with a parameter of more axes than an example")
    held.used()
    ones = (1,) * (lead.dim() - leaf.dim())
    return lead, leaf.reshape(held.fold.clients, *ones, *held.shape)


def _mul(input: Any, other: Any) -> Tensor:
    x, held = (other, input) if isinstance(input, Held) else (input, other)
    lead, leaf = _beside(x, held)
    return (lead * leaf).flatten(0, 1)


def _add(input: Any, other: Any) -> Tensor:
    x, held = (other, input) if isinstance(input, Held) else (input, other)
    lead, leaf = _beside(x, held)
    return (lead + leaf).flatten(0, 1)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Held | None = None,
    bias: Held | None = None,
    eps: float = 1e-5,
) -> Tensor:
    result = F.layer_norm(input, list(normalized_shape), None, None, eps)
    if weight is not None:
        result = _mul(result, weight)
    return result if bias is None else _add(result, bias)


def _convolution(input: Tensor, weight: Held, *rest: Any, **others: Any) -> Tensor:
    if input.device.type == "cpu":
        raise BetterAloneError("convolutions of many clients at once take longer than one after another on a CPU")
    raise UnstackableError("a convolution")


_USES: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    **dict.fromkeys((torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__), _mul),
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__), _add),
}
