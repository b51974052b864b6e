"""Operations of which the gradient is known, so that a model can be run without autograd.

Axis 0 of everything but parameters is the examples of all clients; no operation here lets them know of each other.

Shapes: A clients, b examples of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from partwise.runtimes.executors.folded import (
    USUAL,
    Held,
    UnstackableError,
    by_client,
    linear,
    linear_backward,
    lookup,
    rows_of,
)

__all__ = ["QUERIES", "RELU", "RULES", "Call", "Grads", "Op", "linear_of", "lookup_of", "refuse", "softmax_of"]

Grads = Sequence[Tensor | None]
_aten = torch.ops.aten
_log_softmax_backward = _aten._log_softmax_backward_data.default  # noqa: SLF001 - what torch calls it


class Op(Protocol):
    """An operation.

    `takes_parameters`: all it is given but the first are parameters, `Held`. `is_differentiable`: whether it has a
    `backward`. `is_fresh`: whether nobody else has what that gives.
    """

    takes_parameters: bool = False
    is_differentiable: bool = True
    is_fresh: bool = False

    def forward(self, *given: Any) -> tuple[Tensor, Any]:
        """The result, and what `backward` wants to know."""
        ...

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        """The gradient of each thing given; None where it is not wanted, and of parameters, which receive theirs."""
        ...


@dataclass(frozen=True)
class _Linear(Op):
    takes_parameters: bool = True
    is_fresh: bool = True

    def forward(self, input: Tensor, weight: Held, bias: Held | None = None) -> tuple[Tensor, Any]:
        x = by_client(input, weight, bias)
        result = linear(x, weight, bias)
        return result.view(*input.shape[:-1], result.shape[-1]), (input.shape, x, weight, bias)

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        shape, x, weight, bias = kept
        by_clients = grad.reshape(*x.shape[:2], grad.shape[-1])
        found = linear_backward(by_clients, x, weight, bias, is_wanted=wanted[0])
        return (None if found is None else found.view(shape), None, None)


@dataclass(frozen=True)
class _Lookup(Op):
    takes_parameters: bool = True

    def forward(self, ids: Tensor, table: Held) -> tuple[Tensor, Any]:
        at = rows_of(ids, table)
        return lookup(at, table).view(*ids.shape, table.value.shape[2]), (at, table)

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        at, table = kept
        table.receive_rows(at, grad.reshape(len(at), -1))
        return None, None


@dataclass(frozen=True)
class _Pointwise(Op):
    """gradient: of the given and the result's, (gradient, given, result)."""

    function: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor]
    is_fresh: bool = True

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        found = self.function(x)
        return found, (x, found)

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        return (self.gradient(grad, *kept),)


@dataclass(frozen=True)
class _Reshaped(Op):
    """Every number is in the result once, in the same order."""

    function: Callable[..., Tensor]
    axes: tuple[int, ...]

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return self.function(x, *self.axes), x.shape

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        return (grad.reshape(kept),)


@dataclass(frozen=True)
class _Expanded(Op):
    def forward(self, x: Tensor, like: Tensor) -> tuple[Tensor, Any]:
        return x.expand_as(like), x.shape

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        return grad.sum_to_size(kept), None


@dataclass(frozen=True)
class _Product(Op):
    is_fresh: bool = True

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Any]:
        return one * other, (one, other)

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        one, other = kept
        first = (grad * other).sum_to_size(one.shape) if wanted[0] else None
        return first, (grad * one).sum_to_size(other.shape) if wanted[1] else None


@dataclass(frozen=True)
class _Sum(Op):
    """sign: of the second term."""

    sign: int = 1

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Any]:
        return torch.add(one, other, alpha=self.sign), (one.shape, other.shape)

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        second = (grad if self.sign == 1 else -grad).sum_to_size(kept[1]) if wanted[1] else None
        return grad.sum_to_size(kept[0]), second


@dataclass(frozen=True)
class _Beside(Op):
    """Of any number of tensors, along an axis."""

    axis: int

    def forward(self, *given: Tensor) -> tuple[Tensor, Any]:
        return torch.cat(given, self.axis), [t.shape[self.axis] for t in given]

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        found: Grads = grad.split(kept, self.axis)
        return found


@dataclass(frozen=True)
class _Softmax(Op):
    """gradient: of the result's, (gradient, result, axis)."""

    axis: int
    gradient: Callable[[Tensor, Tensor, int], Tensor]

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        found = x.softmax(self.axis)
        return found, found

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        return (self.gradient(grad, kept, self.axis),)


@dataclass(frozen=True)
class _Total(Op):
    """The sum or, where `is_mean`, the mean over some axes."""

    axes: tuple[int, ...]
    is_kept: bool
    is_mean: bool

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        found = x.mean(self.axes, self.is_kept) if self.is_mean else x.sum(self.axes, self.is_kept)
        return found, x.shape

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        shape = [1 if axis in self.axes else size for axis, size in enumerate(kept)]
        if self.is_mean:
            grad = grad / (kept.numel() // max(1, grad.numel()))
        return (grad.reshape(shape).expand(kept),)


@dataclass(frozen=True)
class _CrossEntropy(Op):
    ignored: int

    def forward(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Any]:
        found = logits.log_softmax(1)
        return F.nll_loss(found, target, ignore_index=self.ignored, reduction="none"), (found, target)

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        found, target = kept
        # 0: no reduction; the last one, the total of the weights, is of a mean.
        own = _aten.nll_loss_backward.default(grad, found, target, None, 0, self.ignored, grad.new_zeros(()))
        return _log_softmax_backward(own, found, 1, found.dtype), None


@dataclass(frozen=True)
class _BinaryCrossEntropy(Op):
    def forward(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Any]:
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none"), (logits, target)

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        logits, target = kept
        return logits.sigmoid().sub_(target).mul_(grad), None


@dataclass(frozen=True)
class _Converted(Op):
    """To another type; of data, for a gradient has one type."""

    dtype: torch.dtype
    is_differentiable: bool = False

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return x.to(self.dtype), None

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        raise refuse("a conversion")  # the recorder has seen to it


@dataclass(frozen=True)
class _LaidOut(Op):
    """The same numbers, otherwise in memory; of data, as a model does it before its module begins."""

    order: torch.memory_format
    is_differentiable: bool = False

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return x.clone(memory_format=self.order), None

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        raise refuse("another order in memory")  # the recorder has seen to it


# How a call becomes an operation and what it is given: refused where something is asked that is not known above.

Call = tuple[Op, Sequence[Any]]


def refuse(what: str) -> UnstackableError:
    """The error that says of what the gradient is not known."""
    return UnstackableError(f"{what} has no gradient here")


def _axis(x: Tensor, axis: Any) -> int:
    found = axis + x.dim() if axis < 0 else axis
    if found == 0:
        raise refuse("what goes over the examples")
    return int(found)


def linear_of(op: Op) -> Callable[..., Call]:
    """The rule of a linear map that is done by `op`."""

    def found(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call:
        return op, (input, weight) if bias is None else (input, weight, bias)

    return found


def lookup_of(op: Op) -> Callable[..., Call]:
    """The rule of an embedding that is done by `op`."""

    def found(input: Tensor, weight: Tensor, **settings: Any) -> Call:
        if any(settings[key] != usual for key, usual in USUAL.items()):
            raise refuse("an embedding with special settings")
        return op, (input, weight)

    return found


def _pointwise(op: _Pointwise) -> Callable[..., Call]:
    def found(input: Tensor, inplace: bool = False) -> Call:
        if inplace:
            raise refuse("what overwrites its input")
        return op, (input,)

    return found


def _gelu_of(input: Tensor, approximate: str = "none") -> Call:
    def gradient(grad: Tensor, x: Tensor, _: Tensor) -> Tensor:
        return _aten.gelu_backward.default(grad, x, approximate=approximate)  # type: ignore[no-any-return]

    return _Pointwise(lambda x: F.gelu(x, approximate=approximate), gradient), (input,)


def _flattened(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Call:
    return _Reshaped(torch.flatten, (_axis(input, start_dim), _axis(input, end_dim))), (input,)


def _squeezed(input: Tensor, dim: int) -> Call:
    return _Reshaped(torch.squeeze, (_axis(input, dim),)), (input,)


def _unsqueezed(input: Tensor, dim: int) -> Call:
    found = dim + input.dim() + 1 if dim < 0 else dim
    return _Reshaped(torch.unsqueeze, (_axis(input, found),)), (input,)


def _converted(kind: torch.dtype | None) -> Callable[..., Call]:
    """A type that is given, or that the method stands for."""

    def found(input: Tensor, dtype: Any = kind) -> Call:
        if not isinstance(dtype, torch.dtype):
            raise refuse("a move to another device")
        return _Converted(dtype), (input,)

    return found


def _laid_out(input: Tensor, *, memory_format: torch.memory_format) -> Call:
    return _LaidOut(memory_format), (input,)


def _expanded(input: Tensor, other: Tensor) -> Call:
    return _Expanded(), _aligned(input, other)


def _aligned(one: Any, other: Any) -> Sequence[Tensor]:
    """Two tensors whose examples are along the same axis."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.dim() != other.dim():
        raise refuse("arithmetic of other things than tensors of as many axes")
    if one.dtype != other.dtype:
        raise refuse("arithmetic of several types")
    return one, other


def _product_of(input: Any, other: Any) -> Call:
    x, number = (other, input) if isinstance(input, int | float) else (input, other)
    if isinstance(number, int | float):
        return _Pointwise(lambda t: t * number, lambda grad, *_: grad * number), (x,)
    return _Product(), _aligned(input, other)


def _sum_of(input: Any, other: Any) -> Call:
    return _Sum(), _aligned(input, other)


def _difference_of(input: Any, other: Any) -> Call:
    return _Sum(-1), _aligned(input, other)


def _beside(tensors: Sequence[Tensor], dim: int = 0) -> Call:
    return _Beside(_axis(tensors[0], dim)), tensors


def softmax_of(gradient: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[..., Call]:
    """The rule of a softmax of which the gradient is found so: of the result's, the result and the axis."""

    def found(input: Tensor, dim: int, _stacklevel: int = 3, dtype: None = None) -> Call:
        if dtype is not None:
            raise refuse("a softmax of another type")
        return _Softmax(_axis(input, dim), gradient), (input,)

    return found


def _through_softmax(grad: Tensor, found: Tensor, axis: int) -> Tensor:
    """Faster than torch's own on short rows."""
    inner = grad * found
    return inner.addcmul(found, inner.sum(axis, keepdim=True), value=-1)


def _total(*, is_mean: bool) -> Callable[..., Call]:
    def found(input: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Call:
        axes = tuple(_axis(input, axis) for axis in ([dim] if isinstance(dim, int) else dim))
        if not axes or not input.is_floating_point():
            raise refuse("a sum over the examples, or of whole numbers")
        return _Total(axes, keepdim, is_mean), (input,)

    return found


def _cross_entropy_of(input: Tensor, target: Tensor, **settings: Any) -> Call:
    known = {"reduction": "none", "weight": None, "size_average": None, "reduce": None, "label_smoothing": 0.0}
    _check(settings, known, but="ignore_index")
    if input.dim() != 2 or target.dim() != 1:
        raise refuse("a cross-entropy of more axes")
    return _CrossEntropy(settings.get("ignore_index", -100)), (input, target)


def _binary_cross_entropy_of(input: Tensor, target: Tensor, **settings: Any) -> Call:
    known = {"reduction": "none", "weight": None, "size_average": None, "reduce": None, "pos_weight": None}
    _check(settings, known)
    return _BinaryCrossEntropy(), _aligned(input, target)


def _check(settings: Mapping[str, Any], known: Mapping[str, Any], but: str = "") -> None:
    """Refuse a loss that is reduced, or has other settings than these."""
    if settings.get("reduction") != "none" or any(settings[key] != known[key] for key in settings if key != but):
        raise refuse("a loss with special settings")


RELU = _Pointwise(torch.relu, lambda grad, _, found: _aten.threshold_backward.default(grad, found, 0))
_TANH = _Pointwise(torch.tanh, lambda grad, _, found: _aten.tanh_backward.default(grad, found))
_SIGMOID = _Pointwise(torch.sigmoid, lambda grad, _, found: _aten.sigmoid_backward.default(grad, found))
_LOG1P = _Pointwise(torch.log1p, lambda grad, x, _: grad / (x + 1))
_T = Tensor

RULES: Mapping[Callable[..., Any], Callable[..., Call]] = {
    F.linear: linear_of(_Linear()),
    F.embedding: lookup_of(_Lookup()),
    F.gelu: _gelu_of,
    F.cross_entropy: _cross_entropy_of,
    F.binary_cross_entropy_with_logits: _binary_cross_entropy_of,
    torch.cat: _beside,
    _T.expand_as: _expanded,
    _T.clone: _laid_out,
    _T.to: _converted(None),
    _T.long: _converted(torch.int64),
    _T.float: _converted(torch.float32),
    _T.double: _converted(torch.float64),
    **dict.fromkeys((F.relu, torch.relu, _T.relu), _pointwise(RELU)),
    **dict.fromkeys((F.tanh, torch.tanh, _T.tanh), _pointwise(_TANH)),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, _T.sigmoid), _pointwise(_SIGMOID)),
    **dict.fromkeys((torch.log1p, _T.log1p), _pointwise(_LOG1P)),
    **dict.fromkeys((F.softmax, torch.softmax, _T.softmax), softmax_of(_through_softmax)),
    **dict.fromkeys((torch.flatten, _T.flatten), _flattened),
    **dict.fromkeys((torch.squeeze, _T.squeeze), _squeezed),
    **dict.fromkeys((torch.unsqueeze, _T.unsqueeze), _unsqueezed),
    **dict.fromkeys((torch.sum, _T.sum), _total(is_mean=False)),
    **dict.fromkeys((torch.mean, _T.mean), _total(is_mean=True)),
    **dict.fromkeys((torch.mul, _T.mul, _T.__mul__, _T.__rmul__), _product_of),
    **dict.fromkeys((torch.add, _T.add, _T.__add__, _T.__radd__), _sum_of),
    **dict.fromkeys((torch.sub, _T.sub, _T.__sub__), _difference_of),
}

# What a model may ask a tensor without becoming another model for it: not how many examples there are.
QUERIES = frozenset(
    [
        _T.dim,
        _T.is_floating_point,
        _T.dtype.__get__,  # type: ignore[attr-defined]
        _T.device.__get__,
        _T.is_cpu.__get__,  # type: ignore[attr-defined]
    ]
)
