"""Rank voting: clients send orders, the server adds up places; nobody counts for more than one vote.

Shapes and notation: a parameter has n edges; K clients; pos_i[e] is the place of edge e with client i, 0 the lowest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from partwise.core.aggregate import Sum
from partwise.core.index import Whole, shapes_of
from partwise.core.model import Params, Values
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, is_finite

__all__ = ["RankVote", "places_by", "places_of", "vote"]


def places_of(order: Tensor) -> Tensor:
    """The place of each edge in an order, (n,) int64. order: (n,) edges from the lowest.

    Raises:
        ValueError: an edge is left out or named twice.

    Example:
        >>> places_of(torch.tensor([2, 0, 1]))
        tensor([1, 2, 0])
    """
    places = order.argsort(stable=True)
    if not torch.equal(order.to(torch.int64)[places], torch.arange(len(order), device=order.device)):
        raise ValueError(
            f"places_of(): an order must name each edge once, got {order[:8].tolist()}…. Send argsort of the scores."
        )
    return places


def places_by(scores: Tensor) -> Tensor:
    """The place of each edge in the order of scores, int64, of their shape; ties go to the edge with the lower number.

    Example:
        >>> places_by(torch.tensor([[0.5, -1.0], [2.0, 0.5]]))
        tensor([[1, 0],
                [3, 2]])
    """
    return places_of(scores.reshape(-1).argsort(stable=True)).reshape(scores.shape)


def vote(places: Sequence[Tensor]) -> Tensor:
    """The place of each edge by the sum of its places, (n,) int64; ties go to the edge with the lower number."""
    total = torch.stack([p.to(torch.int64) for p in places]).sum(0)
    return places_by(total)


@dataclass(frozen=True)
class RankVote:
    """A parameter holds the places 0..n-1 of its edges; its next value is their order by the sum of clients' places.

    A client's update is its places minus those it was given, as every update is end minus start. Whoever does not
    send each place once, in every parameter, does not vote: the bound on what one client can do, n - 1 places of an
    edge, would not hold for it. Weights are not used. The vote is over all edges: updates must hold whole parameters.

    Source: Mozaffari, Shejwalkar, Houmansadr, "Every vote counts: ranking-based training of federated learning to
        resist poisoning attacks", USENIX Security 2023, arXiv:2110.04350, algorithm 1.

    Example:
        >>> start = torch.tensor([0.0, 1.0, 2.0])
        >>> sent = [torch.tensor(p) - start for p in ([2.0, 0.0, 1.0], [2.0, 1.0, 0.0], [1.0, 0.0, 2.0])]
        >>> updates = [Update(Whole({"r": (3,)}), {"r": v}) for v in sent]
        >>> start + RankVote().reduce(updates, (), {"r": start})[0].values()["r"]
        tensor([2., 0., 1.])
    """

    needs: ClassVar[Literal["sum", "each"]] = "each"

    def init(self, params: Params, census: Census) -> Any:
        return ()

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert not isinstance(got, Sum)
        votes = [places for update in got if (places := _places(update, params)) is not None]
        value: Values = {}
        for name, like in params.items() if votes else ():
            order = vote([places[name] for places in votes]).reshape(like.shape)
            value[name] = (order - like.double().round()).to(like)
        return Update(Whole(shapes_of(params, value)), value, float(len(votes))), state


def _places(update: Update, params: Params) -> dict[str, Tensor] | None:
    """Name -> the places that a client votes for; None for who votes for something else."""
    if update.index.shapes.keys() != params.keys() or any(map(update.index.grain, params)) or not is_finite(update):
        return None
    found = {}
    for name, value in update.values().items():
        places = (params[name].double() + value.double()).reshape(-1)
        whole = places.round()
        is_vote = bool((places == whole).all()) and torch.equal(
            whole.sort().values, torch.arange(len(whole), dtype=torch.float64, device=whole.device)
        )
        if not is_vote:
            return None
        found[name] = whole.to(torch.int64)
    return found
