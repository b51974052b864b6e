"""Algorithms: what a client trains and keeps, and what the server makes of the aggregate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from partwise.core.aggregate import Aggregator
from partwise.core.codec import register
from partwise.core.errors import CompositionError, DataError
from partwise.core.index import Index, Rows, Whole, members_of, shapes_of
from partwise.core.limits import Limit
from partwise.core.mean import Mean
from partwise.core.model import Model, Params, Values
from partwise.core.plan import LocalPlan, Trained
from partwise.core.population import Census, Client, Dataset, Examples, Profile
from partwise.core.renumber import different, positions
from partwise.core.rng import derive
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["Algorithm", "ClientState", "ServerState", "Site", "Task", "held_rows", "leaves_clients_to"]

ClientState = Any
ServerState = dict[str, Values]


@register
class Task(NamedTuple):
    """What the server asks.

    Args:
        id: number of the dispatch; unique in a run.
        version: commits the server has made.
        attempt: how often this client was asked at this version before.
        steps: local steps; 0 leaves it to the plan.
        committed: numbers of this client's earlier tasks whose replies were committed, until it has answered a task
            that told it so: client state that must agree with the server's counts a change from then on.
        group: as in the scheduler's `Dispatch`.
        is_followed: likewise.
    """

    id: int
    version: int
    attempt: int
    steps: int
    committed: tuple[int, ...] = ()
    group: int = 0
    is_followed: bool = False


@dataclass(frozen=True, eq=False)
class Site:
    """What a client has at hand.

    Args:
        client: its number.
        model: the model, as code.
        like: name -> tensor without storage: names, shapes and types of what may be held.
        data: its examples.
        profile: how fast it is.
        seed: the experiment's seed.
    """

    client: Client
    model: Model = field(repr=False)
    like: Params = field(repr=False)
    data: Dataset = field(repr=False)
    profile: Profile
    seed: int
    _memo: dict[str, Any] = field(default_factory=dict, repr=False)
    _common: dict[str, Any] = field(default_factory=dict, repr=False)  # of all sites with the same model and `like`

    def derive(self, purpose: str, task: Task) -> int:
        """The seed of one stream of this client's randomness."""
        return derive(self.seed, purpose, self.client, task.version, task.attempt)

    def without(self, names: Collection[str]) -> Site:
        """The same site with some parameters out of sight."""
        return replace(self, like={n: t for n, t in self.like.items() if n not in names}, _common={})

    def whole(self) -> Index:
        """The index of everything; the same object for every client."""
        found: Index = self.once("whole", (), lambda: Whole(shapes_of(self.like)))
        return found

    def once(self, name: str, of: Hashable, make: Callable[[], Any]) -> Any:
        """What all clients that hold parts of one model have alike.

        Args:
            name: of the thing.
            of: what it depends on besides the model; made anew where that is another than before.
            make: makes it.
        """
        found = self._common.get(name)
        if found is None or found[0] != of:
            found = self._common[name] = of, make()
        return found[1]

    def touched(self) -> Index:
        """The index of the rows of every table that the examples touch, and of everything else; made once."""
        tables = [name for name in self.model.tables if name in self.like]
        if not tables:
            return self.whole()
        index = self._memo.get("touched")
        if index is None or index.shapes.keys() != self.like.keys():
            rows = {name: self.table_rows(name) if name in tables else None for name in self.like}
            index = self._memo["touched"] = Rows(shapes_of(self.like), rows)
        return index

    def table_rows(self, name: str) -> Tensor:
        """The rows of one table that the examples touch: (r,) int64, ascending.

        Tables that share a column of ids hold the same rows, those that any of their columns touch, since one
        column can be renumbered in one way only.

        Raises:
            DataError: an id outside the table, or ids that are no whole numbers.
        """
        if name not in self._memo:
            columns = self.data.columns()
            ids = torch.cat([columns[c].reshape(-1) for c in self.model.columns_of(name)])
            if ids.is_floating_point() or ids.dtype == torch.bool:  # 0.7 would become row 0
                raise DataError(
                    f"client {self.client}: ids of {name!r} must be whole numbers, got {ids.dtype}. Number the rows "
                    "from 0 on, in int64."
                )
            size = self.like[name].shape[0]
            rows = different(ids.to(torch.int64), size)
            if len(rows) and (int(rows[0]) < 0 or int(rows[-1]) >= size):
                raise DataError(
                    f"client {self.client}: ids of {name!r} must lie in 0..{size - 1}, "
                    f"got {int(rows[0])}..{int(rows[-1])}. Make the table larger or map the ids."
                )
            self._memo[name] = rows
        found: Tensor = self._memo[name]
        return found

    def localized(self, index: Index) -> Dataset:
        """The examples with every id replaced by its position among the held rows.

        Raises:
            DataError: an example whose id is not held.
            CompositionError: rows of a table that are held by another index than `Rows`, so that nobody knows which.
        """
        held = held_rows(index)
        for name in index.shapes.keys() & self.model.tables.keys() - held.keys():
            some, all_of = index.held_shape(name)[:1], tuple(index.shapes[name][:1])
            if some != all_of:
                raise CompositionError(
                    f"client {self.client}: ids are renumbered to the rows of {name!r} that are held, which only Rows "
                    f"tells, got {type(index).__name__} with {some[0] if some else 0} of {all_of[0]}. Select Rows, or "
                    "give the algorithm an `examples` that renumbers them."
                )
        if not held:
            return self.data
        seen = self._memo.get("localized")
        if seen is not None and all(n in seen[0] and _same_rows(seen[0][n], r) for n, r in held.items()):
            return seen[1]  # type: ignore[no-any-return]
        original = self.data.columns()
        columns = dict(original)
        for name, rows in held.items():
            for column in self.model.tables.get(name, ()):
                columns[column] = _positions(rows, original[column].to(torch.int64), f"client {self.client}", column)
        found = Examples(columns)
        self._memo["localized"] = (held, found)
        return found


@runtime_checkable
class Algorithm(Protocol):
    """What a client trains and keeps, and what the server makes of the aggregate.

    Streams are named updates in a reply; the server holds one set of parameters per stream. `model` is
    always there. Client state never leaves the client. A method that is not overridden does what federated
    averaging over the whole model does; only `plan` must be written.
    """

    @property
    def is_personal(self) -> bool:
        """Whether a client uses another model than the server's: what it keeps matters to its score then."""
        return type(self).personalize is not Algorithm.personalize

    @property
    def reads_rate(self) -> bool:
        """Whether `finish` reads gradients off the step taken, so that nobody else may change the learning rate."""
        return False

    @property
    def needs_fresh(self) -> bool:
        """Whether it can only add what was begun from the version that it is added to: see `Scheduler.is_fresh`."""
        return False

    @property
    def needs_unscaled(self) -> bool:
        """Whether what is added must be what clients sent, for they remember it: see `Scheduler.may_scale`."""
        return False

    @property
    def mirrors(self) -> bool:
        """Whether clients make for themselves, to the last bit, what the server has: what they fetch must be exact."""
        return False

    @property
    def groups(self) -> int | None:
        """How many groups of tasks it tells apart, each with commits of its own; None where they say nothing to it."""
        return None

    @property
    def sends_ends(self) -> bool:
        """Whether clients send, in stream `model`, what they ended with, where others send how it changed."""
        return False

    @property
    def needs_all(self) -> bool:
        """Whether clients need all of the model from the server, so that none of it can stay with them."""
        return self.mirrors

    @property
    def thins(self) -> bool:
        """Whether clients train thinner models than the one that they hold."""
        return False

    @property
    def sends_all(self) -> bool:
        """Whether clients send, with every task, the change of all that they hold, unscaled, in stream `model`."""
        return True

    @property
    def holds_alike(self) -> bool:
        """Whether all clients hold the same part of the model, whatever their data."""
        return type(self).select is Algorithm.select

    @property
    def is_given_model(self) -> bool:
        """Whether what clients have of a stream that they send is the server's own, to which masks may be bound."""
        return True

    @property
    def hides_holders(self) -> bool:
        """Whether clients do not say which part of the model they hold, so that a population is not to be counted."""
        return False

    @property
    def sends_change(self) -> bool:
        """Whether a client sends the change of what it held, by its weight, and neither keeps nor tells anything else.

        Then a sum of updates can be made without any of them, by whoever trains the clients.
        """
        return leaves_clients_to(type(self), Algorithm)

    @property
    def reports(self) -> bool:
        """Whether clients tell the server numbers of their own, which is not for a channel that reveals only sums."""
        return type(self).report is not Algorithm.report

    @property
    def only_adds(self) -> bool:
        """Whether a commit adds the aggregates and does nothing else: then they are all that a model knows of data."""
        return type(self).commit is Algorithm.commit

    def limit(self, stream: str) -> Limit:
        """What every update in a stream keeps to, before the client chain."""
        return Limit()

    def init(self, params: Params, census: Census) -> ServerState:
        """Stream -> parameters, in buffers of its own."""
        return {"model": {name: t.clone() for name, t in params.items()}}

    def client_init(self, site: Site) -> ClientState:
        return None

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        """Which part of the model this client asks for."""
        return site.whole()

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index] | None:
        """Stream -> which part of it this client asks for; None for that of the model in every stream.

        `index` is what `select` gave, and what the client gets of `model`. Where a stream has other parameters than the
        model, or is no client's affair, name those that clients want: `{"model": index}`.
        """
        return None

    def receive(
        self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, Values]:
        """What came, stream by stream, as all other methods are to see it: unpacked, for one that fetches less."""
        return held

    def weight(self, site: Site) -> float:
        """What this client's update counts for."""
        return float(len(site.data))

    def personalize(self, values: Values, own: ClientState) -> Values:
        """The model this client really uses: held values, and what it keeps for itself.

        Training starts from it, so that `Trained.change` is counted from it; and the client is evaluated by it.

        Args:
            values: what it holds; in evaluation, all of the server's model.
            own: its state; None in evaluation where it was not asked yet, whatever `client_init` makes of it then.
        """
        return values

    def thin_factors(self, model: Model, ratio: float) -> Mapping[str, float]:
        """Parameter -> what a client multiplies it by that uses the model at a width ratio below 1, as in training."""
        return {}

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        """What to train, as data."""
        ...

    def examples(self, index: Index, own: ClientState, site: Site) -> Dataset:
        """What it is trained on, with ids renumbered to what is held."""
        return site.localized(index)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        """Stream -> update, and the client's next state."""
        value = {name: trained.change[name] for name in held["model"]}
        return {"model": Update(index, value, self.weight(site))}, own

    def report(
        self, held: Mapping[str, Values], trained: Trained, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, float]:
        """What else the client tells, by name: finite numbers that scheduler and `commit` find in the `ReplyInfo`.

        Asked before `finish`. The server sees each of them.
        """
        return {}

    def aggregators(self) -> Mapping[str, Aggregator]:
        """The aggregator of each stream that clients send, where the user names none."""
        return {"model": Mean("cohort")}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        """Add the aggregates; `state` is consumed."""
        for stream, total in totals.items():
            total.index.scatter_add_(state[stream], total.values())
        return state


def leaves_clients_to(kind: type, base: type) -> bool:
    """Whether a class takes from `base` all that says what a client gets, keeps, sends and tells."""
    names = ("client_init", "fetch", "receive", "personalize", "finish", "report")
    return all(getattr(kind, name) is getattr(base, name) for name in names)


def _same_rows(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one, other)


def held_rows(index: Index) -> dict[str, Tensor]:
    """Table -> which rows are held, of those of which some are."""
    parts = [part.rows for part in members_of(index) if isinstance(part, Rows)]
    return {name: rows for part in parts for name, rows in part.items() if rows is not None}


def _positions(rows: Tensor, ids: Tensor, who: str, column: str) -> Tensor:
    at = positions(rows, ids)
    if at is None:
        raise DataError(
            f"{who}: every id in {column!r} must be held, got some that are not. "
            "Select the rows that the examples touch, or drop those examples."
        )
    return at
