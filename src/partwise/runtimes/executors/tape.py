"""A model's losses as a list of operations, noted once and run without autograd afterwards.

Of a small model's step, most is what autograd and modules do around the arithmetic. What a model does is noted by
having it compute the losses of a few examples, while every function of torch that it calls is looked up in a table of
those whose gradient is known (`rules`). A model that calls another one, or that asks how many examples there are, is
left to autograd.

Shapes: A clients, b examples of each.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from partwise.core.model import Model, Params, Values
from partwise.core.population import Batch
from partwise.runtimes.devices import states_of_chance
from partwise.runtimes.executors.engines import beyond, collected
from partwise.runtimes.executors.factors import Factors
from partwise.runtimes.executors.folded import Fold, Held, UnstackableError
from partwise.runtimes.executors.rules import QUERIES, RULES, Call, Op

__all__ = ["Step", "Tape", "Taped", "given", "recorded", "replayed"]

Rules = Mapping[Callable[..., Any], Callable[..., Call]]


class Step(NamedTuple):
    """An operation, the numbers of what it is given and of what it makes, and which of the former want a gradient."""

    op: Op
    given: tuple[int, ...]
    made: int
    wanted: tuple[bool, ...]


class Tape(NamedTuple):
    """What a model does, as operations on numbered things.

    Args:
        columns: of the batch, and the number of each.
        parameters: name -> number.
        steps: in order.
        losses: their number, or that of the outputs.
        size: how many numbers there are.
    """

    columns: Mapping[str, int]
    parameters: Mapping[str, int]
    steps: Sequence[Step]
    losses: int
    size: int


def recorded(
    model: Model,
    params: Params,
    batch: Batch,
    names: Collection[str],
    rules: Rules = RULES,
    *,
    outputs: bool = False,
) -> Tape:
    """What a model does.

    Args:
        model: the model.
        params: of one client.
        batch: some examples.
        names: what gets a gradient.
        rules: of the functions that are known. With `RULES`, parameters will be `Held`: only what takes them may use
            them.
        outputs: whether the model's outputs are wanted in place of its losses, and no gradient of them.

    Raises:
        UnstackableError: it does something of which the gradient is not known here.
    """
    own = {name: t.detach().view_as(t) for name, t in params.items()}  # tensors of its own, told apart by identity
    columns = {name: t.view_as(t) for name, t in batch.items()}
    recorder = _Recorder(own, columns, names, rules)
    device = next((t.device for t in own.values()), torch.device("cpu"))
    before, elsewhere = states_of_chance(device), _chance_elsewhere()
    with torch.no_grad(), recorder:
        found = model.outputs(own, columns) if outputs else model.losses(own, columns)
    is_drawn = elsewhere != _chance_elsewhere() or not all(map(torch.equal, before, states_of_chance(device)))
    if is_drawn:  # a number that was drawn decides what comes next
        raise UnstackableError("what draws at random has no gradient here")
    return recorder.tape(found, is_wanted=not outputs)


def _chance_elsewhere() -> tuple[object, ...]:
    """The states of Python's and numpy's generators, which some models draw from."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - that of the functions that draw from the global one
    return random.getstate(), name, np.asarray(keys).tobytes(), *rest


class _Recorder(TorchFunctionMode):
    def __init__(self, params: Params, batch: Batch, names: Collection[str], rules: Rules) -> None:
        super().__init__()
        self._rules, self._is_folded = rules, rules is RULES
        self._things: list[Tensor] = [*params.values(), *batch.values()]  # kept, so that no id comes twice
        self._numbers = {id(t): number for number, t in enumerate(self._things)}
        self._names, self._columns = list(params), list(batch)
        self._wanted = [*(name in names for name in params), *(False for _ in batch)]
        self._steps: list[Step] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in QUERIES or not any(id(t) in self._numbers for t in _tensors([*args, *kwargs.values()])):
            return func(*args, **kwargs)
        if func not in self._rules:
            raise UnstackableError(f"{getattr(func, '__name__', func)} has no gradient here")
        try:
            op, given = self._rules[func](*args, **kwargs)
        except TypeError as error:  # arguments that the rule does not know
            raise UnstackableError(f"{getattr(func, '__name__', func)}: {error}") from error
        found = func(*args, **kwargs)
        numbers = tuple(self._number(t, op, place) for place, t in enumerate(given))
        wanted = tuple(self._wanted[number] for number in numbers)
        if any(wanted) and not op.is_differentiable:
            raise UnstackableError("the gradient of a conversion is not known here")
        self._steps.append(Step(op, numbers, len(self._things), wanted))
        self._numbers[id(found)] = len(self._things)
        self._things.append(found)
        self._wanted.append(any(wanted))
        return found

    def _number(self, thing: object, op: Op, place: int) -> int:
        number = self._numbers.get(id(thing), -1)
        is_parameter = number < len(self._names)
        if number < 0 or (self._is_folded and is_parameter != (op.takes_parameters and place > 0)):
            raise UnstackableError("an operation on something else than it is known for")
        return number

    def tape(self, losses: Tensor, *, is_wanted: bool) -> Tape:
        number = self._numbers.get(id(losses), -1)
        if number < 0 or (is_wanted and (not self._wanted[number] or losses.dim() != 1)):
            raise UnstackableError("losses that do not come of the parameters")
        columns = {name: len(self._names) + i for i, name in enumerate(self._columns)}
        parameters = {name: i for i, name in enumerate(self._names)}
        return Tape(columns, parameters, tuple(self._steps), number, len(self._things))


def _tensors(things: Sequence[object]) -> Iterator[object]:
    for thing in things:
        if isinstance(thing, tuple | list):
            yield from _tensors(thing)
        else:
            yield thing


def given(tape: Tape, params: Mapping[str, Any], batch: Batch) -> list[Any]:
    """Room for all things of a tape, with those that it begins with."""
    things: list[Any] = [None] * tape.size
    for name, number in tape.columns.items():
        things[number] = batch[name]
    for name, number in tape.parameters.items():
        things[number] = params[name]
    return things


def replayed(
    tape: Tape, params: Mapping[str, Any], batch: Batch, shares: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Losses, one per example, and the gradients of things; of parameters that are `Held`, they have received theirs.

    Args:
        tape: what to do.
        params: name -> what stands for the parameter.
        batch: the examples.
        shares: of the losses: how much of each is in what the gradients are of.
    """
    things, kept = given(tape, params, batch), list[Any]()
    for op, inputs, made, _ in tape.steps:
        things[made], known = op.forward(*[things[number] for number in inputs])
        kept.append(known)
    losses: Tensor = things[tape.losses]
    grads: list[Tensor | None] = [None] * tape.size
    grads[tape.losses] = shares(losses)
    own: set[int] = set()  # whose gradients nobody else has, so that others may be added to them
    for (op, inputs, made, wanted), known in zip(reversed(tape.steps), reversed(kept), strict=True):
        grad = grads[made]
        if grad is None or not any(wanted):
            continue
        grads[made] = None
        for number, more in zip(inputs, op.backward(grad, known, wanted), strict=False):
            if more is None:
                continue
            before = grads[number]
            if before is None:
                grads[number] = more
                if op.is_fresh:
                    own.add(number)
            elif number in own:
                before.add_(more)
            else:
                grads[number] = before + more
                own.add(number)
    return losses, grads


@dataclass
class Taped:
    """The clients folded into the batch, as `Folded` does it, and no autograd.

    Args:
        tape: of the model.
        factors: on parameters, in the loss.
        names: what gets a gradient.
        num_rows: table -> rows of every client, (C,), where they may differ.
        kept: name -> what is kept as factors.
        linear: name -> rows of each example, of what the last call used by one linear map alone.
    """

    tape: Tape
    factors: Mapping[str, float]
    names: Sequence[str]
    num_rows: Mapping[str, Tensor]
    kept: Mapping[str, Factors] = field(default_factory=dict)
    bad: list[Tensor] = field(default_factory=list)
    linear: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, values: Values, batch: Batch, shares: Tensor, lr: float) -> tuple[Tensor, Values | None]:
        """Losses (A,) and gradients; where `lr` is not 0, plain SGD has been applied and there are none."""
        clients, width = shares.shape
        fold = Fold(clients, width, -1.0 if lr else 0.0, shares)
        held = {
            n: Held(fold, t, n in self.names, self.factors.get(n, 1.0), n in self.num_rows, self.kept.get(n))
            for n, t in values.items()
        }
        with torch.no_grad():
            # The gradient of the sum of the clients' means; with SGD within the backward pass, the step itself, so that
            # nothing is multiplied by the rate afterwards.
            first = shares.reshape(-1) * -lr if lr else shares.reshape(-1)
            losses, _ = replayed(self.tape, held, batch, lambda _: first)
            means = (losses.view(clients, width) * shares).sum(1)
            self.linear = {n: held[n].rows // width for n in self.names if held[n].rows}
            for name, parameter in held.items():
                if parameter.bounds:
                    self.bad += beyond(parameter, self.num_rows.get(name))
            return means, collected(held, values, self.names, fold.lr)
