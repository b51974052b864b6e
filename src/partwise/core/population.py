"""Who the clients are: their data, their speed and their links.

Shapes: N clients, n examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import cached_property
from numbers import Real
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from partwise.core.codec import register
from partwise.core.errors import CompositionError, DataError
from partwise.core.kinds import article
from partwise.core.schedule import are_there

__all__ = [
    "Batch",
    "Census",
    "Client",
    "Counts",
    "Dataset",
    "Examples",
    "Fate",
    "Population",
    "Profile",
    "Reals",
    "Roll",
    "check_clients",
    "check_data",
    "leaves_time_to",
    "speed_of",
]

_MOST = 2**31 - 1  # what a run's log has room for
_STAGES = ("", "download", "train", "upload")

Client = int
Reals = NDArray[np.float64]
Batch = Mapping[str, Tensor]


class Profile(NamedTuple):
    """How fast a client is.

    Args:
        seconds_per_step: pace, seconds per local step.
        uplink: bytes per second from the client.
        downlink: bytes per second to the client.
        memory: bytes the client can spend on its submodel.
        width: the largest width ratio it can train, in (0, 1].
        block: the part of a cycle it belongs to, where availability comes in cycles.
    """

    seconds_per_step: float = 0.0
    uplink: float = float("inf")
    downlink: float = float("inf")
    memory: float = float("inf")
    width: float = 1.0
    block: int = 0


@register
class Fate(NamedTuple):
    """What becomes of a task at a client that does not get through it.

    Args:
        stage: in which it is lost: `download`, `train` or `upload`; `` where it is not.
        share: of that stage, done before it is lost, in [0, 1].
        notice_seconds: after that the server is told; inf if never.
        late_seconds: how much later than it should a reply that is not lost is sent.
    """

    stage: Literal["", "download", "train", "upload"] = ""
    share: float = 0.0
    notice_seconds: float = 0.0
    late_seconds: float = 0.0


class Dataset(Protocol):
    """Examples as columns: every column is a tensor with the examples along its first axis."""

    def __len__(self) -> int: ...

    def batch(self, at: Tensor) -> Batch:
        """The examples at positions `at` (batch,) int64."""
        ...

    def columns(self) -> Batch:
        """All examples, column by column; each column (n, ...)."""
        ...


class Examples:
    """A `Dataset` over tensors in memory (or memory-mapped). It is not changed.

    Args:
        columns: column name -> tensor (n, ...); equal n.

    Raises:
        ValueError: columns of unequal length.

    Example:
        >>> import torch
        >>> Examples({"x": torch.zeros(3, 2), "y": torch.tensor([0, 1, 0])}).batch(torch.tensor([1]))["y"]
        tensor([1])
    """

    __slots__ = ("_begin", "_columns", "_kinds", "_length", "_whole")

    def __init__(self, columns: Batch) -> None:
        found = {column.shape[0] for column in columns.values()}
        if len(found) > 1:
            lengths = {name: len(column) for name, column in columns.items()}
            raise ValueError(
                f"Examples(): columns must have equal length, got {lengths}. Cut them to the same examples."
            )
        self._whole, self._begin, self._length = columns, 0, max(found, default=0)
        self._columns: Batch | None = columns
        self._kinds: tuple[Hashable, ...] | None = None

    def __reduce__(self) -> tuple[type[Examples], tuple[Batch]]:
        return Examples, (self.columns(),)  # not what they are a slice of

    def __repr__(self) -> str:
        return f"Examples({self._length} of {', '.join(self._whole)})"

    def __len__(self) -> int:
        return self._length

    def batch(self, at: Tensor) -> Batch:
        return {name: column[at] for name, column in self.columns().items()}

    def columns(self) -> Batch:
        if self._columns is None:
            end = self._begin + self._length
            self._columns = {name: column[self._begin : end] for name, column in self._whole.items()}
        return self._columns

    def slice(self, start: int, stop: int) -> Examples:
        """The examples start..stop, as views, which are made when they are looked at."""
        start, stop, _ = slice(start, stop).indices(self._length)
        found, length = Examples.__new__(Examples), max(0, stop - start)
        own = self._whole, self._begin + start, length, None, self._kinds
        found._whole, found._begin, found._length, found._columns, found._kinds = own  # noqa: SLF001 - of the same class
        return found

    def kinds(self) -> tuple[Hashable, ...]:
        """Name, shape of one example and type of each column: equal where examples can lie in one batch."""
        if self._kinds is None:
            self._kinds = tuple((name, tuple(t.shape[1:]), t.dtype) for name, t in self._whole.items())
        return self._kinds

    def place(self) -> tuple[Batch, int]:
        """The columns of which these examples are a slice, and where in them they begin."""
        return self._whole, self._begin


class Population(Protocol):
    """All clients that exist.

    Of a population that derives from this class, only `clients` and `data` must be written: as they stand, the other
    methods tell of clients that are tested on nothing, take no time, are always there and get through every task.
    """

    @property
    def clients(self) -> Sequence[Client]:
        """The clients' numbers: Python's own, from 0 on and below 2**31, ascending without repeats."""
        ...

    def data(self, client: Client) -> Dataset:
        """What the client trains on. Clients whose data are slices of one `Examples` train together without a copy."""
        ...

    def test_data(self, client: Client) -> Dataset | None:
        """What the client is tested on, if anything."""
        return None

    def central_test(self) -> Dataset | None:
        """A test set held by nobody, if there is one."""
        return None

    def profile(self, client: Client, now: float = 0.0) -> Profile:
        """How fast the client is at a moment."""
        return Profile()

    def speeds(self, clients: Sequence[Client], now: float) -> Reals:
        """Pace, uplink and downlink of many clients at once, (n, 3), as their profiles tell them."""
        return np.array([self.profile(client, now)[:3] for client in clients], np.float64).reshape(-1, 3)

    def next_available(self, client: Client, now: float) -> float:
        """The first moment, not before `now`, at which the client could answer; inf for never."""
        return now

    def are_there(self, clients: Sequence[Client], now: float) -> list[bool]:
        """Whether each of some clients could answer now: as `next_available` tells."""
        return [self.next_available(client, now) <= now for client in clients]

    def available_until(self, client: Client, now: float) -> float:
        """The moment at which a client that could answer now no longer can; inf for never."""
        return math.inf

    def stays(self, clients: Sequence[Client], moments: Reals) -> Reals:
        """`available_until` of many clients at once, each at a moment of its own: (n,)."""
        return np.array(list(map(self.available_until, clients, moments.tolist())), np.float64)

    def fate(self, client: Client, task: int) -> Fate:
        """What becomes of a task, told by its number, at the client."""
        return Fate()

    @property
    def is_instant(self) -> bool:
        """Whether it is sure that nobody takes any time or is ever away, and that no task is lost."""
        return leaves_time_to(type(self), Population)

    @property
    def is_open(self) -> bool:
        """Whether what the clients' examples say can be looked at here; how many there are can always."""
        return True

    def counts(self) -> Counts | None:
        """Who holds what, where somebody else has counted; None to have every client looked at."""
        return None

    def name(self, client: Client) -> str:
        """What a person would call the client: a module, a role, a row of a table."""
        return str(client)


def check_clients(population: Population) -> None:
    """Refuse clients that are not numbered as a run must have them, or of whose first one is told what cannot be.

    Numbers below 0 are those of the server.

    Raises:
        DataError: it names the first such client, or the method that tells it.
    """
    clients = population.clients
    if not hasattr(clients, "__getitem__") or not hasattr(clients, "__len__") or isinstance(clients, Mapping):
        raise _mistold(
            population, "clients", "must be a property that gives a sequence of numbers", clients, "range(N)"
        )
    _check_numbers(population, clients)
    if len(clients):
        _check_first(population, clients[0])


def _check_numbers(population: Population, clients: Sequence[Client]) -> None:
    if isinstance(clients, range) and clients.step == 1 and clients.start >= 0 and clients.stop <= _MOST + 1:
        return
    last = -1
    for client in clients:
        if type(client) is not int or not last < client <= _MOST:
            got = f"{client!r}{f' after {last}' if last >= 0 else ''}"
            raise DataError(
                f"{type(population).__name__}.clients: must be numbers of Python's int, from 0 to {_MOST}, ascending "
                f"without repeats, got {got}. range(N) numbers N clients; `name` may say who each of them is."
            )
        last = client


def _check_first(population: Population, client: Client) -> None:
    """What is told of one client, before anything happens."""
    speed_of(population, client, 0.0)
    when = population.next_available(client, 0.0)
    _check_moment(population, f"next_available({client}, 0.0)", when)
    if when <= 0:
        _check_moment(population, f"available_until({client}, 0.0)", population.available_until(client, 0.0))
    fate, where = population.fate(client, 0), f"fate({client}, 0)"
    if not isinstance(fate, Fate):
        raise _mistold(population, where, "must give a Fate", fate, "Fate() for a task that is not lost")
    if fate.stage not in _STAGES or not all(isinstance(number, Real) and number >= 0 for number in fate[1:]):
        rule = f"must give a stage of {_STAGES}, and a share and seconds from 0 on"
        raise _mistold(population, where, rule, fate, "Fate() for a task that is not lost")
    if fate.share > 1:
        raise _mistold(population, where, "must give a share in [0, 1]", fate, "1.0 for all of the stage")


def _check_moment(population: Population, where: str, found: object) -> None:
    if not isinstance(found, Real) or not float(found) >= 0:
        rule = "must give a moment that is not before the one asked about"
        raise _mistold(population, where, rule, found, "that one for now, or inf for never")


def speed_of(population: Population, client: Client, now: float) -> Profile:
    """The client's profile at a moment; a pace or link by which the clock would stop or run backwards is refused.

    Raises:
        DataError: it names the client.
    """
    found = population.profile(client, now)
    if not isinstance(found, Profile):
        raise _mistold(population, f"profile({client}, {now:g})", "must give a Profile", found, "Profile()")
    try:
        holds = 0 <= found.seconds_per_step < math.inf and found.uplink > 0 and found.downlink > 0
        holds = holds and found.memory > 0 and 0 < found.width <= 1
    except TypeError:
        holds = False
    if not holds:
        rule = "must give a finite pace from 0 on, links and memory above 0, and a width in (0, 1]"
        raise _mistold(population, f"profile({client}, {now:g})", rule, found, "inf for a link that takes no time")
    return found


def check_data(population: Population, method: str, client: Client, found: object) -> None:
    """Refuse examples that are none, which `method` gave of a client.

    Raises:
        DataError: it names the method.
    """
    if not (hasattr(found, "__len__") and hasattr(found, "batch") and hasattr(found, "columns")):
        rule = "must give a Dataset" + (", or None" if method == "test_data" else "")
        raise _mistold(population, f"{method}({client})", rule, found, "Examples(columns), of a dict of tensors")


def _mistold(population: Population, where: str, rule: str, found: object, instead: str) -> DataError:
    """What is said of a population that tells of clients what cannot be."""
    shown = repr(found) if found is None or isinstance(found, Real | Fate | Profile) else article(type(found).__name__)
    return DataError(f"{type(population).__name__}.{where}: {rule}, got {shown}. Give {instead}.")


def leaves_time_to(kind: type, base: type) -> bool:
    """Whether a class takes from `base` all that says how long clients take, when they are there and what is lost."""
    names = ("profile", "next_available", "available_until", "fate")
    return all(getattr(kind, name) is getattr(base, name) for name in names)


class Roll:
    """What a scheduler sees of a population: its roster.

    Args:
        population: whose clients.
        seed: the experiment's.
    """

    def __init__(self, population: Population, seed: int = 0) -> None:
        self.seed, self.clients = seed, population.clients
        self.next_available = population.next_available  # asked about so often that one call less is felt
        self.are_there = population.are_there
        self._population = population

    def examples(self, client: Client) -> int:
        """How many examples a client has."""
        return len(self._population.data(client))


@are_there.register
def _(roster: Roll, clients: Sequence[Client], now: float) -> list[bool]:
    return roster.are_there(clients, now)


class Counts(NamedTuple):
    """Who holds what, counted over all clients.

    Args:
        heat: name -> how many clients hold each coordinate, broadcastable to the parameter: all axes 1 where
            everybody holds all of it, `(V, 1, ..)` for tables, the full shape otherwise.
        weight: the same with each client counted by its aggregation weight.
        total_weight: the sum of all clients' weights.
    """

    heat: Mapping[str, Tensor]
    weight: Mapping[str, Tensor]
    total_weight: float


class Census:
    """What the server knows about the population before training; counted when first asked for.

    Args:
        num_clients: N.
        count: counts the population; None where nobody may.
        still: names of the values that no gradient moves, such as running means.
    """

    def __init__(
        self, num_clients: int, count: Callable[[], Counts] | None = None, still: Collection[str] = ()
    ) -> None:
        self.num_clients = num_clients
        self.still = frozenset(still)
        self._count = count

    @cached_property
    def counts(self) -> Counts:
        """Who holds what.

        Raises:
            CompositionError: the population cannot be counted.
        """
        if self._count is None:
            raise CompositionError(
                "Census(count=None): a part needs to know how many clients hold each coordinate, got no way to count. "
                "Give a census, or use a part that does without, such as Mean(by='holders')."
            )
        return self._count()
