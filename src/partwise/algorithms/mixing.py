"""Clients that send what they ended with, for servers that mix it into a model that has moved on meanwhile.

Notation: client i ended with x_i on what it holds and counts w_i; s_i is a scheduler's scale; w is the server's model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch

from partwise.core.aggregate import Aggregator, Sum
from partwise.core.algorithm import Algorithm, ClientState, Site, Task
from partwise.core.around import Around, check_sends_all
from partwise.core.errors import CompositionError
from partwise.core.index import Index
from partwise.core.mean import Mean
from partwise.core.model import Params, Values
from partwise.core.plan import Trained
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["Differences", "Mixing", "ended"]


def ended(part: object, held: Values, update: Update, index: Index, change: Values) -> Update:
    """An update that has end values where it had their change.

    Raises:
        CompositionError: it covers something else than what was held, or says something else than how that changed.
    """
    if update.index is not index:
        raise CompositionError(
            f"{part!r}: sends what a client ended with, on what it was sent, got an update of other coordinates. "
            "Use an algorithm that sends what it holds."
        )
    values = update.values()
    others = [name for name, t in values.items() if t is not change[name] and not torch.equal(t, change[name])]
    if others:
        raise CompositionError(
            f"{part!r}: sends what a client ended with, got another change of {others[:3]} than the client's, such as "
            "one divided by a chance or clipped. Use an algorithm that sends the change as it is."
        )
    return Update(index, {name: held[name] + t for name, t in values.items()}, update.weight)


@dataclass(frozen=True)
class Differences:
    """End values in, the step from the model towards them out.

    The sum of w_i s_i x_i becomes the sum of w_i s_i (x_i - w), and that is given to another aggregator.

    Args:
        inner: what makes a step of it. Default: the mean over the holders of each coordinate.
    """

    inner: Aggregator = field(default_factory=Mean)
    needs: ClassVar[Literal["sum", "each"]] = "sum"
    takes_ends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.inner.needs != "sum":
            raise CompositionError(
                f"Differences({self.inner!r}): takes the difference of a sum, got one that needs each update. "
                "Use a mean."
            )

    def init(self, params: Params, census: Census) -> Any:
        return self.inner.init(params, census)

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert isinstance(got, Sum)
        now = got.index.gather(params)
        value: Values = {}
        for name, total in got.value.items():
            weight = got.weight[name].to(total.device, total.dtype)
            counts = weight.clamp(min=torch.finfo(weight.dtype).tiny)  # of weight 0 nothing is left, and not NaN
            value[name] = (total / counts - now[name]) * weight  # the difference of two sums would round
        return self.inner.reduce(replace(got, value=value), state, params, replies)


@dataclass(frozen=True)
class Mixing(Around):
    """An algorithm whose clients send end values; the server moves towards them.

    w <- w + sum of w_i s_i (x_i - w) / sum of w_i, per coordinate that they hold; what nobody held stays as it is. For
    one reply and the scale a this is w <- (1 - a) w + a x, as FedAsync has it, where without this wrapper what a
    client changed is added: w <- w + a (x - x_0), with x_0 the model of some versions ago. The two are the same while
    nothing is stale. Running means and other buffers are mixed like everything else. The divisor is that of the
    algorithm's own mean: with one that counts the holders of a coordinate in the population, such as FedSubAvg's
    `heat` and `capped`, a step may go beyond x; take `count`.

    Client chains see end values, which can be quantised but neither clipped nor sparsified. An aggregator that takes
    the place of the algorithm's own for `model` gets end values: name it as `Differences(Mean(...))`.

    Args:
        inner: what clients train and hold; one that sends what it trained, such as FedAvg, FedProx, FedSubAvg,
            HeteroFL.

    Source: Xie, Koyejo and Gupta, "Asynchronous federated optimization", 2019, arXiv:1903.03934, algorithm 1.
    Differs: per coordinate, so that it is there for submodels. APPFL sets buffers to those of the last client.
    """

    inner: Algorithm

    def __post_init__(self) -> None:
        check_sends_all(self)

    @property
    def sends_ends(self) -> bool:
        return True

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        updates, own = self.inner.finish(held, trained, index, task, own, site)
        return {**updates, "model": ended(self, held["model"], updates["model"], index, trained.change)}, own

    def aggregators(self) -> Mapping[str, Aggregator]:
        found = self.inner.aggregators()
        return {**found, "model": Differences(found["model"])}
