"""The server's side of the star."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from partwise.core.aggregate import Sum, takes_sent, told_by
from partwise.core.algorithm import ServerState, Task
from partwise.core.errors import CompositionError, DivergedError
from partwise.core.given import check_two
from partwise.core.index import Index
from partwise.core.program import RELAY, Effect, Failed, Halt, Message, NodeId, Record, Send, Wake
from partwise.core.rng import generator
from partwise.core.schedule import (
    Accept,
    After,
    Arrived,
    Commit,
    Deadline,
    Discard,
    Dispatch,
    Event,
    GiveUp,
    Lost,
    ReplyInfo,
    Skipped,
    Started,
    Stop,
)
from partwise.core.spool import Spool
from partwise.core.summing import Outcome
from partwise.core.transform import begun
from partwise.core.update import Update, is_finite, scale, typed
from partwise.programs.coverage import coverage
from partwise.programs.download import check_streams
from partwise.programs.messages import (
    Answer,
    Collect,
    Errand,
    Fetch,
    Gathered,
    Held,
    Refusal,
    Refused,
    Released,
    Reply,
    Trouble,
    measured_of,
)
from partwise.programs.schema import MISFITS, check_action, check_committed, check_total, fault_of, no_action, passed_on
from partwise.programs.server_node import InFlight, ServerNode, Waiting, replies_of
from partwise.programs.session import TIMERS, Session
from partwise.programs.sums import Sums, fitting

if TYPE_CHECKING:
    from partwise.programs.star import Star

_NOWHERE = torch.empty(0, 0, 0, 0, 0, device="meta")  # the shape of no parameter

__all__ = ["ServerProgram"]


class ServerProgram:
    """Turns messages into the scheduler's events, and its actions into messages and commits."""

    def __init__(self, star: Star, *, is_relayed: bool = False) -> None:
        self._star, self._is_relayed = star, is_relayed
        self._session: Session | None = None  # never saved: restarted, not resumed
        self._waiting: list[Any] = []  # actions that wait for the session to end
        self._num_skipped = 0  # commits that came to nothing, which the scheduler is still to be told
        self._spool = Spool()
        summed = [] if star.channel.exchanges else [s for s, a in star.all_aggregators().items() if a.needs == "sum"]
        self._sums = Sums(summed)
        self._lent: set[str] = set()  # names of parameters that clients may be reading, in every stream

    def init(self, me: NodeId) -> ServerNode:
        star = self._star
        params = star.initial()
        node = ServerNode(star.algorithm.init(params, star.census))
        check_streams(star.download_chain, node.streams)
        node.schedule = star.scheduler.init(star.roster)
        for stream, aggregator in star.all_aggregators().items():
            node.reducers[stream] = aggregator.init(node.streams[stream], star.census)
            node.chains[stream] = begun(star.chain("server", stream), node.streams[stream], star.model.buffers())
        return node

    def attach(self, spool: Spool) -> None:
        """Keep replies there until they are committed."""
        self._spool = spool

    def is_settled(self) -> bool:
        """Whether the node's state is all there is: no channel's exchange is open."""
        return self._session is None

    def step(self, node: ServerNode, message: Message) -> tuple[ServerNode, list[Effect]]:
        if node.stopped:
            return node, []
        effects: list[Effect] = []
        match message.body:
            case Fetch():
                self._fetch(node, message, effects)
            case Collect(id) if message.src == RELAY:
                self._lent.update(name for params in node.streams.values() for name in params)
                held = Held(id, {stream: dict(params) for stream, params in node.streams.items()})
                effects.append(Send(RELAY, held, lent=True))
            case Gathered() if message.src == RELAY:
                self._gathered(node, message, effects)
            case Answer() | Refusal() | Wake(tag=int()) if self._session is not None and self._session.is_for(message):
                self._turn(node, message, effects)
            case Failed():
                self._failed(node, message, effects)
            case _:
                self._schedule(node, message, self._event(node, message, effects), effects)
        self._sums.add_up(node)
        return node, effects

    def _schedule(self, node: ServerNode, message: Message, event: Event | None, effects: list[Effect]) -> None:
        if event is not None:
            node.schedule, actions = self._star.scheduler.step(node.schedule, event, self._star.roster)
            if not actions and isinstance(event, Started):
                raise CompositionError(
                    f"{self._star.scheduler!r}: must ask somebody, wait or stop when a run begins, got no action: "
                    "nothing would ever happen. Return Dispatch, After or Stop."
                )
            self._act(node, message, actions, effects)

    # What a message means

    def _event(self, node: ServerNode, message: Message, effects: list[Effect]) -> Event | None:
        now, src, body = message.now, message.src, message.body
        match body:
            case Wake(None):
                effects.append(Record("started", {"clients": len(self._star.population.clients)}))
                return Started(now)
            case Wake(int() as tag) if tag > TIMERS:
                return Deadline(now, tag)
            case Trouble(id, stage, reason):
                flight = self._take(node, id, src)
                return None if flight is None else self._lost(now, flight, stage, reason, effects)
            case Reply():
                return self._arrived(node, message, effects)
            case _:
                return None

    def _lost(self, now: float, flight: InFlight, stage: str, reason: str, effects: list[Effect]) -> Lost:
        fields = {"client": flight.client, "version": flight.version, "stage": stage, "reason": reason}
        effects.append(Record("lost", {**fields, "id": flight.task.id, "began": flight.began}))
        return Lost(now, flight.client, flight.task.id, flight.began)

    def _refused(
        self, node: ServerNode, now: float, flight: InFlight, reason: str, effects: list[Effect]
    ) -> Lost | None:
        fields = {"client": flight.client, "version": flight.version, "reason": reason}
        effects.append(Record("refused", {**fields, "id": flight.task.id, "began": flight.began}))
        if self._star.on_refused == "stop":
            node.stopped = True  # and the scheduler is not asked, which might commit or stop for a reason of its own
            effects.append(Halt(f"client {flight.client} was refused: {reason}"))
            return None
        return Lost(now, flight.client, flight.task.id, flight.began)

    def _failed(self, node: ServerNode, message: Message, effects: list[Effect]) -> None:
        """A runtime says that a client is gone, or that it sent what cannot be read: its tasks come to nothing."""
        now, stage, reason = message.now, message.body.stage, message.body.reason
        if self._session is not None:
            self._advance(node, message, self._session.lose(message.src), effects)
            self._act(node, message, [], effects)
        flights = [f for f in node.in_flight.values() if f.client == message.src]
        self._release(flights, effects)
        for flight in flights:
            del node.in_flight[flight.task.id]
            if stage == "message":
                event = self._refused(node, now, flight, reason, effects)
            else:
                event = self._lost(now, flight, stage, reason, effects)
            self._schedule(node, message, event, effects)

    def _take(self, node: ServerNode, id: int, src: NodeId) -> InFlight | None:
        flight = node.in_flight.get(id)
        if flight is None or flight.client != src:
            return None  # answered twice, or not asked
        return node.in_flight.pop(id)

    def _arrived(self, node: ServerNode, message: Message, effects: list[Effect]) -> Event | None:
        now, src, reply = message.now, message.src, message.body
        flight = self._take(node, reply.id, src)
        if flight is None:
            return None
        if reply.has_state:
            node.told[src] = tuple(id for id in node.told.get(src, ()) if id not in flight.task.committed)
        else:
            node.told.pop(src, None)
        expected = () if self._star.channel.exchanges else self._star.all_aggregators().keys()
        fault = fault_of(reply, expected, node.streams)
        if fault:
            return self._refused(node, now, flight, fault, effects)
        told = reply.steps, reply.examples, reply.loss, flight.task.group, reply.report
        measured = measured_of(reply, now) if self._star.scheduler.measures else ()
        info = ReplyInfo(reply.id, src, flight.version, *told, *measured)
        updates = {stream: self._spool.keep(update) for stream, update in reply.updates.items()}
        node.inbox[reply.id] = Waiting(src, reply.loss, updates)
        fields = {
            "client": src,
            "version": flight.version,
            "steps": reply.steps,
            "examples": reply.examples,
            "loss": reply.loss,
            "began": flight.began,
            "fetched": reply.fetched,
            "trained": reply.trained,
            "staleness": node.version - flight.version,
            "id": reply.id,
        }
        effects.append(Record("reply", fields))
        return Arrived(now, info, flight.began)

    def _gathered(self, node: ServerNode, message: Message, effects: list[Effect]) -> None:
        """A relay has done what clients were asked for: each of them is an event to the scheduler, in their order."""
        gathered: Gathered = message.body
        flights = [node.in_flight.pop(id) for id in gathered.ids]
        told = list(zip(flights, gathered.outcomes, strict=True))
        self._lent.clear()  # the relay has nothing any more
        replied = [flight for flight, outcome in told if isinstance(outcome, Outcome)]
        self._sums.gathered(node, (flight.task.id for flight in replied), gathered.sums)
        for flight, outcome in told:
            if isinstance(outcome, Outcome):
                node.inbox[flight.task.id] = Waiting(flight.client, outcome.loss, {})
        version = node.version
        for is_reply, some in groupby(told, lambda of: isinstance(of[1], Outcome)):  # the record has their order, too
            each = list(some)
            if is_reply:
                effects.append(replies_of(message.now, version, each))
            for flight, outcome in each:
                self._schedule(node, message, self._of_one(node, message.now, flight, outcome, effects), effects)
                if node.stopped:
                    return

    def _of_one(
        self,
        node: ServerNode,
        now: float,
        flight: InFlight,
        outcome: Outcome | Trouble | Refused,
        effects: list[Effect],
    ) -> Event | None:
        """What became of one client, as the scheduler is told."""
        match outcome:
            case Outcome(steps, loss, examples):
                told = steps, examples, loss, flight.task.group
                return Arrived(now, ReplyInfo(flight.task.id, flight.client, flight.version, *told), flight.began)
            case Trouble(_, stage, reason):
                return self._lost(now, flight, stage, reason, effects)
            case Refused(_, reason):
                return self._refused(node, now, flight, reason, effects)

    def _fetch(self, node: ServerNode, message: Message, effects: list[Effect]) -> None:
        fetch: Fetch = message.body
        flight = node.in_flight.get(fetch.id)
        if flight is None or flight.client != message.src:
            return
        asked = fetch.of(node.streams)
        wrong = [
            (stream, name)
            for stream, index in asked.items()
            for name, shape in index.shapes.items()
            if tuple(node.streams.get(stream, {}).get(name, _NOWHERE).shape) != tuple(shape)
        ]
        if wrong or "model" not in asked:
            what = f"{[name for _, name in wrong[:3]]} of stream {wrong[0][0]!r}" if wrong else "nothing of `model`"
            reason = (
                f"asked for {what}, with shapes that are not the server's. Client and server must build the same "
                "model, and an algorithm's `fetch` must name the streams that clients want if some have others."
            )
        else:
            try:
                effects.append(self._held(node, message.src, fetch.id, asked))
                flight.version = node.version
                return
            except MISFITS as error:  # of an index that a peer made up
                reason = f"asked for what cannot be gathered: {error}"
        del node.in_flight[fetch.id]
        self._schedule(node, message, self._refused(node, message.now, flight, reason, effects), effects)

    def _held(self, node: ServerNode, client: NodeId, id: int, asked: Mapping[str, Index]) -> Send:
        """What a client holds; what is all of a parameter is lent, until the next commit."""
        parts = [(name, bool(index.grain(name))) for index in asked.values() for name in index.shapes]
        self._lent.update(name for name, is_part in parts if not is_part)
        held = self._star.given(node.streams, asked, node.version)
        return Send(client, Held(id, held), lent=not any(is_part for _, is_part in parts))

    def _take_back(self, streams: ServerState) -> None:
        """Leave what was lent to those who have it, before the server's parameters change."""
        for params in streams.values():
            params.update({name: params[name].clone() for name in self._lent & params.keys()})
        self._lent.clear()

    # What the scheduler wants

    def _act(self, node: ServerNode, message: Message, actions: Sequence[Any], effects: list[Effect]) -> None:
        self._do(node, message, actions, effects)
        while self._num_skipped and self._session is None:
            self._num_skipped -= 1
            self._schedule(node, message, None if node.stopped else Skipped(message.now), effects)

    def _do(self, node: ServerNode, message: Message, actions: Sequence[Any], effects: list[Effect]) -> None:
        """What is asked for, as far as no exchange of a channel is open."""
        queue = deque([*self._waiting, *actions])
        errand: list[Any] = []  # what a relay is to send to clients
        self._waiting = []
        while queue and not node.stopped:
            if self._session is not None:
                self._waiting = list(queue)
                return
            action = queue.popleft()
            check_action(self._star.scheduler, action, self._star.population.clients, node.inbox)
            match action:
                case Dispatch():
                    self._dispatch(node, message.now, action, errand if self._is_relayed else effects)
                case Accept(replies):
                    self._sums.accept(node, replies)
                case Commit():
                    self._commit(node, message, action, effects)
                case Discard(replies):
                    self._sums.discard(node, replies)
                    for info in replies:
                        node.inbox.pop(info.id, None)
                case GiveUp(clients):
                    self._give_up(node, clients, effects)
                case After(seconds, tag):
                    effects.append(Send(message.me, Wake(tag), after=seconds))
                case Stop(reason, version):
                    node.stopped = node.version >= version  # else the commit before it came to nothing
                    effects += [Halt(reason)] if node.stopped else []
                case _:
                    raise no_action(self._star.scheduler, "acts by actions as of partwise.core.schedule", action)
        if errand:
            effects.append(Send(RELAY, Errand(sorted((send.to, send.body) for send in errand))))

    def _dispatch(self, node: ServerNode, now: float, wanted: Dispatch, sends: list[Any]) -> None:
        client = wanted.client
        version, times = node.attempts.get(client, (-1, 0))
        attempt = times if version == node.version else 0
        node.attempts[client] = (node.version, attempt + 1)
        task = Task(node.next_id, node.version, attempt, wanted.steps, node.told.get(client, ()), *wanted[2:])
        node.in_flight[task.id] = InFlight(task, client, now, node.version)
        self._sums.asked(client, task.id)
        node.next_id += 1
        sends.append(Send(client, task))

    def _give_up(self, node: ServerNode, clients: Sequence[int], effects: list[Effect]) -> None:
        unwanted = set(clients)
        flights = [f for f in node.in_flight.values() if f.client in unwanted]
        self._release(flights, effects)
        for flight in flights:
            del node.in_flight[flight.task.id]
            self._lost(0.0, flight, "deadline", "is no longer waited for", effects)

    def _release(self, flights: Iterable[InFlight], effects: list[Effect]) -> None:
        """Tell of tasks that come to nothing, or a client that waits there takes the next one for a follower."""
        effects.extend(Send(f.client, Released(f.task.id)) for f in flights if f.task.is_followed)

    def _commit(self, node: ServerNode, message: Message, commit: Commit, effects: list[Effect]) -> None:
        scales = dict(zip((info.id for info in commit.replies), commit.scales, strict=bool(commit.scales)))
        # So that the order of arrival never matters.
        ordered = sorted(commit.replies, key=lambda info: (info.client, info.id))
        ordered = [info._replace(scale=scales[info.id]) for info in ordered] if scales else ordered
        in_order = [info.scale for info in ordered] if scales else ()
        if not self._star.channel.exchanges:
            sums = self._sums.take(node, ordered, in_order)
            streams = self._star.all_aggregators()
            opened = {s: sums[s] if s in sums else self._updates(node, ordered, s) for s in streams}
            self._close(node, ordered, opened, effects, scales=in_order)
            return
        if scales:
            raise self._star.cannot_scale()
        self._session = Session(self._star.channel, ordered, list(self._star.all_aggregators()), node.streams)
        number, node.next_id = node.next_id, node.next_id + 1  # no other exchange has it, so its timers are its own
        self._advance(node, message, self._session.open(number), effects)

    def _updates(self, node: ServerNode, infos: Sequence[ReplyInfo], stream: str) -> Iterable[Update]:
        """One update after another, so that they are never all in memory."""
        is_sent = takes_sent(self._star.all_aggregators()[stream])
        for info in infos:
            update: Update = node.inbox[info.id].updates[stream].take()
            yield update if is_sent or info.scale == 1 else scale(update, info.scale)

    def _turn(self, node: ServerNode, message: Message, effects: list[Effect]) -> None:
        assert self._session is not None
        self._advance(node, message, self._session.step(message), effects)
        if self._session is None:
            self._act(node, message, [], effects)

    def _advance(self, node: ServerNode, message: Message, sends: list[Send], effects: list[Effect]) -> None:
        assert self._session is not None
        effects.extend(sends)
        if self._session.is_done:
            session, self._session = self._session, None
            effects.extend(Send(i.client, Released(i.id)) for i in session.replies)
            for info in (i for i in session.replies if i.client in session.silent | session.refusals.keys()):
                reason = session.refusals.get(info.client, "did not answer, or too late")
                fields = {"client": info.client, "version": info.version, "id": info.id, "began": message.now}
                effects.append(Record("lost", {**fields, "stage": "exchange", "reason": reason}))
            if session.failure:
                self._skip(node, session.replies, session.failure, effects)
            else:
                self._close(node, session.replies, session.opened, effects, lost=session.lost, told=session.told)

    def _skip(self, node: ServerNode, infos: Sequence[ReplyInfo], reason: str, effects: list[Effect]) -> None:
        """Nothing is committed."""
        self._forget(node, infos)
        self._num_skipped += 1
        effects.append(Record("skipped", {"version": node.version, "replies": len(infos), "reason": reason}))

    def _close(
        self,
        node: ServerNode,
        infos: Sequence[ReplyInfo],
        opened: Mapping[str, Sum | Iterable[Update]],
        effects: list[Effect],
        *,
        lost: Collection[int] = (),
        scales: Sequence[float] = (),
        told: Mapping[str, float] | None = None,
    ) -> None:
        kept = [info for info in infos if info.client not in lost]
        losses = [(node.inbox[i.id].loss, i.examples) for i in kept]
        try:
            totals = self._totals(node, opened, kept, effects)
        except ValueError as error:  # a rule that cannot work with what came: nothing is committed
            self._skip(node, infos, str(error), effects)
            return
        self._forget(node, infos)
        for info in (i for i in kept if i.client in node.told):
            node.told[info.client] = (*node.told[info.client], info.id)
        self._take_back(node.streams)
        node.streams = self._star.algorithm.commit(node.streams, totals, kept)
        check_committed(self._star.algorithm, node.streams, self._star.like, node.version)
        node.version += 1
        node.attempts.clear()
        weight = sum(n for _, n in losses)
        fields = {
            "version": node.version,
            "replies": len(kept),
            "clients": [i.client for i in kept],
            "loss": sum(loss * n for loss, n in losses) / weight if weight else float("nan"),
            "median_loss": statistics.median(loss for loss, _ in losses) if losses else float("nan"),
            "staleness": [node.version - 1 - i.version for i in kept],
            **({"scales": list(scales)} if scales else {}),
            **(told or {}),
        }
        effects.append(Record("commit", fields))

    def _totals(
        self,
        node: ServerNode,
        opened: Mapping[str, Sum | Iterable[Update]],
        infos: Sequence[ReplyInfo],
        effects: list[Effect],
    ) -> dict[str, Update]:
        """Stream -> what is to be added. Where a rule refuses, those of other streams have seen nothing either."""
        totals: dict[str, Update] = {}
        reducers, told = dict(node.reducers), list[Effect]()
        for stream, aggregator in self._star.all_aggregators().items():
            params = node.streams[stream]
            got = fitting(opened[stream], aggregator, params)
            found = aggregator.reduce(got, reducers[stream], params, infos)
            check_two(aggregator, "reduce", found, "an Update and its next state, two things")
            total, reducers[stream] = found
            check_total(aggregator, total, params)
            totals[stream] = typed(total, params)
            facts = told_by(aggregator, reducers[stream])
            more = {} if isinstance(got, Sum) else coverage(got, totals[stream], params)
            if facts or more:
                told.append(Record("told", {"stream": stream, "version": node.version, **facts, **more}))
        for stream, changed in totals.items():  # when no rule can refuse any more: chains may overwrite their states
            if stream in self._star.server_chain:
                rng, chain = generator(self._star.seed, f"server chain {stream}", node.version), node.chains[stream]
                part = self._star.server_chain[stream]
                changed, node.chains[stream] = passed_on(part, changed, chain, rng, node.streams[stream])
                totals[stream] = changed
            if not is_finite(changed):
                raise DivergedError(
                    f"version {node.version}: the aggregate of stream {stream!r} is no longer finite. "
                    "Lower the learning rates; the last checkpoint is from before."
                )
        node.reducers = reducers
        effects.extend(told)
        return totals

    def _forget(self, node: ServerNode, infos: Sequence[ReplyInfo]) -> None:
        for info in infos:
            del node.inbox[info.id]
