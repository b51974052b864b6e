"""FedAT's server: a model of every tier, and among them those count most that are updated least.

Notation: M tiers, the fastest first; tier m has the model w_m and was updated T_m times, T is the sum of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from partwise.algorithms.mixing import ended
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.around import Around, check_sends_all
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Whole, shapes_of
from partwise.core.mean import Mean
from partwise.core.model import Params, Values
from partwise.core.plan import Trained
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, wide

__all__ = ["CrossTier"]


@dataclass(frozen=True)
class CrossTier(Around):
    """An algorithm in tiers: a tier's clients make its model, and the server's is a mean of the tiers' models.

    w_m <- sum of w_i x_i / sum of w_i over the clients of a round of tier m, where client i began from the server's
    model and ended with x_i (per coordinate, over those who hold it);  w <- sum over m of (T_{M+1-m} / T) w_m. So the
    slowest tier counts what the fastest one was updated, and the other way round; a tier whose counterpart has not
    answered so far counts nothing. With FedProx inside and the scheduler `Tiered` this is FedAT. The server keeps M
    models.

    Client chains see end values, and an aggregator that takes the place of the algorithm's own for `model` gets them.
    A server chain, which is for changes, is refused.

    Args:
        inner: what clients train and hold; one that sends the change that it trained, as it is.
        tiers: M, as the scheduler has it, >= 1.

    Source: Chai et al., "FedAT: a high-performance and communication-efficient federated learning system with
        asynchronous tiers", SC 2021, arXiv:2010.05958, the cross-tier weights.
    Differs: from memory, to be checked against the paper: the formula above, and FedProx's term with mu = 0.4. The
        submodel form is ours.
    """

    inner: Algorithm
    tiers: int = 3

    def __post_init__(self) -> None:
        if not self.tiers >= 1:
            raise ValueError(f"CrossTier(tiers={self.tiers}): must be at least 1, got {self.tiers}. Raise it.")
        check_sends_all(self)

    @property
    def groups(self) -> int:
        return self.tiers

    @property
    def sends_ends(self) -> bool:
        return True

    def init(self, params: Params, census: Census) -> ServerState:
        state = self.inner.init(params, census)
        stacked = {name: torch.stack([t] * self.tiers) for name, t in state["model"].items()}
        return {**state, "tiers": stacked, "updates": {"count": torch.zeros(self.tiers, dtype=torch.float64)}}

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index] | None:
        return self.asked(index, task, own, site)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        updates, own = self.inner.finish(held, trained, index, task, own, site)
        return {**updates, "model": ended(self, held["model"], updates["model"], index, trained.change)}, own

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {**self.inner.aggregators(), "model": Mean("holders")}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        numbers = {reply.group for reply in replies}
        if len(numbers) != 1 or not 0 <= min(numbers) < self.tiers:
            raise CompositionError(
                f"{self!r}: a commit must be of one tier from 0 to {self.tiers - 1}, got replies of {sorted(numbers)}. "
                f"Use the scheduler Tiered(tiers={self.tiers})."
            )
        (number,) = numbers
        total, count = totals["model"], state["updates"]["count"]
        total.index.put_({name: t[number] for name, t in state["tiers"].items()}, total.values())
        count[number] += 1
        weights = count.flip(0) / count.sum()
        step: Values = {}
        for name, now in state["model"].items():
            # The weights of a half-precision type do not sum to 1.
            flat = wide(state["tiers"][name].reshape(self.tiers, -1))
            step[name] = ((weights.to(flat) @ flat).reshape(now.shape) - now).to(now.dtype)
        whole = Update(Whole(shapes_of(step)), step, total.weight)
        return self.inner.commit(state, {**totals, "model": whole}, replies)
