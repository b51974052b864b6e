"""FoolsGold: clients whose updates, summed over rounds, point the same way count for less.

Shapes and notation: m updates; H_i is the sum of all updates of client i; cs (m, m) their cosines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from partwise.aggregators.columns import combine, finite, only, senders
from partwise.aggregators.geometry import inner_products
from partwise.core.aggregate import Sum, sum_updates
from partwise.core.checks import at_least
from partwise.core.model import Params
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["FoolsGold", "Histories", "check_kappa", "foolsgold_weights", "raw_weights", "told_who", "with_histories"]

_NONE = 1e-12  # of a largest weight, below which all clients are alike


Histories = dict[int, Update]  # client -> the sum of its updates


def foolsgold_weights(cosines: Tensor, kappa: float = 1.0, num: int | None = None) -> tuple[Tensor, bool]:
    """The weight of each client in 0..1, and whether all are so alike that they cannot be told apart.

    Args:
        cosines: (m, m) float64, of the clients' summed updates.
        kappa: κ, steepness.
        num: how many get a weight, the first ones; the others are only compared with. All by default.

    Example:
        >>> foolsgold_weights(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).double())[0]
        tensor([0., 0., 1.], dtype=torch.float64)
    """
    raw = raw_weights(cosines)[:num]
    if not len(raw):
        return raw, False
    if float(raw.max()) < _NONE:
        return torch.ones_like(raw), True
    share = (raw / raw.max()).clamp(max=0.99)
    return (kappa * ((share / (1 - share)).log() + 0.5)).clamp(0.0, 1.0), False


def raw_weights(cosines: Tensor) -> Tensor:
    """1 - the largest cosine to another, less where that one is more like others still: before any steepness.

    Example:
        >>> raw_weights(torch.tensor([[1.0, 0.6], [0.6, 1.0]]).double())
        tensor([0.4000, 0.4000], dtype=torch.float64)
    """
    if len(cosines) < 2:
        return torch.ones(len(cosines), dtype=torch.float64)
    alike = cosines.clone().fill_diagonal_(0.0)
    most = alike.max(1).values
    pardon = torch.where(most.unsqueeze(1) < most, most.unsqueeze(1) / most.clamp(min=_NONE), 1.0)
    return (1 - (alike * pardon).max(1).values).clamp(0.0, 1.0)


def check_kappa(part: object, kappa: float) -> None:
    """Refuse a steepness that is not above 0."""
    if not 0 < kappa < math.inf:
        raise ValueError(f"{type(part).__name__}(kappa={kappa}): must be finite and above 0, got {kappa}. Use 1.")


def told_who(
    part: object, got: Sequence[Update], replies: Sequence[ReplyInfo], names: Sequence[str], params: Params
) -> tuple[list[Update], list[int]]:
    """The finite updates and their senders.

    Raises:
        ValueError: it is not told who sent them, or `names` are not the model's.
    """
    if len(replies) != len(got):
        raise ValueError(
            f"{part!r}: needs to know who sent each update, got {len(got)} updates and {len(replies)} senders. "
            "Give reduce the replies."
        )
    unknown = [name for name in names if name not in params]
    if unknown:
        raise ValueError(f"{part!r}: names must be parameters of the model, got {unknown}. It has {sorted(params)}.")
    return finite(got, len(got), part), [reply.client for reply in senders(got, replies)]


def with_histories(
    state: Mapping[int, Update],
    updates: Sequence[Update],
    clients: Sequence[int],
    params: Params,
    names: Sequence[str],
) -> Histories:
    """The sums with these updates added, of some parameters or, with no names, all; who sent one comes last."""
    state = dict(state)
    for client, update in zip(clients, updates, strict=True):
        before = [state.pop(client)] if client in state else []
        own = only(update, names) if names else Update(update.index, update.value)
        total = sum_updates([*before, own], params)
        state[client] = Update(total.index, total.value)
    return state


@dataclass(frozen=True)
class FoolsGold:
    """A mean in which clients count for less, the more the sums of all their updates point the same way.

    Against crowds of any size that want the same: it needs clients with data of their own, no honest majority, and no
    number of the faulty. It fails against one attacker alone, and where honest clients are alike. Cosines are those
    over the overlap; a coordinate is the weighted mean over its holders. Where all are alike, all count the same, and
    the run's record says `all_alike`. On MNIST split by Dirichlet(0.5), without any hostile client, it lost 2 points
    of accuracy to the mean.

    Args:
        kappa: κ, how steeply weights fall, > 0.
        names: the parameters that are compared; none for all. The last layer's tell goals apart best.
        min_overlap: of what is compared, coordinates that a pair must share, >= 1, and at least 5 % of the smaller.
        min_holders: how many must hold a coordinate for it to move, >= 1.

    Source: Fung, Yoon, Beschastnikh, "The limitations of federated learning in Sybil settings", RAID 2020,
        arXiv:1808.04866, algorithm 1.
    Differs: submodels; weights are normalised, so that one client's word does not make the step shorter.

    Example:
        >>> from partwise.core.index import Whole
        >>> rows = ([1.0, 0.0], [1.0, 0.0], [0.0, 3.0])
        >>> updates = [Update(Whole({"w": (2,)}), {"w": torch.tensor(row)}) for row in rows]
        >>> replies = [ReplyInfo(i, i, 0, 1, 1) for i in range(3)]
        >>> part, params = FoolsGold(), {"w": torch.zeros(2)}
        >>> part.reduce(updates, part.init(params, Census(3)), params, replies)[0].value["w"]
        tensor([0., 3.])
    """

    kappa: float = 1.0
    names: tuple[str, ...] = ()
    min_overlap: int = 1
    min_holders: int = 1
    needs: ClassVar[Literal["sum", "each"]] = "each"
    needs_senders: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_kappa(self, self.kappa)
        at_least(self, min_overlap=1, min_holders=1)

    def init(self, params: Params, census: Census) -> tuple[Histories, bool]:
        """Client -> the sum of its updates; and whether all of the last commit were alike."""
        return {}, False

    def reduce(
        self,
        got: Sum | Sequence[Update],
        state: tuple[Histories, bool],
        params: Params,
        replies: Sequence[ReplyInfo] = (),
    ) -> tuple[Update, tuple[Histories, bool]]:
        assert not isinstance(got, Sum)
        updates, clients = told_who(self, got, replies, self.names, params)
        histories = with_histories(state[0], updates, clients, params, self.names)
        present = list(dict.fromkeys(clients))  # of two updates of one client, neither is a Sybil's
        sums = [histories[client] for client in present]
        cosines = inner_products(sums, params, min_overlap=self.min_overlap)[1]
        weights, is_alike = foolsgold_weights(cosines, self.kappa)
        each = weights[[present.index(client) for client in clients]]
        return combine(updates, params, each, least=self.min_holders), (histories, is_alike)

    def told(self, state: tuple[Histories, bool]) -> Mapping[str, Any]:
        """That all were so alike that none could be told from another, where it is so."""
        return {"all_alike": True} if state[1] else {}
