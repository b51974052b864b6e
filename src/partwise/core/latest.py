"""The mean of every client's latest update, whether it answered in this round or long ago.

Notation: N clients, h_m of them hold coordinate m; client i's latest update is G_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from partwise.core.aggregate import Accumulator, Coverage, Running, Sum
from partwise.core.codec import register
from partwise.core.mean import check_holders
from partwise.core.model import Params, Values
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, wide_type

__all__ = ["Latest", "LatestState"]


@register
@dataclass(eq=False)
class LatestState:
    """What `Latest` remembers.

    Args:
        num_clients: N.
        heat: name -> h_m, broadcastable to the parameter; empty where all clients count.
        kept: client -> its latest update.
        total: name -> sum of all of them, float64 of the parameter's shape.
        cover: name -> how many clients are in that sum, per coordinate.
        even: name -> how many of them hold all of it, as far as they are not in `cover`.
    """

    num_clients: int
    heat: Values
    kept: dict[int, Update] = field(default_factory=dict)
    total: Values = field(default_factory=dict)
    cover: Values = field(default_factory=dict)
    even: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Latest:
    """The mean over all clients of the latest update of each, 0 where there is none.

    (1 / N) sum over all i of G_i. The server remembers N updates, of d numbers each, and two more for their sum.
    A client's weight is not looked at. Whoever answers twice in one commit counts with the later task.

    Args:
        by_heat: divide by the holders of each coordinate, h_m, instead of by N.

    Source: Gu et al., "Fast federated learning in the presence of arbitrary device unavailability", NeurIPS 2021,
        arXiv:2106.04159 (MIFA), where updates are changes of parameters; Yan et al., "Distributed non-convex
        optimization with sublinear speedup under intermittent client availability", arXiv:2002.07399, where they are
        sums of gradients.

    Example:
        >>> from partwise.core.index import Whole
        >>> params, part = {"w": torch.zeros(1)}, Latest()
        >>> state = part.init(params, Census(4))
        >>> for client, value in ((2, 6.0), (0, 2.0), (2, 10.0)):
        ...     sent = Update(Whole({"w": (1,)}), {"w": torch.tensor([value])})
        ...     mean, state = part.reduce([sent], state, params, [ReplyInfo(0, client, 0, 1, 1)])
        >>> mean.values()["w"]  # (2 + 10) / 4
        tensor([3.])
    """

    by_heat: bool = False
    needs: ClassVar[Literal["sum", "each"]] = "each"
    needs_senders: ClassVar[bool] = True

    def init(self, params: Params, census: Census) -> LatestState:
        if self.by_heat:
            check_holders(self, census.counts.heat, params)
        return LatestState(census.num_clients, dict(census.counts.heat) if self.by_heat else {})

    def reduce(
        self, got: Sum | Sequence[Update], state: LatestState, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, LatestState]:
        assert not isinstance(got, Sum)
        if len(replies) != len(got):
            raise ValueError(
                f"{self!r}: needs to know who sent each update, got {len(got)} updates and {len(replies)} senders. "
                "Give reduce the replies."
            )
        cover = Coverage(params, state=(state.cover, state.even))
        for update, reply in sorted(zip(got, replies, strict=True), key=lambda pair: pair[1].id):
            before = state.kept.get(reply.client)
            if before is not None:
                _add_(state, cover, params, before, -1.0)
            # Cloned: what a client sent may lie in memory that it shares with others, or with its own state.
            state.kept[reply.client] = Update(update.index, {n: v.clone() for n, v in update.values().items()})
            _add_(state, cover, params, state.kept[reply.client], 1.0)
        value = {n: t.to(params[n].device, wide_type(params[n].dtype)) for n, t in state.total.items()}
        running = Running(value=value, cover=dict(cover.weights))
        held = Accumulator(params, running).take()
        if not state.heat:
            value = {name: total / state.num_clients for name, total in held.value.items()}
            return Update(held.index, value, float(len(got))), state
        holders = held.index.gather({n: state.heat[n].expand(shape) for n, shape in held.index.shapes.items()})
        value = {name: total / holders[name].clamp(min=1).to(total) for name, total in held.value.items()}
        return Update(held.index, value, float(len(got))), state


def _add_(state: LatestState, cover: Coverage, params: Params, update: Update, sign: float) -> None:
    for name in update.index.shapes:
        if name not in state.total:
            state.total[name] = torch.zeros_like(params[name], dtype=torch.float64)
    # Subtracting in float64 what was added in float64 leaves an error that does not show in float32.
    update.index.scatter_add_(state.total, {n: v.double() for n, v in update.values().items()}, sign)
    cover.add_(update.index, sign)
