"""What the server itself can try: the loss and its gradient on examples that it holds, to judge updates by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from partwise.core.errors import CompositionError
from partwise.core.model import Model, Params, Values
from partwise.core.population import Batch, Dataset
from partwise.core.rng import generator

__all__ = ["MakeProbe", "ModelProbe", "Predictor", "Probe", "Probed", "probed"]


@runtime_checkable
class Probe(Protocol):
    """A loss that the server can compute; calls with the same number see the same examples."""

    def loss(self, params: Params, number: int) -> float:
        """The mean loss on draw `number`."""
        ...

    def gradient(self, params: Params, number: int) -> Values:
        """Its gradient, name -> tensor."""
        ...


@runtime_checkable
class Predictor(Protocol):
    """What a model makes of examples that the server holds, without their labels."""

    def scores(self, params: Params, number: int, shift: torch.Tensor | None = None) -> torch.Tensor:
        """Of the examples of draw `number`, (b, classes), as a function of the parameters and of the shift.

        Args:
            params: the model.
            number: of the draw.
            shift: added to every example's first input.
        """
        ...

    def blank(self) -> torch.Tensor:
        """A shift of zero."""
        ...

    def buffers(self) -> frozenset[str]:
        """Names of parameters that are no weights, such as running statistics."""
        ...


MakeProbe = Callable[[int], Probe]  # of the number of examples in a draw; 0 for all there are


@runtime_checkable
class Probed(Protocol):
    """A part that judges updates by a probe, or has one inside it that does."""

    def probed(self, make: MakeProbe) -> Any:
        """The same part with its probe."""
        ...


def probed(part: Any, make: MakeProbe) -> Any:
    """A part with its probe, if it wants one."""
    return part.probed(make) if isinstance(part, Probed) else part


@dataclass(frozen=True, eq=False)
class ModelProbe:
    """A model's mean loss on examples that the server holds; running statistics are not touched.

    Args:
        model: whose loss.
        data: the server's examples.
        examples: in a draw; 0 for all of them.
        seed: of the draws.
    """

    model: Model = field(repr=False)
    data: Dataset = field(repr=False)
    examples: int = 0
    seed: int = 0

    def loss(self, params: Params, number: int) -> float:
        """The mean loss on draw `number`, with the model as it is evaluated."""
        with torch.no_grad():
            return float(self._loss(params, number))

    def gradient(self, params: Params, number: int) -> Values:
        """Its gradient; zero for what the loss does not depend on."""
        buffers = self.model.buffers()
        moving = {n: t.detach().clone().requires_grad_(n not in buffers) for n, t in params.items()}
        wanted = [name for name in moving if name not in buffers]
        grads = torch.autograd.grad(self._loss(moving, number), [moving[n] for n in wanted], allow_unused=True)
        found = {n: torch.zeros_like(t) for n, t in params.items()}
        return found | {n: g for n, g in zip(wanted, grads, strict=True) if g is not None}

    def scores(self, params: Params, number: int, shift: torch.Tensor | None = None) -> torch.Tensor:
        """What the model makes of draw `number`, with the model as it is evaluated.

        Raises:
            CompositionError: the first input is no numbers that a shift could be added to.
        """
        batch, first = self._shiftable(number), self.model.inputs[0]
        if shift is not None:
            batch[first] = batch[first] + shift
        return self.model.outputs(params, batch, training=False)

    def blank(self) -> torch.Tensor:
        """A shift of zero.

        Raises:
            CompositionError: as `scores`.
        """
        return torch.zeros_like(self._shiftable(0)[self.model.inputs[0]][0])

    def _shiftable(self, number: int) -> dict[str, torch.Tensor]:
        batch, first = dict(self._batch(number)), self.model.inputs[0]
        if not batch[first].is_floating_point():
            raise CompositionError(
                f"ModelProbe(): inputs are shifted where they are floating numbers, got {batch[first].dtype} in "
                f"{first!r}. Use another rule for this model."
            )
        return batch

    def buffers(self) -> frozenset[str]:
        """The model's floating buffers."""
        return self.model.buffers()

    def _loss(self, params: Params, number: int) -> torch.Tensor:
        return self.model.losses(params, self._batch(number), training=False).mean()

    def _batch(self, number: int) -> Batch:
        count = len(self.data)
        at = torch.arange(count)
        if 0 < self.examples < count:
            at = torch.randperm(count, generator=generator(self.seed, "probe", number))[: self.examples]
        return self.data.batch(at)
