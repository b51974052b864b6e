"""The machines of a Ray cluster: the server in this process, a warm host of clients in every actor."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from partwise.core.checks import at_least
from partwise.core.codec import DEFAULT_MAX_BYTES
from partwise.core.errors import CompositionError, ProtocolError
from partwise.core.plan import Executor, Resident
from partwise.core.population import Client, Population
from partwise.core.program import NodeId, Program
from partwise.core.runtime import Observer
from partwise.core.spool import DEFAULT_MEMORY_BYTES
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.host import Host, HostPlan
from partwise.runtimes.sources import Source, Sources, loaded_from_files
from partwise.runtimes.transport import Envelope, Kind, joined
from partwise.runtimes.wallclock import Limits, WallClock

__all__ = ["Ray"]

_WINDOW = 2  # messages that an actor has at a time: one that it is at, and one that it need not wait for
_Flat = tuple[int, int, int, int, float, Any]  # an envelope as Ray carries it: its body is a view of flat bytes


@dataclass(frozen=True)
class Ray:
    """One actor per worker, on whatever machines the cluster has, and the wall clock. Needs `partwise[ray]`.

    Client c lives in actor `c % workers`. Messages are the encoded ones, as flat bytes in Ray's shared memory. What
    describes the run, the data of all clients with it, is given to every actor once, by Ray's own pickling: a cluster
    is one trusted machine. An actor that is lost takes the tasks of its clients with it, and is started again, wherever
    the cluster has room; its clients go on from their state when the world was last looked at.

    With a scheduler that waits for its whole cohort, a run ends with the bits of the simulator.

    Args:
        workers: how many actors, >= 1.
        executor: runs local plans, in the actors; not one that is `core.plan.Resident`.
        memory_bytes: bound of the memory for replies that wait for a commit (half of it) and for messages under way
            and client states (the other half), in this process, and for as much again in all actors together.
        folder: of the temporary files for the rest, on every machine.
        max_message_bytes: a longer message from a client is refused.
        max_restarts: how often one actor may be started again.
        address: of the cluster; None for the one that this process is connected to, or else a new one on this machine.
        cpus: cores that an actor takes.
        gpus: shares of a GPU that it takes.
    """

    workers: int = 2
    executor: Executor = field(default_factory=Plain)
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    folder: str | None = None
    max_message_bytes: int = DEFAULT_MAX_BYTES
    max_restarts: int = 3
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    relays: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(self, workers=1, memory_bytes=0, max_message_bytes=1, max_restarts=0, cpus=0, gpus=0)
        if isinstance(self.executor, Resident):
            raise CompositionError(
                f"Ray(executor={self.executor!r}): its actors are processes already and open no executor, got one "
                "that is opened for a run. Use Plain()."
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
        """As `Runtime.run`.

        Raises:
            ImportError: Ray is not installed.
            ProtocolError: an actor is lost too often, or meets an error that no program catches.
        """
        clock: Any = entries["clock"] if entries is not None else {"now": 0.0}
        began = time.monotonic() - clock["now"]
        memory, limits = (self.memory_bytes, self.folder), Limits(self.max_message_bytes)
        with closing(_Actors(self, programs, clock["now"])) as actors:
            world = WallClock(programs, self.executor, actors, began, memory=memory, limits=limits, place="actor")
            return world.whole_run(observer, until, entries)


class _Seat:
    """The inside of an actor."""

    def __init__(self, given: Sequence[Any], sources: Mapping[str, Source], sizes: tuple[int, str | None], now: float):
        import ray

        sys.meta_path.append(Sources(sources))  # before anything is unpickled that is made of them
        programs, executor = ray.get(given[0])
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self._out: list[Envelope] = []
        plan = HostPlan(programs, executor, sizes[0], sizes[1], time.monotonic() - now)
        self._host = Host(plan, self._out.append)

    def handle(self, flat: _Flat, state: Any) -> list[_Flat]:
        """One message, and all that comes of it."""
        kind, src, to, number, _, body = flat
        if state is not None:
            self._host.take(Envelope(Kind.NODE, to=to, body=memoryview(state)))
        self._host.take(Envelope(Kind(kind), src, to, number, body=memoryview(body)))
        while self._host.has_more:
            self._host.turn()
        out, self._out[:] = [_flat(e) for e in self._out], []
        return out

    def states(self) -> list[_Flat]:
        """The state of every client that has changed since the last time."""
        return [_flat(envelope) for envelope in self._host.states()]


def _flat(e: Envelope) -> _Flat:
    return int(e.kind), e.src, e.to, e.number, e.after, np.frombuffer(joined(e.body), np.uint8)


class _Call(NamedTuple):
    actor: int
    envelope: Envelope | None  # None: it was asked for its clients' states


class _Actors:
    """A `Transport` over the actors of a run."""

    def __init__(self, of: Ray, programs: Mapping[NodeId, Program], now: float) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
        try:
            import ray
        except ImportError as error:
            raise ImportError("Ray(): needs Ray, got none. Run: pip install 'partwise[ray]'") from error

        self._ray, self._of, self._now, self._programs = ray, of, now, programs
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            ray.init(of.address, include_dashboard=False, log_to_driver=False, configure_logging=False)
            self._refuse_too_many()
        self._given = [ray.put((programs, of.executor))]  # in a list, so that an actor asks for it when it can read it
        self._sources = loaded_from_files()
        self._starts = [0] * of.workers
        self._actors = [self._started(number) for number in range(of.workers)]
        self._knows: list[set[Client]] = [set() for _ in self._actors]
        self._queues: list[deque[Envelope]] = [deque() for _ in self._actors]
        self._calls: dict[Any, _Call] = {}
        self._arrived: list[Envelope] = []
        self._looking = 0  # actors that have not told their states yet
        self._is_looking = False

    def _refuse_too_many(self) -> None:
        """On this machine alone, actors that there is no room for would be waited for for ever."""
        there = self._ray.cluster_resources()
        for what, name, share in (("cpus", "CPU", self._of.cpus), ("gpus", "GPU", self._of.gpus)):
            found, needed = there.get(name, 0.0), share * self._of.workers
            if self._of.address is None and needed > found:
                self._ray.shutdown()
                raise CompositionError(
                    f"Ray(workers={self._of.workers}, {what}={share:g}): its actors must have room on this machine, "
                    f"which has {found:g} {name}s, got actors that take {needed:g}. Ask for fewer workers, let each "
                    f"take a smaller share by {what}, or name the address of a cluster."
                )

    def _started(self, number: int) -> Any:
        self._starts[number] += 1
        sizes = self._of.memory_bytes // self._of.workers, self._of.folder
        kind = self._ray.remote(num_cpus=self._of.cpus, num_gpus=self._of.gpus, max_restarts=0)(_Seat)
        return kind.remote(self._given, self._sources, sizes, self._now)

    def close(self) -> None:
        """End all actors, and the cluster, if it was begun here."""
        for actor in self._actors:
            self._ray.kill(actor)
        if self._is_ours:
            self._ray.shutdown()

    # What the server's process calls

    def nodes(self) -> Collection[Client]:
        return [client for client in self._programs if client >= 0]

    def push(self, envelopes: Iterable[Envelope]) -> None:
        for envelope in envelopes:
            if envelope.kind == Kind.LOOK:
                self._is_looking = True
                for number, actor in enumerate(self._actors):
                    self._calls[actor.states.remote()] = _Call(number, None)
                    self._looking += 1
            else:
                number = envelope.to % len(self._actors)
                self._queues[number].append(envelope)
        self._send()

    def _send(self) -> None:
        """Give every actor what it has room for; nothing while it is being looked at."""
        for number, queue in enumerate(self._queues):
            while queue and not self._is_looking and self._at_work(number) < _WINDOW:
                envelope = queue.popleft()
                is_new = envelope.to not in self._knows[number]
                self._knows[number].add(envelope.to)
                state = np.frombuffer(joined(envelope.state), np.uint8) if is_new and envelope.state else None
                call = self._actors[number].handle.remote(_flat(envelope), state)
                self._calls[call] = _Call(number, envelope)

    def _at_work(self, number: int) -> int:
        return sum(call.actor == number for call in self._calls.values())

    def pull(self) -> list[Envelope]:
        arrived, self._arrived = self._arrived, []
        if self._is_looking and not self._looking and not arrived:
            self._is_looking = False
            arrived += [envelope._replace(kind=Kind.HELD) for queue in self._queues for envelope in queue]
            arrived.append(Envelope(Kind.LOOKED))
        return arrived

    def wait(self, seconds: float | None, minimum: int = 1) -> bool:
        end = math.inf if seconds is None else time.monotonic() + seconds
        while len(self._arrived) < minimum:
            self._send()
            if not self._calls:
                if self._is_looking:
                    break
                if seconds is None:
                    return bool(self._arrived)
            left = end - time.monotonic()
            self._collect(None if seconds is None else max(0.0, left))
            if left <= 0:
                break
        return True

    def _collect(self, seconds: float | None) -> None:
        if not self._calls:
            time.sleep(seconds or 0.0)
            return
        ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        for reference in ready:
            call = self._calls.pop(reference, None)
            if call is not None:
                self._arrived += self._result(reference, call)
        self._send()

    def _result(self, reference: Any, call: _Call) -> Sequence[Envelope]:
        errors = self._ray.exceptions
        self._looking -= call.envelope is None
        try:
            found: list[_Flat] = self._ray.get(reference)
        except errors.RayTaskError as error:
            said = str(error.cause or error).strip().splitlines()[-1]
            raise ProtocolError(
                f"Ray(workers={len(self._actors)}): actor {call.actor} must get through its clients' steps, got: "
                f"{type(error.cause or error).__name__}: {said}. Mend that."
            ) from error
        except errors.RayError as error:
            return list(self._replace(call, error))
        return [Envelope(Kind(f[0]), f[1], f[2], f[3], f[4], memoryview(f[5])) for f in found]

    def _replace(self, call: _Call, error: Exception) -> Iterator[Envelope]:
        """Start a lost actor again; the loss of the clients that it knew: of what they were at, if at anything."""
        number, why = call.actor, f"actor {call.actor} was lost"
        if "error raised in its creation task" in str(error):  # then the next one would fare no better
            raise ProtocolError(
                f"Ray(workers={len(self._actors)}): actor {number} must be able to begin, got: "
                f"{str(error).strip().splitlines()[-1]}. All machines of the cluster need Partwise and what the "
                "run's parts import; the run can be resumed."
            ) from error
        gone = [self._calls.pop(ref) for ref, other in list(self._calls.items()) if other.actor == number]
        self._looking -= sum(other.envelope is None for other in gone)
        if self._starts[number] > self._of.max_restarts:
            raise ProtocolError(
                f"Ray(workers={len(self._actors)}): {why}; it may be started again {self._of.max_restarts} times, got "
                f"one more loss: {str(error).splitlines()[0]} Find out what ends it; the run can be resumed."
            ) from error
        self._actors[number] = self._started(number)
        lost = self._knows[number] | {envelope.to for envelope in self._queues[number]}
        self._knows[number] = set()
        self._queues[number].clear()
        for client in sorted(lost):
            yield Envelope(Kind.LOST, client, fault=why)
