"""SybilWall: FoolsGold that also compares with those who are not there, so that a crowd cannot come one by one.

Shapes and notation: m updates; H_i is the sum of all updates of client i; h histories of others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from partwise.aggregators.columns import combine
from partwise.aggregators.foolsgold import Histories, check_kappa, foolsgold_weights, told_who, with_histories
from partwise.aggregators.geometry import inner_products
from partwise.core.aggregate import Sum
from partwise.core.checks import at_least
from partwise.core.index import Whole, shapes_of
from partwise.core.model import Params
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["SybilWall"]


@dataclass(frozen=True)
class SybilWall:
    """A mean of models in which clients count for less, the more like others they are, whether those are there or not.

    Weights are those of `FoolsGold` over the clients of this commit and others who were heard of before, divided by the
    largest of those that are there; the model itself counts as one more client that changed nothing. So Sybils of
    which each commit sees but one expose one another. Where all who are there are exactly like others, nothing moves.
    One client of the commit must be no Sybil: the least like the crowd counts in full, whoever it is.

    Args:
        kappa: κ, how steeply weights fall, > 0.
        own: the weight of the model itself, >= 0; a client's is at most 1. 0 leaves it out.
        remembered: how many histories of clients that are not there are kept, of those heard of last, >= 1. Each is
            of the model's size, or of what its client holds.
        names: the parameters that are compared; none for all. The last layer's tell goals apart best.
        min_overlap: as in `FoolsGold`.
        min_holders: as in `FoolsGold`.

    Source: Werthenbach, Pouwelse, "Towards Sybil resilience in decentralized learning", 2023, arXiv:2306.15044, §4.
    Differs: the star's server is the one node that trusts itself, and the histories that it remembers are those that
        gossip would bring. So nothing is passed on: the draw of a history by its distance, with weights of
        exp(-0.8 (distance - 1)), and signatures of what came from afar have no place here. A history begins with the
        first update, not the first model; submodels.

    Example:
        >>> from partwise.core.index import Whole
        >>> u = [Update(Whole({"w": (2,)}), {"w": torch.tensor(row)}) for row in ([1.0, 0.0], [0.0, 3.0], [2.0, 0.0])]
        >>> replies, part, params = [ReplyInfo(i, i, 0, 1, 1) for i in range(3)], SybilWall(), {"w": torch.zeros(2)}
        >>> _, state = part.reduce(u[:2], {}, params, replies[:2])
        >>> part.reduce(u[1:], state, params, replies[1:])[0].value["w"]  # client 2 is like client 0 was
        tensor([0.0000, 1.5000])
    """

    kappa: float = 1.0
    own: float = 1.0
    remembered: int = 100
    names: tuple[str, ...] = ()
    min_overlap: int = 1
    min_holders: int = 1
    needs: ClassVar[Literal["sum", "each"]] = "each"
    needs_senders: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_kappa(self, self.kappa)
        at_least(self, remembered=1, min_overlap=1, min_holders=1)
        if not 0 <= self.own < math.inf:
            raise ValueError(f"SybilWall(own={self.own}): must be finite and at least 0, got {self.own}. 1 is usual.")

    def init(self, params: Params, census: Census) -> Histories:
        """Client -> the sum of its updates; who was heard of last comes last."""
        return {}

    def reduce(
        self, got: Sum | Sequence[Update], state: Histories, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Histories]:
        assert not isinstance(got, Sum)
        updates, clients = told_who(self, got, replies, self.names, params)
        state = with_histories(state, updates, clients, params, self.names)
        present = list(dict.fromkeys(clients))
        others = [client for client in state if client not in clients][-self.remembered :]
        state = {client: state[client] for client in (*others, *present)}
        sums = [state[client] for client in (*present, *others)]
        cosines = inner_products(sums, params, min_overlap=self.min_overlap)[1]
        weights, is_alike = foolsgold_weights(cosines, self.kappa, len(present))
        if is_alike and others:
            weights = torch.zeros_like(weights)
        each = weights[[present.index(client) for client in clients]]
        return _with_own(updates, params, each, self.own, self.min_holders), state


def _with_own(updates: Sequence[Update], params: Params, weights: torch.Tensor, own: float, min_holders: int) -> Update:
    """The weighted mean of updates and of one that changes nothing."""
    if not own and bool(weights.sum() > 0):
        return combine(updates, params, weights, least=min_holders)
    nothing = Update(Whole(shapes_of(params)), {name: torch.zeros_like(t) for name, t in params.items()})
    every = torch.cat([weights, weights.new_tensor([own or 1.0])])
    found = combine([*updates, nothing], params, every, least=min_holders + 1)
    return Update(found.index, found.value, float(len(updates)))
