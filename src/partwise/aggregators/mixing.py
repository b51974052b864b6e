"""What is done to updates before a robust rule sees them: mixing with neighbours, and averaging in buckets.

Shapes and notation: m updates, f may be faulty.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from partwise.aggregators.columns import finite, mean_of, reduce_columns, senders
from partwise.aggregators.coordinatewise import TrimmedMean
from partwise.aggregators.geometry import compared
from partwise.aggregators.krum import ranked
from partwise.core.aggregate import Aggregator, Sum, needs_senders, sum_updates, told_by
from partwise.core.checks import at_least
from partwise.core.errors import CompositionError
from partwise.core.model import Params
from partwise.core.population import Census
from partwise.core.probe import MakeProbe, probed
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["Bucketing", "NearestNeighbours"]


def _inner(part: Aggregator, updates: Sequence[Update], params: Params) -> Sum | Sequence[Update]:
    return sum_updates(updates, params) if part.needs == "sum" else updates


@dataclass(frozen=True)
class NearestNeighbours:
    """Each update is replaced by the mean of the m - f that are nearest to it, itself among them; then a rule.

    What heterogeneous data make of honest clients, a spread that a robust rule pays for, becomes smaller. Submodels
    are compared as in `Krum`; a client's update keeps its index, each coordinate the mean over those of its
    neighbours that hold it. Equally near ones are taken in order of their values.

    Args:
        f: how many may be faulty, >= 0; needs m >= 2f + 1.
        inner: the rule.
        min_overlap: as in `Krum`.

    Source: Allouah et al., "Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity", AISTATS 2023,
        arXiv:2302.01772, algorithm 2.
    Differs: submodels.

    Example:
        >>> from partwise.core.index import Whole
        >>> updates = [Update(Whole({"w": (1,)}), {"w": torch.tensor([x])}) for x in (1.0, 2.0, 6.0)]
        >>> part, params = NearestNeighbours(f=1), {"w": torch.zeros(1)}
        >>> part.reduce(updates, part.init(params, Census(3)), params)[0].value["w"]
        tensor([1.5000])
    """

    f: int
    inner: Aggregator = field(default_factory=TrimmedMean)
    min_overlap: int = 10
    needs: ClassVar[Literal["sum", "each"]] = "each"

    def __post_init__(self) -> None:
        at_least(self, f=0, min_overlap=1)

    def init(self, params: Params, census: Census) -> Any:
        return self.inner.init(params, census)

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert not isinstance(got, Sum)
        if len(got) < 2 * self.f + 1:
            raise ValueError(
                f"NearestNeighbours(f={self.f}): needs at least 2f+1 = {2 * self.f + 1} updates, got {len(got)}. "
                "Lower f or ask a larger cohort."
            )
        updates, squared = compared(got, params, self.f, self, min_overlap=self.min_overlap)
        mixed = _mixed(updates, params, squared, len(got) - self.f)
        whose = [reply._replace(scale=1.0) for reply in senders(got, replies)]  # what is mixed was scaled before
        return self.inner.reduce(_inner(self.inner, mixed, params), state, params, whose)

    def told(self, state: Any) -> Mapping[str, Any]:
        """What the rule tells."""
        return told_by(self.inner, state)

    def probed(self, make: MakeProbe) -> Aggregator:
        """The same with a rule that has its probe."""
        return replace(self, inner=probed(self.inner, make))


def _mixed(updates: Sequence[Update], params: Params, distance: Tensor, kept: int) -> list[Update]:
    found = []
    for update, row in zip(updates, distance.clone().fill_diagonal_(-1.0), strict=True):  # nearest to each is itself
        near = _nearest(row, updates, kept)
        mean = reduce_columns([updates[k] for k in sorted(near)], params, mean_of, least=1)
        # Also of what is named and nobody holds, as where a draw of coordinates has none of a parameter.
        full = {name: torch.zeros_like(params[name]) for name in {**mean.index.shapes, **update.index.shapes}}
        mean.index.put_(full, mean.values())
        found.append(Update(update.index, update.index.gather(full)))
    return found


def _nearest(distance: Tensor, updates: Sequence[Update], kept: int) -> list[int]:
    """The nearest, `kept` at most; none that cannot be compared. distance: (m,), to all."""
    last = distance.sort().values[kept - 1]
    near = (distance < last).nonzero().reshape(-1).tolist()
    if last < torch.inf:
        ties = (distance == last).nonzero().reshape(-1).tolist()
        if len(near) + len(ties) > kept:
            ties = [ties[k] for k in ranked(distance[ties], [updates[k] for k in ties])]
        near += ties[: kept - len(near)]
    return near


@dataclass(frozen=True)
class Bucketing:
    """Updates are averaged in buckets of a few, in an order by chance; a rule then works on the buckets.

    Their means lie closer together than heterogeneous clients do. Of ⌈m / s⌉ buckets as many may be faulty as clients
    were: the rule's own f stays, and it needs so many more clients. Within a bucket a coordinate is the mean over its
    holders. The chance is derived from the seed, the round and what was sent, not from who sent it.

    Args:
        inner: the rule; not one that must know who sent each update, such as `FoolsGold` or `Latest`.
        size: s, clients in a bucket, >= 1; 1 leaves all as it is.
        seed: of the order; clients should not know it.

    Raises:
        CompositionError: a rule that must know who sent each update.

    Source: Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing", ICLR 2022,
        arXiv:2006.09365, algorithm 1.
    Differs: submodels.

    Example:
        >>> from partwise.core.index import Whole
        >>> updates = [Update(Whole({"w": (1,)}), {"w": torch.tensor([x])}) for x in (1.0, 2.0, 6.0)]
        >>> part, params = Bucketing(TrimmedMean(trim_count=0), size=3), {"w": torch.zeros(1)}
        >>> part.reduce(updates, part.init(params, Census(3)), params)[0].value["w"]
        tensor([3.])
    """

    inner: Aggregator = field(default_factory=TrimmedMean)
    size: int = 2
    seed: int = 0
    needs: ClassVar[Literal["sum", "each"]] = "each"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"Bucketing(size={self.size}): must be at least 1, got {self.size}. 2 is usual.")
        if needs_senders(self.inner):
            raise CompositionError(
                f"Bucketing(inner={self.inner!r}): hands on means of several clients, got a rule that must know who "
                "sent each update. Use one that need not, such as Median; Watch can be put around Bucketing."
            )

    def init(self, params: Params, census: Census) -> Any:
        return 0, self.inner.init(params, census)

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert not isinstance(got, Sum)
        number, inner = state
        updates = finite(got, max(0, (len(got) - 1) // 2), self)
        order = sorted(updates, key=lambda update: self._place(update, number))
        many = math.ceil(len(order) / self.size)
        buckets = [order[i::many] for i in range(many)]
        means = [replace(reduce_columns(b, params, mean_of, least=1), weight=1.0) for b in buckets]
        total, inner = self.inner.reduce(_inner(self.inner, means, params), inner, params)
        return total, (number + 1, inner)

    def _place(self, update: Update, number: int) -> bytes:
        digest = hashlib.blake2b(f"{self.seed}|bucketing|{number}".encode(), digest_size=16)
        for name, value in sorted(update.values().items()):
            digest.update(name.encode())
            digest.update(update.index.coords(name).numpy().tobytes() if update.index.grain(name) else b"")
            digest.update(value.detach().cpu().double().numpy().tobytes())
        return digest.digest()

    def told(self, state: Any) -> Mapping[str, Any]:
        """What the rule tells."""
        return told_by(self.inner, state[1])

    def probed(self, make: MakeProbe) -> Aggregator:
        """The same with a rule that has its probe."""
        return replace(self, inner=probed(self.inner, make))
