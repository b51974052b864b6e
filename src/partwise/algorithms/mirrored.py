"""Fewer bytes to the client: it makes the server's steps itself, of compressed aggregates.

Notation: D is the aggregate of a round and what is owed of earlier ones; p is what is sent of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from partwise.algorithms.forms import Form, form_of
from partwise.algorithms.replica import (
    THE_VERSION,
    VERSION,
    advanced,
    check_kept,
    each_missed,
    holds_all,
    is_near,
    log_of,
    rows_of_log,
)
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.around import Keeping, check_fetches_model, check_own
from partwise.core.codec import register
from partwise.core.compressor import Compressor
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Whole, shapes_of
from partwise.core.model import Params, Values
from partwise.core.plan import Trained
from partwise.core.population import Census
from partwise.core.rng import generator
from partwise.core.schedule import ReplyInfo
from partwise.core.transform import Transform
from partwise.core.update import Update, wide

__all__ = ["Mirror", "Mirrored"]

_OWN = {"owed", "log"}


@register
@dataclass(frozen=True, eq=False)
class Mirror:
    """What a client keeps.

    Args:
        inner: its state of the algorithm inside.
        version: of the streams that it holds.
        streams: the server's, but for what is owed and the log; nothing stands for those of the seed's model.
    """

    inner: ClientState
    version: int = 0
    streams: dict[str, Values] = field(default_factory=dict)


@dataclass(frozen=True)
class Mirrored(Keeping):
    """p = C(D), of which commits are made on both sides: D is the aggregate and what earlier messages left out.

    The server's optimiser is the algorithm inside (`LANS`, `SignMomentum`), and each client keeps its state beside the
    model. A client fetches the messages that it missed, half of `keep` versions back, as long as they are shorter than
    all of that, and makes their steps as the server did. So what comes down is as short as what goes up, and what a
    compressor gets wrong is the optimiser's input, not the model: with `ErrorFeedback(Sign())` in the client chain and
    one local step, `Mirrored(LANS(...), Sign())` is CLAN. `Downlink` compresses what the optimiser made of an exact
    aggregate instead. All clients hold the whole model.

    Args:
        inner: what is really done, with nothing but the stream `model` summed.
        compress: C, a transform without memory and with messages of one size, such as `Quantize` or `Sign`; of one that
            is right on average nothing is owed.
        keep: versions whose messages the server keeps, >= 2.

    Raises:
        CompositionError: messages of several sizes, a transform that keeps something, clients that hold a part, or an
            algorithm whose commit looks at who replied, such as `MMPSGD`.

    Source: Zhong et al., "Compressed communication for distributed training: adaptive methods and system", 2021,
        arXiv:2105.07829.
    Differs: messages are kept for those who were away; draws of C follow from the version.

    Example:
        >>> from partwise.algorithms import LANS, FedAvg
        >>> from partwise.transforms import Sign
        >>> clan = Mirrored(LANS(FedAvg(), lr=0.01), Sign())
    """

    inner: Algorithm
    compress: Transform
    keep: int = 16

    def __post_init__(self) -> None:
        if self.keep < 2:
            raise ValueError(f"Mirrored(keep={self.keep}): must be at least 2, got {self.keep}. 16 is usual.")
        check_fetches_model(self)
        if set(self.inner.aggregators()) != {"model"}:
            raise CompositionError(
                f"Mirrored(inner={self.inner!r}): must sum the stream 'model' alone, got "
                f"{sorted(self.inner.aggregators())}. Use an algorithm without control variates."
            )

    @property
    def mirrors(self) -> bool:
        return True

    def _form(self, params: Params) -> Form:
        return form_of("Mirrored", self.compress, params)

    def init(self, params: Params, census: Census) -> ServerState:
        state = self.inner.init(params, census)
        check_own(self, _OWN, state, "Mirrored")
        log = log_of(self._form(state["model"]).blank(), self.keep)
        return {**state, "owed": {name: torch.zeros_like(wide(t)) for name, t in state["model"].items()}, "log": log}

    def _streams(self, own: Mirror, site: Site) -> Mapping[str, Params]:
        """What the client has of the server."""
        return own.streams or self.inner.init(site.model.init(site.seed), Census(0, still=site.model.buffers()))

    def client_init(self, site: Site) -> ClientState:
        return Mirror(self.inner.client_init(site))

    @property
    def holds_alike(self) -> bool:
        return self.inner.holds_alike

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        index = self.inner.select(task, own.inner, site)
        if not holds_all(index, site):
            raise CompositionError(
                f"{self!r}: all clients must hold the whole model, got client {site.client} with a part. Use a "
                "download chain for those who hold parts."
            )
        return index

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        form, missed = self._form(site.like), range(own.version + 1, task.version + 1)
        streams = self._streams(own, site)
        size = sum(t.nbytes for values in streams.values() for t in values.values())
        if not is_near(missed, self.keep) or len(missed) * form.size >= size:
            whole = {stream: Whole(shapes_of(values)) for stream, values in streams.items()}
            return {**whole, "log": THE_VERSION}
        return {"model": Whole({}), "log": rows_of_log(form.shapes, missed, self.keep)}

    def receive(
        self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, Values]:
        streams, log = _without_log(held), dict(held["log"])
        version = int(log.pop(VERSION))
        if log:
            check_kept(f"{self!r}: must get the messages", own.version, version, self.keep)
            form = self._form(site.like)
            streams = {s: {n: t.clone() for n, t in values.items()} for s, values in self._streams(own, site).items()}
            for _, message in each_missed(log, range(own.version + 1, task.version + 1), self.keep):
                streams = self.inner.commit(streams, {"model": form.update(message)}, _Untold(self))
            version = max(own.version, task.version)
        received = self.inner.receive(streams, index, task, own.inner, site)
        return {**received, "log": {VERSION: torch.tensor([version])}}

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        updates, inner = self.inner.finish(held, trained, index, task, own.inner, site)
        return updates, Mirror(inner, int(held["log"][VERSION]), _without_log(held))

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        owed, log = state.pop("owed"), state.pop("log")
        totals["model"].index.scatter_add_(owed, {n: wide(t) for n, t in totals["model"].values().items()})
        rng = generator(0, "mirrored", int(log[VERSION]) + 1)
        given = {name: t.to(state["model"][name]) for name, t in owed.items()}
        sent, _ = self.compress.apply(Update(Whole(shapes_of(given)), given), (), rng)
        log = advanced(log, self._form(given).read(sent))
        is_biased = not isinstance(self.compress, Compressor) or self.compress.claims(2).omega is None
        left = {name: t.clone() if is_biased else torch.zeros_like(t) for name, t in owed.items()}
        if is_biased:
            taken = {name: wide(t) for name, t in sent.values().items()}
            sent.index.scatter_add_(left, taken, -1.0)  # coordinates may have been left out
        # As clients do it: of the message alone, for they know neither weights nor who replied.
        return {**self.inner.commit(state, {"model": sent}, _Untold(self)), "owed": left, "log": log}


class _Untold(Sequence[ReplyInfo]):
    """Replies of which clients know nothing, for a commit that they make as well; whoever looks at them is refused."""

    def __init__(self, part: Mirrored) -> None:
        self._part = part

    def __len__(self) -> int:
        raise self._refused()

    def __getitem__(self, at: Any) -> Any:
        raise self._refused()

    def _refused(self) -> CompositionError:
        return CompositionError(
            f"{self._part!r}: commits are made of what was summed alone, got an algorithm that looks at the replies, "
            "which clients do not know. Use FedAvg, or an outer step around it."
        )


def _without_log(held: Mapping[str, Values]) -> dict[str, Values]:
    return {stream: dict(values) for stream, values in held.items() if stream != "log"}
