"""The union of the rows that clients hold, found before training, as programs for any runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from partwise.core.channel import Channel, ClientSession, Seat
from partwise.core.codec import register
from partwise.core.errors import PartwiseError, ProtocolError
from partwise.core.index import Index, Rows, shapes_of
from partwise.core.model import Params
from partwise.core.population import Client
from partwise.core.program import SERVER, Effect, Failed, Halt, Message, NodeId, Program, Record, Send, Wake
from partwise.core.runtime import Observer, Runtime
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update
from partwise.programs.messages import Answer, Ask, Refusal, Released
from partwise.programs.session import Session
from partwise.programs.star import Star

__all__ = ["UnionNode", "UnionStar", "find_union"]


@register
@dataclass
class UnionNode:
    """What a node keeps.

    Args:
        index: at the server, the union; None until it is known.
        memory: at a client, what the channel keeps.
    """

    index: Index | None = None
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class UnionStar:
    """A server that asks clients for the union of the rows that their examples touch.

    Args:
        star: whose clients and tables.
        channel: how; such as `channels.unions.MaskedUnion`.
        clients: whom to ask; everybody by default.
    """

    star: Star
    channel: Channel
    clients: Sequence[Client] = ()

    @property
    def tables(self) -> Params:
        """Name -> table, without storage."""
        return {name: self.star.like[name] for name in self.star.model.tables}

    def programs(self) -> Mapping[NodeId, Program]:
        """One program per node."""
        return _Programs(self)


def _blank(me: NodeId) -> UnionNode:
    return UnionNode()


class _Programs(Mapping[NodeId, Program]):
    def __init__(self, of: UnionStar) -> None:
        server, client = _Server(of), _Client(of)
        self._server = Program(_blank, server.step, server.is_settled)
        self._client = Program(_blank, client.step)
        self._clients = tuple(of.star.population.clients)

    def __getitem__(self, node: NodeId) -> Program:
        return self._server if node == SERVER else self._client

    def __iter__(self) -> Iterator[NodeId]:
        return iter((SERVER, *self._clients))

    def __len__(self) -> int:
        return 1 + len(self._clients)


class _Server:
    def __init__(self, of: UnionStar) -> None:
        clients = of.clients or of.star.population.clients
        infos = [ReplyInfo(client, client, 0, 0, 0) for client in clients]
        self._session = Session(of.channel, infos, ["union"], {"union": dict(of.tables)})

    def is_settled(self) -> bool:
        return False

    def step(self, node: UnionNode, message: Message) -> tuple[UnionNode, list[Effect]]:
        it = self._session
        match message.body:
            case Wake(None):
                sends = it.open(1)
            case Failed():
                sends = it.lose(message.src)
            case _ if it.is_for(message):
                sends = it.step(message)
            case _:
                sends = []
        effects: list[Effect] = list(sends)
        if it.is_done and node.index is None:
            effects += [Send(info.client, Released(info.id)) for info in it.replies]
            effects += [
                Record("lost", {"client": c, "reason": why, "stage": "exchange"}) for c, why in it.refusals.items()
            ]
            if not it.failure:
                got: Any = it.opened["union"]
                node.index = got.index
            effects.append(Halt(it.failure or "done"))
        return node, effects


class _Client:
    def __init__(self, of: UnionStar) -> None:
        self._of = of
        self._sides: dict[NodeId, tuple[ClientSession, Seat]] = {}

    def step(self, node: UnionNode, message: Message) -> tuple[UnionNode, list[Effect]]:
        me, ask = message.me, message.body
        if isinstance(ask, Released):
            self._sides.pop(me, None)
        if not isinstance(ask, Ask):
            return node, []
        if me not in self._sides:
            seat = Seat(me, ask.session, ask.id, ask.stream, memory=dict(node.memory))
            side = self._of.channel.client(Update(self._held(me), {}), self._of.tables, seat)
            next(side)
            self._sides[me] = side, seat
        side, seat = self._sides[me]
        try:
            said: Any = Answer(ask.session, ask.turn, side.send(ask.body))
        except (PartwiseError, ValueError, StopIteration) as error:
            said = Refusal(ask.session, ask.turn, str(error))
        node.memory = dict(seat.memory)
        return node, [Send(SERVER, said)]

    def _held(self, me: NodeId) -> Rows:
        site = self._of.star.site(me)
        tables = self._of.tables
        return Rows(shapes_of(tables), {name: site.table_rows(name) for name in tables})


def find_union(star: Star, channel: Channel, runtime: Runtime, observer: Observer) -> Rows:
    """Ask all clients for the union of the rows that they hold.

    Args:
        star: whose clients and tables.
        channel: how; such as `channels.unions.MaskedUnion`.
        runtime: on which the messages travel.
        observer: is told what happens.

    Raises:
        ProtocolError: it came to nothing.
    """
    states, reason = runtime.run(UnionStar(star, channel).programs(), star.population, observer)
    index = states[SERVER].index
    if index is None:
        raise ProtocolError(f"find_union({channel!r}): needs an exchange that ends well, got: {reason}")
    assert isinstance(index, Rows)
    return index
