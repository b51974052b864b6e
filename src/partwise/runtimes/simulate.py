"""The virtual clock: every node in one process, one heap of messages, the same bits every time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from partwise.core.codec import encoded_size, register
from partwise.core.plan import Executor, Job
from partwise.core.population import Population
from partwise.core.program import SERVER, Effect, Failed, Halt, Message, NodeId, Program, Record, Send, Wake, Work
from partwise.core.runtime import Observer, Traffic
from partwise.runtimes.executors.plain import Plain

__all__ = ["Simulate"]


@register
@dataclass(order=True)
class _Event:
    """A message under way. Ties in time are broken by the order of sending."""

    time: float
    number: int
    src: NodeId = field(compare=False)
    to: NodeId = field(compare=False)
    body: Any = field(compare=False)


class _Pending:
    """Stands for the result of a job that has not been run yet."""


@dataclass(frozen=True)
class Simulate:
    """The simulator.

    A message takes its encoded bytes over the client's link; a local step takes the client's pace. Server and
    network add nothing.

    Args:
        executor: runs local plans.
    """

    executor: Executor = field(default_factory=Plain)

    def run(
        self,
        programs: Mapping[NodeId, Program],
        population: Population,
        observer: Observer,
        *,
        until: float | None = None,
        entries: Mapping[str, object] | None = None,
    ) -> tuple[Mapping[NodeId, Any], str]:
        world = _World(programs, population, self.executor)
        if entries is None:
            world.start()
        else:
            world.restore(entries)
        reason = world.run(observer, math.inf if until is None else until)
        observer.ended(world, reason)
        return world.states, reason


class _World:
    def __init__(self, programs: Mapping[NodeId, Program], population: Population, executor: Executor) -> None:
        self.now, self.traffic = 0.0, Traffic()
        self.states: dict[NodeId, Any] = {}
        self._programs, self._population, self._executor = programs, population, executor
        self._queue: list[_Event] = []
        self._number = 0
        self._jobs: dict[int, tuple[NodeId, Job]] = {}  # by number of the event that brings the result
        self._results: dict[int, Any] = {}
        self._changed: set[NodeId] = set()
        self._stop = ""

    def start(self) -> None:
        """The server wakes first; a client exists from its first message on."""
        self._push(0.0, SERVER, SERVER, Wake())

    def state(self, node: NodeId) -> Any:
        return self.states.get(node)

    # Time

    def run(self, observer: Observer, until: float) -> str:
        while self._queue:
            if self._queue[0].time > until:
                return "time is up"
            event = heapq.heappop(self._queue)
            self.now = event.time
            program = self._programs[event.to]
            if event.to not in self.states:
                self.states[event.to] = program.init(event.to)
            message = Message(event.time, event.to, event.src, self._body(event))
            self.states[event.to], effects = program.step(self.states[event.to], message)
            self._changed.add(event.to)
            records = self._apply(event.to, effects)
            for record in records:
                self._stop = observer.record(record, self) or self._stop
            if records and self._programs[SERVER].is_settled():
                observer.settled(self)
            if self._stop:
                return self._stop
        return "nothing left to do"

    def _body(self, event: _Event) -> Any:
        if not isinstance(event.body, _Pending):
            return event.body
        self._run_jobs()
        result = self._results.pop(event.number)
        if isinstance(result, Exception):
            return Failed("train", f"{type(result).__name__}: {result}")
        return result

    def _run_jobs(self) -> None:
        """Run what is waiting, in order of client, so that an executor may run it together."""
        numbers = sorted(self._jobs, key=lambda number: (self._jobs[number][0], number))
        results = self._executor.run([self._jobs[number][1] for number in numbers])
        self._results.update(zip(numbers, results, strict=True))
        self._jobs.clear()

    def _apply(self, me: NodeId, effects: Sequence[Effect]) -> list[Record]:
        records: list[Record] = []
        for effect in effects:
            match effect:
                case Send(to, body, after):
                    if after != math.inf:
                        self._push(self.now + after + self._transfer(me, to, body), me, to, body)
                case Work(job, steps):
                    self._jobs[self._number] = (me, job)
                    pace = self._population.profile(me).seconds_per_step
                    self._push(self.now + steps * pace, me, me, _Pending())
                case Record():
                    records.append(effect)
                case Halt(reason):
                    self._stop = reason
        return records

    def _push(self, time: float, src: NodeId, to: NodeId, body: Any) -> None:
        heapq.heappush(self._queue, _Event(time, self._number, src, to, body))
        self._number += 1

    def _transfer(self, src: NodeId, to: NodeId, body: Any) -> float:
        """Seconds a message takes; its bytes are counted."""
        if src == to:
            return 0.0
        size = encoded_size(body)
        if to == SERVER:
            self.traffic.count_(src, uplink=size)
            return size / self._population.profile(src).uplink
        self.traffic.count_(to, downlink=size)
        return size / self._population.profile(to).downlink

    # Saving

    def entries(self) -> tuple[Mapping[str, object], Collection[str]]:
        self._run_jobs()
        for event in self._queue:
            if isinstance(event.body, _Pending):
                event.body = self._results.pop(event.number)
                if isinstance(event.body, Exception):
                    event.body = Failed("train", f"{type(event.body).__name__}: {event.body}")
        clock = {"now": self.now, "number": self._number, "traffic": self.traffic}
        entries: dict[str, object] = {"clock": clock, "queue": sorted(self._queue)}
        entries.update({f"node/{node}": state for node, state in self.states.items()})
        unchanged = {f"node/{node}" for node in self.states if node not in self._changed}
        self._changed.clear()
        return entries, unchanged

    def restore(self, entries: Mapping[str, object]) -> None:
        """Go on from what `entries` gave."""
        clock: Any = entries["clock"]
        queue: Any = entries["queue"]
        self.now, self._number, self.traffic = clock["now"], clock["number"], clock["traffic"]
        self._queue = sorted(queue)
        for name in entries:
            if name.startswith("node/"):
                self.states[int(name.removeprefix("node/"))] = entries[name]
