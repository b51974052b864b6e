"""The gradient of one client's loss without autograd, to the same bits.

A tape is replayed with the functions that autograd itself would call, in its order; what is left out is what autograd
and modules do around them, and work that is done on more numbers than need be.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from partwise.core.model import Model, Params
from partwise.core.plan import Job, ModelLoss
from partwise.core.population import Batch, Examples
from partwise.runtimes.executors.folded import UnstackableError
from partwise.runtimes.executors.groups import layout_of
from partwise.runtimes.executors.rules import RELU, RULES, Call, Grads, Op, linear_of, lookup_of, refuse, softmax_of
from partwise.runtimes.executors.tape import Step, Tape, recorded, replayed
from partwise.runtimes.executors.trial import perturbed

__all__ = ["RULES_ALONE", "Solo", "mean_and_grads", "swapped"]

_MANY = 256
_aten = torch.ops.aten
_softmax_backward = _aten._softmax_backward_data.default  # noqa: SLF001 - what torch calls it


class Solo:
    """Losses and gradients of jobs by tapes, where a trial has shown that they have autograd's bits."""

    def __init__(self) -> None:
        self._tapes: WeakKeyDictionary[Model, dict[Hashable, Tape | None]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Solo, ()

    def tape(self, job: Job, names: Sequence[str]) -> Tape | None:
        """The tape of a job's loss, with which to call `mean_and_grads`; None if it is autograd's.

        Args:
            job: the job.
            names: what gets a gradient.
        """
        loss = job.plan.loss
        if type(loss) is not ModelLoss or not isinstance(job.data, Examples) or not len(job.data) or not names:
            return None
        if job.plan.buffers and job.plan.buffers & job.start.keys():
            return None  # they move in the forward pass
        known = self._tapes.setdefault(loss.model, {})
        key = layout_of(job, loss.model.tables), tuple(names)
        if key not in known:
            try:
                tape = _tried(loss.model, job, names)
            except UnstackableError:
                tape = None
            except Exception:  # noqa: BLE001 - something is wrong with this job, and autograd will say what
                return None
            if len(known) >= _MANY:
                known.clear()
            known[key] = tape
        return known[key]


def mean_and_grads(
    tape: Tape, params: Params, batch: Batch, names: Sequence[str]
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The mean loss of a batch, and its gradients; None where it does not depend on a parameter."""
    with torch.no_grad():
        losses, grads = replayed(tape, params, batch, _shares)
        return losses.mean(), [grads[tape.parameters[name]] for name in names]


def _shares(losses: Tensor) -> Tensor:
    return losses.new_ones(()).expand(losses.shape) / losses.numel()


def _tried(model: Model, job: Job, names: Sequence[str]) -> Tape:
    """The tape of a model's losses.

    Raises:
        UnstackableError: it does something of which the gradient is not known here, or not to the last bit.
    """
    trial = perturbed(job, 1)
    size = min(job.plan.batch_size or len(trial.data), len(trial.data))
    batch = trial.data.batch(torch.arange(size))
    tape = recorded(model, trial.start, batch, names, RULES_ALONE)
    tape = tape._replace(steps=swapped(tape))
    params = {n: t.clone().requires_grad_(n in names) for n, t in trial.start.items()}
    loss = model.losses_of_each(params, batch).mean()
    expected = torch.autograd.grad(loss, [params[n] for n in names], allow_unused=True)
    mean, grads = mean_and_grads(tape, trial.start, batch, names)
    if not torch.equal(mean, loss.detach()):
        raise UnstackableError("its loss has other bits")
    for one, other in zip(grads, expected, strict=True):
        if (one is None) != (other is None) or (one is not None and other is not None and not torch.equal(one, other)):
            raise UnstackableError("a gradient has other bits")
    return tape


def swapped(tape: Tape) -> Sequence[Step]:
    """Steps in which max pooling comes before a ReLU that only it sees: the same numbers of fewer.

    The largest of a window stays the largest, and where that is not above 0, neither passes a gradient on.
    """
    steps, readers = list(tape.steps), dict[int, list[int]]()
    for place, step in enumerate(steps):
        for number in step.given:
            readers.setdefault(number, []).append(place)
    for place, step in enumerate(steps):
        after = readers.get(step.made, [])
        if step.op is RELU and step.made != tape.losses and len(after) == 1:
            (other,) = after
            if isinstance(steps[other].op, _MaxPool):
                steps[place], steps[other] = step._replace(op=steps[other].op), steps[other]._replace(op=RELU)
    return tuple(steps)


# Operations on parameters, which are tensors like any others here, and on images


@dataclass(frozen=True)
class _Linear(Op):
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Any]:
        return F.linear(x, weight, bias), (x, weight, bias)

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        x, weight, bias = kept
        flat = grad.reshape(-1, grad.shape[-1])
        before = flat.mm(weight).view(x.shape) if wanted[0] else None
        own = flat.t().mm(x.reshape(-1, x.shape[-1])) if wanted[1] else None
        if bias is None:
            return before, own
        return before, own, flat.sum(0) if wanted[2] else None


@dataclass(frozen=True)
class _Lookup(Op):
    def forward(self, ids: Tensor, table: Tensor) -> tuple[Tensor, Any]:
        return F.embedding(ids, table), (ids, len(table))

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        ids, rows = kept
        return None, _aten.embedding_dense_backward.default(grad, ids, rows, -1, False)


@dataclass(frozen=True)
class _Convolution(Op):
    function: Callable[..., Tensor]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Any]:
        found = self.function(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return found, (x, weight, None if bias is None else list(bias.shape))

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        x, weight, sizes = kept
        mask = [*wanted[:2], sizes is not None and wanted[2]]
        rest = self.stride, self.padding, self.dilation, False, [0] * len(self.stride), self.groups, mask
        found: Grads = _aten.convolution_backward.default(grad, x, weight, sizes, *rest)
        return found if sizes is not None else found[:2]


@dataclass(frozen=True)
class _MaxPool(Op):
    settings: tuple[Any, ...]

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        found, at = _aten.max_pool2d_with_indices.default(x, *self.settings)
        return found, (x, at)

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        x, at = kept
        return (_aten.max_pool2d_with_indices_backward.default(grad, x, *self.settings, at),)


@dataclass(frozen=True)
class _LayerNorm(Op):
    shape: Sequence[int]
    eps: float

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Any]:
        found, mean, rstd = _aten.native_layer_norm.default(x, self.shape, weight, bias, self.eps)
        return found, (x, mean, rstd, weight, bias)

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        x, mean, rstd, weight, bias = kept
        own = _aten.native_layer_norm_backward.default(grad, x, self.shape, mean, rstd, weight, bias, list(wanted))
        found: Grads = own
        return found


def _through_softmax(grad: Tensor, found: Tensor, axis: int) -> Tensor:
    own: Tensor = _softmax_backward(grad, found, axis, grad.dtype)
    return own


def _convolution(axes: int, function: Callable[..., Tensor]) -> Callable[..., Call]:
    usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}

    def found(input: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: Any, **named: Any) -> Call:
        asked = {**usual, **dict(zip(usual, settings, strict=False)), **named}
        if isinstance(asked["padding"], str) or input.dim() != axes + 2:
            raise refuse("a convolution with a named padding, or of one example")
        stride, padding, dilation = (_each(axes, asked[key]) for key in ("stride", "padding", "dilation"))
        op = _Convolution(function, stride, padding, dilation, asked["groups"])
        return op, (input, weight) if bias is None else (input, weight, bias)

    return found


def _each(axes: int, setting: Any) -> tuple[int, ...]:
    """One number per axis."""
    numbers = (setting,) if isinstance(setting, int) else tuple(setting)
    return numbers * axes if len(numbers) == 1 else numbers


def _max_pool_of(input: Tensor, kernel_size: Any, *settings: Any, **named: Any) -> Call:
    usual = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
    asked = {**usual, **dict(zip(usual, settings, strict=False)), **named}
    if input.dim() != 4 or asked["return_indices"]:
        raise refuse("pooling of one example, or with positions")
    kernel = _each(2, kernel_size)
    stride = kernel if asked["stride"] is None else _each(2, asked["stride"])
    padding, dilation = _each(2, asked["padding"]), _each(2, asked["dilation"])
    return _MaxPool((kernel, stride, padding, dilation, asked["ceil_mode"])), (input,)


def _layer_norm_of(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Call:
    if weight is None or bias is None:
        raise refuse("a layer norm without weight or bias")
    return _LayerNorm(tuple(normalized_shape), eps), (input, weight, bias)


RULES_ALONE: Mapping[Callable[..., Any], Callable[..., Call]] = {
    **RULES,
    F.linear: linear_of(_Linear()),
    F.embedding: lookup_of(_Lookup()),
    F.layer_norm: _layer_norm_of,
    F.max_pool2d: _max_pool_of,
    torch.conv1d: _convolution(1, torch.conv1d),
    torch.conv2d: _convolution(2, torch.conv2d),
    torch.conv3d: _convolution(3, torch.conv3d),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), softmax_of(_through_softmax)),
}
