"""Error reset: what a message loses is applied to the client's own model at once, and given to all from time to time.

Notation: w is the server's model, x_i = w + e_i the client's; C1 and C2 are compressors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from partwise.algorithms.memory import NOTHING
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.codec import register
from partwise.core.compressor import Compressor, common
from partwise.core.errors import CompositionError
from partwise.core.index import Index
from partwise.core.mean import Mean, MeanBy
from partwise.core.model import Params, Values
from partwise.core.plan import LocalPlan, Trained
from partwise.core.population import Census
from partwise.core.rng import derive, generator
from partwise.core.schedule import ReplyInfo
from partwise.core.transform import Identity, Transform
from partwise.core.update import Update, is_finite, not_finite
from partwise.local import SGD, LocalTraining

__all__ = ["CSER", "Drift"]


@register
@dataclass(frozen=True, eq=False)
class Drift:
    """What a client's model has more than the server's: name -> e; nothing before it was trained."""

    value: Values = field(default_factory=dict)


@dataclass(frozen=True)
class CSER(Algorithm):
    """Local steps d from x_i = w + e_i; C2(d) is sent and w moves by its mean, e_i <- e_i + d - C2(d).

    Every `every` versions C1(e_i) is sent too: w moves by the mean of these, e_i <- e_i - C1(e_i). So x_i - e_i is
    the same for all, and the mean of the x_i moves as if nothing had been lost. With RandomK for both, all send the
    same coordinates, in blocks if it is told to. A client that does not answer keeps what it did to itself; whose
    answer is lost on the way loses it: the method is for few clients that all take part.

    Args:
        gradient: C2, without memory; None sends nothing of d. Then `reset` is the only stream: a chain for `model`, or
            an outer step such as `SignMomentum`, would have nothing to work on.
        model: C1, without memory.
        every: versions between two resets, H >= 1.
        local: how a client trains; the paper takes one step of SGD.
        submodel: clients hold only the table rows that their data touch; means are over those that hold a coordinate,
            among whom x_i - e_i is the same. Takes compressors that send the same coordinates of all clients.

    Raises:
        CompositionError: a compressor with memory; for submodels, one that sends others of every client; a client whose
            rows are not those it had.

    Source: Xie et al., "CSER: communication-efficient SGD with error reset", NeurIPS 2020, arXiv:2007.13221.
    Differs: the server holds x_i - e_i, which all have in common, so that it is sent down; the paper's workers reduce
        among themselves. Steps are of any local training: a step of SGD with rate eta is the paper's eta g.
    """

    gradient: Transform | None = None
    model: Transform = field(default_factory=Identity)
    every: int = 8
    local: LocalTraining = field(default_factory=lambda: LocalTraining(SGD(), steps=1))
    submodel: bool = False

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"CSER(every={self.every}): must be at least 1, got {self.every}. 8 is usual.")
        for part in (self.gradient, self.model):
            if part is not None and part.init({"w": torch.zeros(1)}) != ():
                raise CompositionError(
                    f"CSER(): needs compressors that keep nothing, got {part!r}. What is lost is kept by CSER."
                )
            if self.submodel and isinstance(part, Compressor) and not part.claims(2).is_common:
                raise CompositionError(
                    f"CSER(submodel=True): needs compressors that send the same of what clients share, got {part!r}, "
                    "of which a mean over those who hold a coordinate is not one over those who sent it. Use RandomK."
                )

    def init(self, params: Params, census: Census) -> ServerState:
        model = {name: t.clone() for name, t in params.items()}
        return {"model": model, "reset": {name: torch.zeros_like(t) for name, t in params.items()}}

    @property
    def sends_all(self) -> bool:
        return False  # what a compressor leaves of it

    def client_init(self, site: Site) -> ClientState:
        return Drift()

    @property
    def holds_alike(self) -> bool:
        return not self.submodel

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        index = site.touched() if self.submodel else site.whole()
        if any(own.value[name].shape != t.shape for name, t in index.gather(site.like).items() if name in own.value):
            raise CompositionError(
                f"client {site.client}: must hold the rows that it held in its last task, got others. Keep its data."
            )
        return index

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        return {"model": index}

    def weight(self, site: Site) -> float:
        return 1.0

    def personalize(self, values: Values, own: ClientState) -> Values:
        if own is None or not own.value:
            return values
        # Not of what another algorithm keeps on the client, which nothing is left of.
        return {name: t + own.value[name] if name in own.value else t for name, t in values.items()}

    @property
    def is_personal(self) -> bool:
        return False  # what is trained is the server's model; a client's differs by what was not sent yet

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        return self.local.plan(site, task)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        step = Update(index, {name: trained.change[name] for name in held["model"]})
        if not is_finite(step):  # what is kept would never be finite again
            raise not_finite(self)
        drift = own.value or {name: torch.zeros_like(t) for name, t in held["model"].items()}
        sent, left = NOTHING, step.values()
        if self.gradient is not None:
            sent, left = self._split(self.gradient, step, "gradient", task, site)
        drift = {name: t + left[name] for name, t in drift.items()}
        reset = NOTHING
        if (task.version + 1) % self.every == 0:
            reset, drift = self._split(self.model, Update(index, drift), "model", task, site)
        updates = {"reset": reset} if self.gradient is None else {"model": sent, "reset": reset}
        return updates, Drift(drift)

    def _split(
        self, part: Transform, update: Update, purpose: str, task: Task, site: Site
    ) -> tuple[Update, dict[str, torch.Tensor]]:
        """What is sent, and what is left of it."""
        shared = derive(site.seed, f"common {purpose}", task.version)
        sent, _ = common(part, shared).apply(update, (), generator(site.derive(purpose, task), "compressor"))
        left = {name: t.clone() for name, t in update.values().items()}
        if not self.submodel:
            sent.index.scatter_add_(left, sent.values(), -1.0)
            return sent, left
        for name, value in sent.values().items():  # places among what is held
            at = torch.searchsorted(update.index.coords(name), sent.index.coords(name))
            left[name].view(-1)[at] -= value.reshape(-1)
        return sent, left

    def aggregators(self) -> Mapping[str, Aggregator]:
        by: MeanBy = "holders" if self.submodel else "cohort"
        return {"reset": Mean(by)} if self.gradient is None else {"model": Mean(by), "reset": Mean(by)}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        for total in totals.values():
            total.index.scatter_add_(state["model"], total.values())
        return state
