"""Federated rank learning: weights stay random, clients vote for the order in which edges matter.

Shapes and notation: a parameter has n edges; place 0 is the least important. theta are its fixed weights, sigma the
scores that belong to the places 0..n-1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.index import Index, Whole, shapes_of
from partwise.core.limits import Limit
from partwise.core.model import Params, Values
from partwise.core.plan import LocalPlan, ModelLoss, Trained
from partwise.core.population import Census
from partwise.core.rank_vote import RankVote, places_by
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update
from partwise.local import SGD, EdgePopup, LocalTraining
from partwise.local.losses import top_edges

__all__ = ["FedRank"]

_MOST_EDGES = 1 << 24  # up to here every place is a 32-bit float, and so is the score of every place one of its own


@dataclass(frozen=True)
class FedRank(Algorithm):
    """FRL: a client learns which edges of a random network matter, and sends nothing but their order.

    theta = ±gain / sqrt(fan_in), fixed, with the signs of the model's first weights. A client trains scores, from sigma
    at the places that it is given, where the loss is that of theta on the `keep` edges of each parameter with the
    largest scores; it votes for the order of what it ends with. The server adds up places (`RankVote`): every client
    has one vote, however long it trains and whatever it makes up.

    What is sent is the stream `places`. `model` is the network that is evaluated, saved and used, theta on the `keep`
    edges with the highest places. Client chains have nothing to do here: a vote is whole or none.

    Args:
        local: how a client trains scores. Default: batches of 8, 2 epochs, SGD with learning rate 0.4 that falls by a
            thousandth every version, momentum 0.9 and weight decay 1e-4.
        keep: share of the edges of each parameter that the network uses, in (0, 1]; with 1 nothing can be learnt.
        gain: of the fixed weights, > 0; sqrt(2) goes with ReLU.
        abs_scores: use the edges with the largest sizes of scores, which lie at both ends of the order, as the authors'
            code does; the paper uses the highest places.

    Raises:
        ValueError: a model that cannot be ranked, when its run begins or, if it has floating buffers, by each client.

    Source: Mozaffari, Shejwalkar, Houmansadr, "Every vote counts: ranking-based training of federated learning to
        resist poisoning attacks", USENIX Security 2023, arXiv:2110.04350, algorithm 1.
    Differs: sigma are the quantiles of the uniform distribution in ±1/sqrt(fan_in) instead of n draws from it. The
        first order is that of the sizes of the model's first weights. Biases and all else of fewer than two axes, which
        the paper's networks do not have, stay as they begin. The rate does not fall within a task.

    Example:
        >>> FedRank(keep=0.3).aggregators()
        {'places': RankVote()}
    """

    local: LocalTraining = field(
        default_factory=lambda: LocalTraining(
            SGD(lr=0.4, momentum=0.9, weight_decay=1e-4), batch_size=8, epochs=2, lr_decay=0.999
        )
    )
    keep: float = 0.5
    gain: float = math.sqrt(2)
    abs_scores: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"FedRank(keep={self.keep}): must lie in (0, 1], got {self.keep}. 0.5 is usual.")
        if not self.gain > 0:
            raise ValueError(f"FedRank(gain={self.gain}): must be above 0, got {self.gain}. sqrt(2) goes with ReLU.")

    @property
    def needs_fresh(self) -> bool:
        return True

    @property
    def mirrors(self) -> bool:
        return True

    def limit(self, stream: str) -> Limit:
        return Limit(weight=1.0)

    def weight(self, site: Site) -> float:
        return 1.0

    def init(self, params: Params, census: Census) -> ServerState:
        ranked = {name: params[name] for name in _ranked(params)}
        if not ranked:
            raise ValueError(
                f"FedRank(): needs a parameter of two axes or more to rank, got {sorted(params)}. Use FedAvg."
            )
        for name, first in ranked.items():
            _check_rankable(name, first)
        places = {name: places_by(t.abs()) for name, t in ranked.items()}
        state = {
            "model": {name: t.clone() for name, t in params.items()},
            "places": {name: t.float() for name, t in places.items()},
            "weights": self._weights(params),
        }
        return self._with_network(state)

    def _weights(self, params: Params) -> Values:
        """Name -> theta."""
        sizes = {name: self.gain / math.sqrt(_fan_in(params[name])) for name in _ranked(params)}
        return {n: torch.where(params[n] < 0, -size, size).to(params[n]) for n, size in sizes.items()}

    def _with_network(self, state: ServerState) -> ServerState:
        """The state with the network that its places stand for."""
        for name, scores in _scores(state["places"]).items():
            mask = top_edges(scores, self.keep, abs_scores=self.abs_scores)
            state["model"][name] = state["weights"][name] * mask
        return state

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        return {"model": Whole({}), "places": Whole(shapes_of(site.like, _ranked(site.like)))}

    def receive(
        self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, Values]:
        return {"model": _scores(held["places"]), "places": held["places"]}

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        buffers = sorted(site.model.buffers())
        if buffers:
            raise ValueError(
                f"FedRank(): has no place for what moves by itself, got the buffers {buffers}. Build the model without "
                "running statistics, such as BatchNorm2d(..., track_running_stats=False)."
            )
        first = site.model.init(site.seed)
        weights = self._weights(first)
        fixed = {name: t for name, t in first.items() if name not in weights}
        loss = EdgePopup(ModelLoss(site.model), weights, fixed, self.keep, self.abs_scores)
        return self.local.plan(site, task, loss=loss)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        value = {}
        for name, places in held["places"].items():
            scores = held["model"][name] + trained.change[name]
            if not scores.isfinite().all():
                raise ValueError(f"client {site.client}: scores must be finite, got others. Lower the learning rate.")
            value[name] = places_by(scores) - places
        return {"places": Update(Whole(shapes_of(value)), value, 1.0)}, own

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"places": RankVote()}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        total = totals["places"]
        total.index.scatter_add_(state["places"], total.values())
        return self._with_network(state)


def _ranked(params: Params) -> list[str]:
    """The parameters whose edges are ranked."""
    return [name for name, t in params.items() if t.dim() > 1]


def _fan_in(weight: Tensor) -> int:
    return math.prod(weight.shape[1:])


def _scores(places: Params) -> Values:
    """Name -> sigma at the places: the score of place p is (2 p + 1 - n) / n times 1 / sqrt(fan_in)."""
    found = {}
    for name, t in places.items():
        step = 1 / (t.numel() * math.sqrt(_fan_in(t)))
        found[name] = t.double().mul_(2).add_(1 - t.numel()).mul_(step).float()
    return found


def _check_rankable(name: str, first: Tensor) -> None:
    if not 0 < first.numel() <= _MOST_EDGES:
        raise ValueError(
            f"FedRank(): ranks parameters of 1 to {_MOST_EDGES} edges, got {name!r} with {first.numel()}. Divide the "
            "layer into several, or use FedAvg."
        )
    if not first.any():
        raise ValueError(
            f"FedRank(): takes the signs of its fixed weights from the model's first ones, got {name!r}, which begins "
            "at 0 everywhere. Initialise it at random."
        )
