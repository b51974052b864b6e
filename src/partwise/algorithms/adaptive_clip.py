"""A clip norm that follows the clients' updates, around any algorithm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.around import Around, check_sends_changes
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Whole
from partwise.core.limits import Limit
from partwise.core.mean import Mean
from partwise.core.model import Params, Values
from partwise.core.plan import LocalPlan, Trained
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, norm, scale, scaled_within

__all__ = ["AdaptiveClip", "next_norm"]

_STREAM, _NORM = "clip", "norm"
_BELOW_ONE = 1 - 2.0**-20  # so that rounding does not lift a norm above 1


def next_norm(clip_norm: float, share: float, *, quantile: float = 0.5, rate: float = 0.2) -> float:
    """C exp(-rate (share - quantile)); share: of the clients whose update was no longer than C, with noise.

    Example:
        >>> [round(next_norm(1.0, share), 6) for share in (0.9, 0.5, 0.1)]
        [0.923116, 1.0, 1.083287]
    """
    return clip_norm * math.exp(-rate * (share - quantile))


@dataclass(frozen=True)
class AdaptiveClip(Around):
    """Updates are clipped to a norm C that follows a quantile of their norms.

    A client sends min(1, C / ‖v‖) v / C, which is never longer than 1, and in the stream `clip` whether ‖v‖ <= C, as
    +1/2 or -1/2. The server multiplies the aggregate by C, and sets C <- C exp(-rate (share - quantile)). All clients
    count alike. It is made for rounds: a client and the commit of its reply must mean the same C.

    Args:
        inner: what is trained; it sends the stream `model` alone.
        clip_norm: C of the first round, > 0.
        quantile: the share of updates that should not be clipped, in (0, 1).
        rate: how fast C follows, > 0.

    Source: Andrew et al., "Differentially private learning with adaptive clipping", NeurIPS 2021, arXiv:1905.03871,
        algorithm 1.
    Differs: what travels, and what a server chain sees, is in units of C.
    """

    inner: Algorithm
    clip_norm: float = 1.0
    quantile: float = 0.5
    rate: float = 0.2

    def __post_init__(self) -> None:
        if not (0 < self.clip_norm < math.inf and 0 < self.quantile < 1 and 0 < self.rate < math.inf):
            raise ValueError(
                f"AdaptiveClip(clip_norm={self.clip_norm}, quantile={self.quantile}, rate={self.rate}): norm and rate "
                "must be finite and above 0, and the quantile lie in (0, 1), got others. 1.0, 0.5 and 0.2 are usual."
            )
        streams = sorted(self.inner.aggregators())
        if streams != ["model"]:
            raise CompositionError(
                f"AdaptiveClip(inner={self.inner!r}): clips the stream 'model', got an algorithm with the streams "
                f"{streams}. Use one without others."
            )
        check_sends_changes(self)

    @property
    def sends_all(self) -> bool:
        return False  # clipped

    @property
    def only_adds(self) -> bool:
        return self.inner.only_adds  # C is made of the aggregate of its own stream

    def limit(self, stream: str) -> Limit:
        return Limit(1.0 if stream == "model" else 0.5, 1.0)

    def init(self, params: Params, census: Census) -> ServerState:
        first = torch.tensor(self.clip_norm, dtype=torch.float64)
        return {**self.inner.init(params, census), _STREAM: {_NORM: first}}

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index] | None:
        return {**self.asked(index, task, own, site), _STREAM: Whole({_NORM: ()})}

    def weight(self, site: Site) -> float:
        return 1.0

    def receive(
        self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, Values]:
        return {**self.inner.receive(_without(held), index, task, own, site), _STREAM: held[_STREAM]}

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        return self.inner.plan(_without(held), index, task, own, site)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        updates, own = self.inner.finish(_without(held), trained, index, task, own, site)
        longest, length = float(held[_STREAM][_NORM]), norm(updates["model"])
        if not math.isfinite(length):
            raise ValueError(
                f"AdaptiveClip(): needs a finite update, got norm {length}. "
                "Lower the learning rate or look at the data."
            )
        is_short = torch.tensor(0.5 if length <= longest else -0.5, dtype=torch.float64)
        clipped = scaled_within(updates["model"], _BELOW_ONE / max(longest, length), 1.0)
        updates = {"model": replace(clipped, weight=1.0), _STREAM: Update(Whole({_NORM: ()}), {_NORM: is_short})}
        return updates, own

    def report(
        self, held: Mapping[str, Values], trained: Trained, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, float]:
        return self.inner.report(_without(held), trained, task, own, site)

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {**self.inner.aggregators(), _STREAM: Mean("cohort")}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        longest = float(state[_STREAM][_NORM])
        after = self.inner.commit(_without(state), {"model": scale(totals["model"], longest)}, replies)
        found = totals[_STREAM].values().get(_NORM)
        # Nobody told, and no noise: nothing is known.
        share = self.quantile if found is None or not found.numel() else float(found) + 0.5
        clip_norm = next_norm(longest, share, quantile=self.quantile, rate=self.rate)
        return {**after, _STREAM: {_NORM: torch.tensor(clip_norm, dtype=torch.float64)}}


def _without(streams: Mapping[str, Values]) -> dict[str, Values]:
    """The streams of the algorithm inside."""
    return {stream: values for stream, values in streams.items() if stream != _STREAM}
