"""The clients of a deployment: numbered on the server, while their examples stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, NoReturn

from torch import Tensor

from partwise.core.errors import DataError
from partwise.core.population import Batch, Client, Counts, Dataset, Population, Profile

__all__ = ["Enrolled", "Member"]

_LOOK_AGAIN = 2.0  # seconds after which a client that is not there is looked for again


class Member(NamedTuple):
    """A node and its clients.

    Args:
        name: what people call it.
        first: number of its first client.
        examples: of each of its clients; their length is how many it has.
    """

    name: str
    first: Client
    examples: Sequence[int]

    @property
    def clients(self) -> range:
        """The numbers of its clients."""
        return range(self.first, self.first + len(self.examples))


@dataclass(frozen=True)
class _Elsewhere:
    """Examples that are not here."""

    client: Client
    length: int

    def __len__(self) -> int:
        return self.length

    def batch(self, at: Tensor) -> Batch:
        self._refuse()

    def columns(self) -> Batch:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise DataError(
            f"client {self.client}: its examples stay with its node, got a look at them. "
            "Leave what looks at them to the node, or use a part that does without."
        )


@dataclass(eq=False)
class Enrolled(Population):
    """All clients of a deployment, as the server or one node sees them.

    Args:
        members: the nodes, in order of their clients, which are numbered from 0 without a gap.
        here: the node whose examples `local` has; "" on the server.
        local: its examples, numbered from 0.
        test: a test set that the server has itself.
        described: the specification's own population, which says how wide a model and how much memory its clients have;
            one of another number of clients says nothing.

    Example:
        >>> clinic = Enrolled([Member("north", 0, [40, 7]), Member("south", 2, [12])])
        >>> list(clinic.clients), len(clinic.data(1)), clinic.name(2)
        ([0, 1, 2], 7, 'south/0')
    """

    members: Sequence[Member]
    here: str = ""
    local: Population | None = None
    test: Dataset | None = None
    described: Population | None = None
    reachable: Callable[[], Collection[Client]] | None = field(default=None, init=False, repr=False)
    counting: Callable[[], Counts] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        expected = 0
        for member in self.members:
            if member.first != expected or not member.examples:
                raise ValueError(
                    f"Enrolled(members=...): clients must be numbered without a gap and every node have one, got "
                    f"{member.name!r} with {len(member.examples)} from {member.first}, {expected} expected. "
                    "Number them in the order of the nodes."
                )
            expected += len(member.examples)
        if self.local is not None and len(self.local.clients) != len(self._own.examples):
            raise DataError(
                f"Enrolled(here={self.here!r}): its data must have the {len(self._own.examples)} clients that it is "
                f"enrolled with, got {len(self.local.clients)}. Name the right data, or have it enrolled again."
            )

    @cached_property
    def _own(self) -> Member:
        return next(member for member in self.members if member.name == self.here)

    @cached_property
    def _of(self) -> Sequence[Member]:
        return [member for member in self.members for _ in member.examples]

    @property
    def clients(self) -> Sequence[Client]:
        return range(len(self._of))

    def data(self, client: Client) -> Dataset:
        member = self._of[client]
        if self.local is not None and member.name == self.here:
            return self.local.data(client - member.first)
        return _Elsewhere(client, member.examples[client - member.first])

    def central_test(self) -> Dataset | None:
        return self.test

    def profile(self, client: Client, now: float = 0.0) -> Profile:
        if self.described is None or len(self.described.clients) != len(self._of):
            return Profile()
        found = self.described.profile(self.described.clients[client], now)
        return Profile(memory=found.memory, width=found.width)  # how fast it is shows by itself

    def next_available(self, client: Client, now: float) -> float:
        is_there = self.reachable is None or client in self.reachable()
        return now if is_there else now + _LOOK_AGAIN

    def are_there(self, clients: Sequence[Client], now: float) -> list[bool]:
        there: Collection[Client] = self.clients if self.reachable is None else self.reachable()
        return [client in there for client in clients]

    @property
    def is_open(self) -> bool:
        return False

    def counts(self) -> Counts | None:
        return None if self.counting is None else self.counting()

    def name(self, client: Client) -> str:
        member = self._of[client]
        return f"{member.name}/{client - member.first}"

    def owners(self) -> Mapping[str, range]:
        """Node -> the numbers of its clients."""
        return {member.name: member.clients for member in self.members}
