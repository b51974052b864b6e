"""A post without a network: nodes in this process, and what becomes of the batches on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from partwise.core.population import Dataset, Population
from partwise.deploy.enrolled import Enrolled, Member
from partwise.deploy.memory import Memory
from partwise.deploy.network import Timing
from partwise.deploy.node import CENSUS, WORK, Node
from partwise.deploy.post import Collected
from partwise.deploy.runtime import Deployed
from partwise.programs.star import Star

QUICK = Timing(poll_seconds=0.001, look_seconds=0.001, grace_seconds=0.2, census_seconds=5.0)
_SCRATCH, _numbers = TemporaryDirectory(), count()  # gone when the tests end
SPLIT = {"north": range(3), "middle": range(3, 5), "south": range(5, 7)}


@dataclass
class Some(Population):
    """Some clients of a population, numbered from 0."""

    whole: Population
    numbers: range

    @property
    def clients(self) -> range:
        return range(len(self.numbers))

    def data(self, client: int) -> Dataset:
        return self.whole.data(self.numbers[client])


def members(population: Population) -> list[Member]:
    return [Member(name, own[0], [len(population.data(c)) for c in own]) for name, own in SPLIT.items()]


def node_of(star: Star, name: str, memory: Path | None = None) -> Node:
    """A node with its clients of a star's population."""
    local = Some(star.population, SPLIT[name])
    here = replace(star, population=Enrolled(members(star.population), name, local))
    return Node(here, Memory(memory or Path(_SCRATCH.name) / f"{next(_numbers)}.sqlite"))


def server_of(star: Star) -> Star:
    """The server's side of a star: it knows how many examples there are, and no more."""
    return replace(star, population=Enrolled(members(star.population)))


@dataclass
class LocalPost:
    """Nodes in this process. spoil: changes what comes back, given the node and the number of its batch."""

    nodes: dict[str, Node]
    spoil: Callable[[str, int, Collected], Collected | None] = lambda node, number, got: got
    is_there: Callable[[str], bool] = lambda node: True
    marks: dict[str, str] = field(default_factory=dict)
    sent: list[tuple[str, str, bytes]] = field(default_factory=list)
    done: dict[str, Collected] = field(default_factory=dict)

    def there(self) -> Mapping[str, str]:
        return {"a stranger": "", **{node: self.marks.get(node, "") for node in self.nodes if self.is_there(node)}}

    def send(self, node: str, data: bytes, *, kind: str, seconds: float, group: str) -> str:
        id, number = str(len(self.sent)), sum(n == node for n, _, _ in self.sent)
        self.sent.append((node, kind, data))
        try:
            got = Collected(id, self.nodes[node].answer(WORK if kind == "train" else CENSUS, data))
        except Exception as error:  # noqa: BLE001 - a node tells whatever it is
            got = Collected(id, b"", f"Traceback ...\n{type(error).__name__}: {error}")
        found = self.spoil(node, number, got)
        if found is not None:
            self.done[id] = found
        return id

    def collect(self, ids: Collection[str]) -> Sequence[Collected]:
        return [self.done.pop(id) for id in ids if id in self.done]


def deployed(star: Star, **more: Any) -> tuple[Star, Deployed, LocalPost]:
    """The server's side, the runtime and the post of a star whose clients live on three nodes."""
    post = LocalPost({name: node_of(star, name) for name in SPLIT}, **more)
    return server_of(star), Deployed(post, timing=QUICK, patience_seconds=20.0), post
