"""Counting the population: who holds what, and what each client counts for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from partwise.core.aggregate import Coverage
from partwise.core.algorithm import Task
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Rows, Whole
from partwise.core.limits import Limit, Limiting, stages
from partwise.core.population import Client, Counts
from partwise.programs.schema import indexed

if TYPE_CHECKING:
    from partwise.core.model import Params
    from partwise.core.transform import Transform
    from partwise.programs.star import Star

__all__ = ["check_countable", "count"]

_TOGETHER = 1 << 16  # rows of clients that are counted at once: one by one, a million clients take twice as long


def check_countable(star: Star) -> None:
    """Refuse to count clients that do not say what they hold.

    Raises:
        CompositionError: they do not: each count would be one more answer, and it would count who asks.
    """
    if star.algorithm.hides_holders:
        raise CompositionError(
            f"{star.algorithm!r}: does not say who holds what, got a part that divides by how many clients of the "
            "population hold a row. Use FedSubAvg('count'), or another mean over those who answer."
        )


def count(star: Star, clients: Sequence[Client] | None = None) -> Counts:
    """Ask every client, or some, once which part it would hold at version 0, and add up.

    A client counts for what its update of stream `model` will count for, behind its chain.

    A simulation may look; on a network every node counts its own clients, and the server adds up.

    Raises:
        CompositionError: clients do not say what they hold.
    """
    check_countable(star)
    tally, total, chain = _Tally(star.like), 0.0, star.chain("client", "model")
    for client in star.population.clients if clients is None else clients:
        site = star.site(client)
        own = star.algorithm.client_init(site)
        index = indexed(star.algorithm, star.algorithm.select(Task(-1, 0, 0, 0), own, site))
        amount = _bounded(star.algorithm.weight(site), chain)
        total += amount
        tally.add_(index, amount)
    heat, weight = tally.take()
    for cover in (heat, weight):
        for name in star.like:
            cover.allocate_(name, 0)  # also what nobody holds
    return Counts(heat.weights, weight.weights, total)


def _bounded(weight: float, chain: Transform) -> float:
    """A weight as a client chain leaves it; a part that says nothing of weights leaves them alone."""
    for stage in stages(chain):
        if isinstance(stage, Limiting):
            weight = min(weight, stage.limited(Limit(weight=weight)).weight)
    return weight


class _Tally:
    """Clients and their weights per coordinate; whole parameters and rows are counted for many clients at once."""

    def __init__(self, like: Params) -> None:
        cpu = torch.device("cpu")
        self._like = like
        self._heat, self._weight = Coverage(like, cpu), Coverage(like, cpu)
        self._rows: dict[str, tuple[list[Tensor], list[float]]] = {}
        self._waiting = 0

    def add_(self, index: Index, amount: float) -> None:
        """One more client."""
        if isinstance(index, Whole | Rows):
            rows = index.rows if isinstance(index, Rows) else dict.fromkeys(index.shapes)
            for name, at in rows.items():
                if at is None:
                    self._heat.add_all_(name, 1.0)
                    self._weight.add_all_(name, amount)
                else:
                    parts, amounts = self._rows.setdefault(name, ([], []))
                    parts.append(at)
                    amounts.append(amount)
                    self._waiting += len(at)
        else:
            self._heat.add_(index, 1.0)
            self._weight.add_(index, amount)
        if self._waiting > _TOGETHER:
            self._flush()

    def take(self) -> tuple[Coverage, Coverage]:
        """How many clients hold each coordinate, and their weights."""
        self._flush()
        return self._heat, self._weight

    def _flush(self) -> None:
        for name, (parts, amounts) in self._rows.items():
            at = torch.cat(parts).cpu()
            lengths = torch.tensor([len(part) for part in parts])
            weights = torch.tensor(amounts, dtype=torch.float64).repeat_interleave(lengths)
            for cover, each in ((self._heat, torch.ones_like(weights)), (self._weight, weights)):
                cover.allocate_(name, 1)
                target = cover.weights[name]
                each = each.reshape(-1, *(1,) * (target.dim() - 1)).expand(-1, *target.shape[1:])
                target.index_add_(0, at, each)
        self._rows.clear()
        self._waiting = 0
