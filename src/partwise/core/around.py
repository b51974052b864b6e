"""Algorithms around others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from partwise.core.aggregate import Aggregator, makes_steps
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task, leaves_clients_to
from partwise.core.disclosure import disclosed
from partwise.core.errors import CompositionError
from partwise.core.index import Index
from partwise.core.limits import Limit
from partwise.core.model import Model, Params, Values
from partwise.core.plan import LocalPlan, Trained
from partwise.core.population import Census, Dataset
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = [
    "Around",
    "Keeping",
    "check_fetches_model",
    "check_makes_steps",
    "check_own",
    "check_sends_all",
    "check_sends_changes",
    "check_sends_model",
]


class Around(Algorithm, Protocol):
    """An algorithm around another one, `inner`: what is not overridden is done as the one inside does it."""

    inner: Algorithm  # no property, which a dataclass would take for the field's default

    @property
    def is_personal(self) -> bool:
        return self.inner.is_personal

    def discloses(self) -> Sequence[str]:
        return disclosed(self.inner)

    @property
    def reads_rate(self) -> bool:
        return self.inner.reads_rate

    @property
    def needs_fresh(self) -> bool:
        return self.inner.needs_fresh

    @property
    def needs_unscaled(self) -> bool:
        return self.inner.needs_unscaled

    @property
    def mirrors(self) -> bool:
        return self.inner.mirrors

    @property
    def groups(self) -> int | None:
        return self.inner.groups

    @property
    def needs_all(self) -> bool:
        return self.mirrors or self.inner.needs_all

    @property
    def thins(self) -> bool:
        return self.inner.thins

    @property
    def sends_all(self) -> bool:
        return self.inner.sends_all

    @property
    def sends_ends(self) -> bool:
        return self.inner.sends_ends

    @property
    def holds_alike(self) -> bool:
        return type(self).select is Around.select and self.inner.holds_alike

    @property
    def hides_holders(self) -> bool:
        return self.inner.hides_holders

    @property
    def is_given_model(self) -> bool:
        return self.inner.is_given_model

    @property
    def sends_change(self) -> bool:
        return self.inner.sends_change and leaves_clients_to(type(self), Around)

    @property
    def reports(self) -> bool:
        return self.inner.reports

    @property
    def only_adds(self) -> bool:
        return type(self).commit is Around.commit and self.inner.only_adds

    def limit(self, stream: str) -> Limit:
        # What is known of the inner algorithm's updates is known where they are sent as they are.
        return self.inner.limit(stream) if type(self).finish is Around.finish else Limit()

    def init(self, params: Params, census: Census) -> ServerState:
        return self.inner.init(params, census)

    def client_init(self, site: Site) -> ClientState:
        return self.inner.client_init(site)

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        return self.inner.select(task, own, site)

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index] | None:
        return self.inner.fetch(index, task, own, site)

    def asked(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        """What the one inside fetches, stream by stream: for one that has streams of its own beside those."""
        asked = self.inner.fetch(index, task, own, site)
        return dict.fromkeys(("model", *self.inner.aggregators()), index) if asked is None else asked

    def receive(
        self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, Values]:
        return self.inner.receive(held, index, task, own, site)

    def weight(self, site: Site) -> float:
        return self.inner.weight(site)

    def personalize(self, values: Values, own: ClientState) -> Values:
        return self.inner.personalize(values, own)

    def thin_factors(self, model: Model, ratio: float) -> Mapping[str, float]:
        return self.inner.thin_factors(model, ratio)

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        return self.inner.plan(held, index, task, own, site)

    def examples(self, index: Index, own: ClientState, site: Site) -> Dataset:
        return self.inner.examples(index, own, site)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        return self.inner.finish(held, trained, index, task, own, site)

    def report(
        self, held: Mapping[str, Values], trained: Trained, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, float]:
        return self.inner.report(held, trained, task, own, site)

    def aggregators(self) -> Mapping[str, Aggregator]:
        return self.inner.aggregators()

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        return self.inner.commit(state, totals, replies)


class Keeping(Around, Protocol):
    """One whose clients keep something of their own: a state in which `inner` is that of the algorithm inside."""

    @property
    def holds_alike(self) -> bool:
        return type(self).select is Keeping.select and self.inner.holds_alike

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        return self.inner.select(task, own.inner, site)

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index] | None:
        return self.inner.fetch(index, task, own.inner, site)

    def personalize(self, values: Values, own: ClientState) -> Values:
        return self.inner.personalize(values, None if own is None else own.inner)

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        return self.inner.plan(held, index, task, own.inner, site)

    def examples(self, index: Index, own: ClientState, site: Site) -> Dataset:
        return self.inner.examples(index, own.inner, site)

    def report(
        self, held: Mapping[str, Values], trained: Trained, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, float]:
        return self.inner.report(held, trained, task, own.inner, site)


def check_own(part: Around, names: Collection[str], inner: ServerState, what: str) -> None:
    """Refuse streams of one's own that the algorithm inside has too; what: of which one is enough."""
    if set(names) & inner.keys():
        raise CompositionError(
            f"{part!r}: has the streams {sorted(names)} of its own, got an algorithm that has them too. Use one {what}."
        )


def _unfit(part: Around, said: str) -> CompositionError:
    return CompositionError(f"{type(part).__name__}({type(part.inner).__name__}): {said}")


def check_sends_model(part: Around) -> None:
    """Refuse one inside whose clients send nothing of stream `model`."""
    streams = sorted(part.inner.aggregators())
    if "model" not in streams:
        raise _unfit(
            part,
            f"works on what clients send of the model, got an algorithm with the streams {streams}. "
            "Use one that sends the model, such as FedAvg.",
        )


def check_makes_steps(part: Around) -> None:
    """Refuse one inside that sends no model, or commits what its clients ended with."""
    check_sends_model(part)
    if not makes_steps(part.inner.aggregators()["model"]):
        check_sends_changes(part)


def check_sends_all(part: Around) -> None:
    """Refuse one inside that does not always send how all that a client holds has changed, of which ends are made."""
    check_sends_model(part)
    check_sends_changes(part)
    if not part.inner.sends_all:
        raise _unfit(
            part,
            "sends what a client ended with, got an algorithm whose clients may send nothing, a part of what they "
            "hold, or a change that is scaled. Use one that sends the change as it is, such as FedAvg.",
        )


def check_fetches_model(part: Around) -> None:
    """Refuse one inside whose clients make the server's model for themselves, for what brings it to them otherwise."""
    if part.inner.mirrors:
        raise _unfit(
            part,
            "brings the model to clients in fewer bytes, got an algorithm whose clients make it for themselves "
            "already. Use one of the two.",
        )


def check_sends_changes(part: Around) -> None:
    """Refuse one inside whose clients send what they ended with, for what is done to changes."""
    if part.inner.sends_ends:
        outer, inner = type(part).__name__, type(part.inner).__name__
        raise _unfit(
            part,
            "works on what clients changed, got an algorithm whose clients send what they ended with. "
            f"Leave {inner} out, or put it around {outer}.",
        )
