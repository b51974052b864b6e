"""What a model makes of batches under some parameters, without its modules: for evaluation on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from partwise.core.model import Model, Params
from partwise.core.population import Batch
from partwise.runtimes.executors.rules import Call, Grads, Op, linear_of
from partwise.runtimes.executors.solo import RULES_ALONE, swapped
from partwise.runtimes.executors.tape import Tape, given, recorded
from partwise.runtimes.executors.trial import are_near

__all__ = ["forward_of", "plain_of"]

_NARROW, _SHORT = range(4, 16), 128  # outputs and inputs of linear maps that MKL takes twice as long for as it need


def forward_of(model: Model, params: Params, batch: Batch) -> Callable[[Batch], Tensor]:
    """The model's outputs under some parameters, as a function of a batch; equal to `Model.outputs` but for rounding.

    They are made without the model's modules where what it does is known and a trial comes to the same.

    Args:
        model: the model.
        params: as the function will use them; they must not change.
        batch: a few of the examples.
    """
    taped = _taped(model, params, batch) if all(t.is_cpu for t in params.values()) else None
    return taped or plain_of(model, params)


def plain_of(model: Model, params: Params) -> Callable[[Batch], Tensor]:
    """The same by the model's own modules.

    They may write to what they are given, such as a norm that rows are cut to; so they are given copies, for how often
    a model is evaluated would change it.
    """
    return partial(_plain, model, {name: t.clone() for name, t in params.items()})


def _taped(model: Model, params: Params, batch: Batch) -> Callable[[Batch], Tensor] | None:
    try:
        tape = recorded(model, params, batch, (), _RULES, outputs=True)
        tape = tape._replace(steps=swapped(tape))
        with torch.no_grad():
            made, expected = _forward(tape, _lasts(tape), params, batch), model.outputs(params, batch)
    except Exception:  # noqa: BLE001 - if something is wrong with the examples, the model says what
        return None
    if made.shape != expected.shape or not are_near([made], [expected]):
        return None
    return partial(_forward, tape, _lasts(tape), params)


def _plain(model: Model, params: Params, batch: Batch) -> Tensor:
    return model.outputs(params, model.spared(batch))  # what is evaluated may be a view of the test set


def _forward(tape: Tape, lasts: Sequence[Sequence[int]], params: Params, batch: Batch) -> Tensor:
    things = given(tape, params, batch)
    for step, last in zip(tape.steps, lasts, strict=True):
        things[step.made], _ = step.op.forward(*[things[number] for number in step.given])
        for number in last:
            things[number] = None
    found: Tensor = things[tape.losses]
    return found


def _lasts(tape: Tape) -> list[list[int]]:
    """What each step is the last one to need."""
    needed, found = {tape.losses}, list[list[int]]()
    for step in reversed(tape.steps):
        found.append([number for number in set(step.given) if number not in needed])
        needed.update(step.given)
    return found[::-1]


@dataclass(frozen=True)
class _Linear(Op):
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Any]:
        if weight.shape[0] not in _NARROW or weight.shape[1] > _SHORT:
            return F.linear(x, weight, bias), None
        found = torch.mm(weight, x.reshape(-1, x.shape[-1]).t())  # (o, n)
        if bias is not None:
            found.add_(bias.unsqueeze(1))
        return found.t().view(*x.shape[:-1], -1), None

    def backward(self, grad: Tensor, kept: Any, wanted: Sequence[bool]) -> Grads:
        raise NotImplementedError


_RULES: Mapping[Callable[..., Any], Callable[..., Call]] = {**RULES_ALONE, F.linear: linear_of(_Linear())}
