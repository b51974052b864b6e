"""The virtual clock: every node in one process, one heap of messages, the same bits every time."""

from __future__ import annotations

import copy
import gc
import math
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from partwise.core.codec import encoded_size
from partwise.core.plan import Executor, Job, opened, ran
from partwise.core.population import Population, speed_of
from partwise.core.program import RELAY, SERVER, Count, Effect, Halt, Message, NodeId, Program, Record, Send, Wake, Work
from partwise.core.runtime import Observer, Traffic
from partwise.core.spool import DEFAULT_MEMORY_BYTES, Kept, footprint, halves
from partwise.core.summing import SumJob
from partwise.runtimes.executors.adding import A_FEW as _A_FEW
from partwise.runtimes.executors.adding import MANY as _MANY
from partwise.runtimes.executors.adding import TOGETHER_BYTES as _TOGETHER_BYTES
from partwise.runtimes.executors.adding import added
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.parcel import Opened, Parcel, Queue, clock_of, packed, reworked, tag_of, told, unpacked

__all__ = ["Simulate"]


@dataclass(frozen=True)
class Simulate:
    """The simulator.

    A message takes its encoded bytes over the client's link; a local step takes the client's pace. Server and
    network add nothing. Jobs wait until the first of their results is due, and are then run together with those that
    are due next.

    Args:
        executor: runs local plans; one that is `core.plan.Resident` is opened for the run. What it notes of itself is
            recorded as `executor`, and known to it again when the run is resumed.
        memory_bytes: bound of the memory for replies that wait for a commit (half of it) and for messages under way
            and client states (the other half), >= 0; what is more goes to temporary files. No result depends on it.
        folder: where those files are; the system's folder for temporary files by default.
        relays: whether a relay stands for clients where it may (`Star.is_relayable`): they take no time, and nothing
            but the sum of their updates matters. It saves their messages; results are the same but for rounding, with
            `Plain` and `Pool` to the last bit.
    """

    executor: Executor = field(default_factory=Plain)
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    folder: str | None = None
    relays: bool = True

    def __post_init__(self) -> None:
        if self.memory_bytes < 0:
            raise ValueError(
                f"Simulate(memory_bytes={self.memory_bytes}): must be at least 0, got {self.memory_bytes}. "
                "0 keeps next to nothing in memory."
            )

    def run(
        self,
        programs: Mapping[NodeId, Program],
        population: Population,
        observer: Observer,
        *,
        until: float | None = None,
        entries: Mapping[str, object] | None = None,
    ) -> tuple[Mapping[NodeId, Any], str]:
        saved: Any = (entries or {}).get("executor", ({}, {}))
        notes, told = dict(saved[0]), saved[1]
        with _seldom_collected(), opened(self.executor, notes) as executor:
            world = _World(programs, population, (executor, notes, told), (self.memory_bytes, self.folder))
            if entries is None or "clock" not in entries:  # what is known of the executor alone says nothing of a run
                world.start()
            else:
                world.restore(entries)
            reason = world.run(observer, math.inf if until is None else until)
            observer.ended(world, reason)
        return Opened(world.nodes), reason


_OBJECTS = 10_000  # made and still there, before Python looks for cycles among them; its own number is 700 or 2,000


@dataclass
class _Collecting:
    """How often Python looked for garbage before the first of the runs that are going on, in threads, and how many."""

    before: tuple[int, int, int] = (0, 0, 0)
    runs: int = 0


_COLLECTING, _AT_A_TIME = _Collecting(), threading.Lock()


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Let Python look for garbage in cycles less often, until the last run has ended.

    A round of many clients makes many objects, none of them in a cycle: to look at all of them again and again takes a
    third of its time.
    """
    with _AT_A_TIME:
        if not _COLLECTING.runs:
            _COLLECTING.before = often, *rest = gc.get_threshold()
            gc.set_threshold(max(often, _OBJECTS) if often else 0, *rest)  # 0: never
        _COLLECTING.runs += 1
    try:
        yield
    finally:
        with _AT_A_TIME:
            _COLLECTING.runs -= 1
            if not _COLLECTING.runs:
                gc.set_threshold(*_COLLECTING.before)


class _World:
    def __init__(
        self,
        programs: Mapping[NodeId, Program],
        population: Population,
        executor: tuple[Executor, dict[str, Any], dict[str, Any]],  # what it notes, and what of that is recorded
        memory: tuple[int, str | None],
    ) -> None:
        self.now, self.traffic = 0.0, Traffic()
        self.nodes: dict[NodeId, Kept] = {}
        self._programs, self._population = programs, population
        self._executor, self._notes, self._told = executor
        self._spool, replies = halves(*memory)
        self._queue = Queue()
        self._next: deque[Parcel] = deque()  # of one client, and before all of the queue that is not before them
        self._number = 0
        self._due = Queue()  # those whose body is to be computed
        self._jobs: dict[int, Job] = {}  # by number of the parcel; what is not here is made anew from the node's state
        self._borrowed: dict[NodeId, int] = {}  # bytes in a node's state that are the server's
        self._num_late = self._late_bytes = 0  # of the jobs whose results are late
        self._changed: set[NodeId] = set()
        self._saved: set[int] = set()  # numbers of the messages that the last entries had
        self._halted = ""
        self._client = self._awake = SERVER  # whose message is being delivered; whose state is not in the spool
        programs[SERVER].attach(replies)

    def start(self) -> None:
        """The server wakes first; a client exists from its first message on."""
        self._push(0.0, SERVER, SERVER, Wake())

    def state(self, node: NodeId) -> Any:
        return self.nodes[node].tree if node in self.nodes else None

    # Time

    def run(self, observer: Observer, until: float) -> str:
        while (self._next or self._queue) and not self._halted:
            if self._next and not (self._queue and self._queue.first.rank < self._next[0].rank):
                parcel = self._next.popleft()
            elif self._queue.first.time > until:
                return "time is up"
            else:
                parcel = self._queue.pop()
            if parcel.is_late:
                self._num_late, self._late_bytes = self._num_late - 1, self._late_bytes - parcel.size
            self.now, self._client = parcel.time, parcel.client
            body = self._opened(parcel)
            if parcel.to == SERVER and (stop := observer.heard(self.now, parcel.src, tag_of(body))):
                self._queue.push(parcel.stamped(Kept(body)))
                return stop
            effects = self._step(parcel, body)
            records = [*self._noted(), *self._apply(parcel.to, effects)]
            stops = [observer.record(record, self) for record in records]
            if records and self._programs[SERVER].is_settled():
                observer.settled(self)
            if any(stops):
                return next(stop for stop in reversed(stops) if stop)
        return self._halted or "nothing left to do"

    def _opened(self, parcel: Parcel) -> Any:
        """What is in a parcel, which is computed at the latest now."""
        if parcel.body is None:
            self._run_jobs()
        assert parcel.body is not None
        return parcel.body.take()

    def _step(self, parcel: Parcel, body: Any) -> list[Effect]:
        program, node = self._programs[parcel.to], parcel.to
        state = self.nodes.pop(node).take() if node in self.nodes else program.init(node)
        state, effects = program.step(state, Message(parcel.time, node, parcel.src, body))
        if parcel.is_lent and any(isinstance(effect, Work) for effect in effects):  # else nothing of it is kept
            self._borrowed[node] = footprint(body)
        elif parcel.src == node:
            self._borrowed.pop(node, None)
        if not program.is_blank(state):
            self._keep(node, state)
        return effects

    def _keep(self, node: NodeId, state: Any) -> None:
        """Keep a node's state; in the spool only once it is another client's turn."""
        self._changed.add(node)
        self.nodes[node] = Kept(state)
        if node in (SERVER, self._awake):
            return
        if self._awake in self.nodes:
            old = self.nodes[self._awake].take()
            size = max(0, footprint(old) - self._borrowed.get(self._awake, 0))
            self.nodes[self._awake] = self._spool.keep(old, size)
        self._awake = node

    def _run_jobs(self) -> None:
        """Run what is due next, in order of client, so that an executor may run it together."""
        waiting: list[tuple[Parcel, Job]] = []
        size = 0
        while self._due and len(waiting) < _MANY:
            if len(waiting) >= _A_FEW and size + self._due.first.size > _TOGETHER_BYTES:
                break
            parcel = self._due.pop()
            job = self._job(parcel)
            if job is None:
                parcel.body = Kept(Wake())  # nobody waits for it any more
            else:
                size += parcel.size
                waiting.append((parcel, job))
        waiting.sort(key=lambda found: (found[0].to, found[0].number))
        results = ran(self._executor, [job for _, job in waiting])
        for (parcel, _), result in zip(waiting, results, strict=True):
            parcel.body = self._spool.keep(told(result, parcel.seed), parcel.size)

    def _job(self, parcel: Parcel) -> Job | None:
        """The job whose result a parcel brings; None if its node has given it up."""
        if parcel.number in self._jobs:
            return self._jobs.pop(parcel.number)
        return reworked(parcel, self._programs[parcel.to], self.nodes.get(parcel.to))

    def _noted(self) -> list[Record]:
        """What the executor has to say, once."""
        if self._notes == self._told:
            return []
        self._told = copy.deepcopy(self._notes)
        return [Record("executor", self._told)]

    def _apply(self, me: NodeId, effects: Sequence[Effect]) -> list[Record]:
        records: list[Record] = []
        for effect in effects:
            match effect:
                case Send(to, body, after, lent) if after != math.inf:
                    self._send(me, to, body, after, lent)
                case Work(SumJob() as job, _):
                    self._push(self.now, me, me, added(self._executor, job), 0)
                case Work(job, steps):
                    self._work(me, job, steps)
                case Count(client, up, down, messages):
                    self.traffic.count_(client, uplink=up, downlink=down, messages=messages)
                case Record():
                    records.append(effect)
                case Halt(reason):
                    self._halted = reason
        return records

    def _push(
        self, time: float, src: NodeId, to: NodeId, body: Any, size: int | None = None, *, lent: bool = False
    ) -> None:
        client = max(src, to)
        parcel = Parcel(time, False, client, self._number, src, to, is_lent=lent)
        if time == self.now and client == self._client and (not self._next or self._next[-1].client == client):
            self._next.append(parcel.stamped(Kept(body)))  # it will not wait for long
        else:
            kept = self._spool.keep(body, 0 if lent else size)
            self._queue.push(parcel.stamped(kept))
        self._number += 1

    def _work(self, me: NodeId, job: Job, steps: int) -> None:
        """Have the result delivered when the client is through; when it is computed is another matter."""
        size, seconds = footprint(job.start), steps * speed_of(self._population, me, self.now).seconds_per_step
        if not seconds:
            self._gather(size)
            self._num_late += 1
        parcel = Parcel(self.now + seconds, not seconds, me, self._number, me, me, size, job.seed)
        if not seconds or self._programs[me].rework is None:
            self._jobs[self._number] = job
        self._due.push(parcel)
        self._queue.push(parcel)
        self._number += 1

    def _gather(self, size: int) -> None:
        """Count a job that takes no time; when there are enough of them, let their results come before all else."""
        is_full = self._num_late >= _A_FEW and self._late_bytes + size > _TOGETHER_BYTES
        if is_full or self._num_late >= _MANY:
            self._run_jobs()
            for parcel in self._queue:
                parcel.hurry()
            self._queue, self._due = Queue(self._queue), Queue(self._due)
            self._num_late = self._late_bytes = 0
        self._late_bytes += size

    def _send(self, src: NodeId, to: NodeId, body: Any, after: float, lent: bool) -> None:
        """Have a message delivered when its bytes, which are counted, have crossed the client's link."""
        size = None
        if RELAY in (src, to):
            size = 0  # it is on no link, and what it has is not kept for long
        elif src != to:
            size = encoded_size(body)
            if to == SERVER:
                self.traffic.count_(src, uplink=size)
                after += size / speed_of(self._population, src, self.now).uplink
            else:
                self.traffic.count_(to, downlink=size)
                after += size / speed_of(self._population, to, self.now).downlink
        self._push(self.now + after, src, to, body, size, lent=lent)

    # Saving

    def entries(self) -> tuple[Mapping[str, object], Collection[str]]:
        while any(self._programs[parcel.to].rework is None for parcel in self._due):
            self._run_jobs()
        clock = clock_of(self.now, self._number, self.traffic, self._halted)
        queue = [*self._queue, *self._next]
        numbers = {parcel.number for parcel in queue}
        unchanged = {f"node/{node}" for node in self.nodes if node not in self._changed}
        unchanged |= {f"message/{number}" for number in numbers & self._saved}
        self._changed.clear()
        self._saved = {parcel.number for parcel in queue if parcel.body is not None}
        found = packed(clock, queue, self.nodes)
        return (found.with_("executor", (self._notes, self._told)) if self._notes else found), unchanged

    def restore(self, entries: Mapping[str, object]) -> None:
        """Go on from what `entries` gave."""
        clock, queue, self.nodes = unpacked(entries, self._spool)
        self.now, self._number, self.traffic = clock["now"], clock["number"], clock["traffic"]
        self._halted = clock["halted"]
        self._queue = Queue(queue)
        late = [parcel.size for parcel in queue if parcel.is_late]
        self._num_late, self._late_bytes = len(late), sum(late)
        self._due = Queue(parcel for parcel in queue if parcel.body is None)
        self._saved = {parcel.number for parcel in queue if parcel.body is not None}
