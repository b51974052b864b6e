"""What hosts clients, wherever that is: a mailbox, their states, and one step of a program after another."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from partwise.core.codec import decode, encode_parts
from partwise.core.plan import Executor, Job, ran
from partwise.core.program import Effect, Message, NodeId, Program, Send, Work
from partwise.core.spool import Kept, Spool, footprint, owned
from partwise.runtimes.parcel import told
from partwise.runtimes.transport import Body, Envelope, Kind, Part, envelope_of, joined

__all__ = ["NO_LIMIT", "Host", "HostPlan"]

NO_LIMIT = 1 << 62  # bytes of a message whose sender is trusted


class HostPlan(NamedTuple):
    """What a host is given.

    Args:
        programs: one per node.
        executor: runs local plans.
        memory_bytes: bound of what its clients keep in memory.
        folder: of the temporary file for the rest.
        began: when the run began, by `time.monotonic`.
    """

    programs: Mapping[NodeId, Program]
    executor: Executor
    memory_bytes: int
    folder: str | None
    began: float


class _Waiting(NamedTuple):
    """A message to handle; encoded, unless it was sent by its receiver."""

    src: NodeId
    to: NodeId
    number: int
    encoded: Part | None
    body: Any = None


class Host:
    """Steps its clients' programs, one message after another.

    Args:
        plan: what to run.
        emit: is told of what goes to the server, as it comes about.
        max_bytes: limit of a message to a client; with one, messages are checked, for they come from elsewhere.
        failed: is told of work that raised.
    """

    def __init__(
        self,
        plan: HostPlan,
        emit: Callable[[Envelope], None],
        max_bytes: int = NO_LIMIT,
        failed: Callable[[NodeId, Exception], None] | None = None,
    ) -> None:
        self._plan, self._emit, self._max_bytes, self._failed = plan, emit, max_bytes, failed
        self.began = plan.began
        self.worked: set[NodeId] = set()  # who was given something to compute; emptied by whoever asks
        self._spool = Spool(plan.memory_bytes, plan.folder)
        self._nodes: dict[NodeId, Kept] = {}
        self._changed: set[NodeId] = set()
        self._inbox: deque[_Waiting] = deque()
        self.inbox_bytes = 0
        self._jobs: list[tuple[NodeId, Job]] = []
        self._jobs_bytes = 0
        self.handled = 0  # messages that came from outside

    @property
    def has_more(self) -> bool:
        """Whether there is something to do."""
        return bool(self._inbox or self._jobs)

    @property
    def has_jobs(self) -> bool:
        """Whether a step has left something to compute."""
        return bool(self._jobs)

    def take(self, envelope: Envelope) -> None:
        """Put a message into the mailbox, or a client's state into its place."""
        if envelope.kind == Kind.MESSAGE:
            body = joined(envelope.body)
            self._inbox.append(_Waiting(envelope.src, envelope.to, envelope.number, body))
            self.inbox_bytes += len(body)
        elif envelope.kind == Kind.NODE:
            self.keep(envelope.to, owned(decode(joined(envelope.body), max_bytes=NO_LIMIT)))

    def keep(self, client: NodeId, state: Any) -> None:
        """Let a client go on from a state."""
        self._nodes[client] = self._spool.keep(state)

    def change(self, client: NodeId, by: Callable[[Any], None]) -> None:
        """Change a client's state in place, if it has one."""
        if client in self._nodes:
            state = self._nodes.pop(client).take()
            by(state)
            self.keep(client, state)
            self._changed.add(client)

    def turn(self) -> None:
        """Handle one message; or run the jobs, if there is no message or they are many."""
        if not self._inbox or self._jobs_bytes > self._plan.memory_bytes // 4:
            self.run_jobs()
        else:
            self._handle(self._inbox.popleft())

    def _handle(self, waiting: _Waiting) -> None:
        body = waiting.body
        if waiting.encoded is not None:
            self.inbox_bytes -= len(waiting.encoded)
            self.handled += 1
            body = owned(decode(waiting.encoded, max_bytes=self._max_bytes))
            if self._max_bytes != NO_LIMIT:
                self._plan.programs[waiting.to].check(body)
        self._step(waiting.to, waiting.src, body)

    def _step(self, me: NodeId, src: NodeId, body: Any) -> None:
        program = self._plan.programs[me]
        state = self._nodes.pop(me).take() if me in self._nodes else program.init(me)
        state, effects = program.step(state, Message(time.monotonic() - self.began, me, src, body))
        if not program.is_blank(state):
            self._nodes[me] = self._spool.keep(state)
        self._changed.add(me)
        for effect in effects:
            self._apply(me, effect)

    def _apply(self, me: NodeId, effect: Effect) -> None:
        match effect:
            case Send(to, body, after) if to == me and not after:
                self._inbox.append(_Waiting(me, me, -1, None, body))
            case Send(_, _, after) if after == math.inf:
                pass
            case Work(job, _):
                self._jobs.append((me, job))
                self.worked.add(me)
                self._jobs_bytes += footprint(job.start)
            case _:
                envelope = envelope_of(me, effect)
                assert envelope is not None
                self._emit(envelope)

    def run_jobs(self) -> None:
        """Run what is waiting, in order of client, so that an executor may run it together."""
        if not self._jobs:
            return
        jobs, self._jobs, self._jobs_bytes = sorted(self._jobs, key=lambda found: found[0]), [], 0
        results = ran(self._plan.executor, [job for _, job in jobs])
        for (me, job), result in zip(jobs, results, strict=True):
            if isinstance(result, Exception) and self._failed is not None:
                self._failed(me, result)
            self._step(me, me, told(result, job.seed))

    def states(self) -> list[Envelope]:
        """The state of every client that has changed since the last time. Jobs must have been run: none can be sent.

        The state of a client that keeps nothing is the one it would begin with.
        """
        assert not self._jobs
        changed, self._changed = sorted(self._changed), set()
        return [Envelope(Kind.NODE, client, body=self._state(client)) for client in changed]

    def _state(self, client: NodeId) -> Kept:
        known = self._nodes.get(client)
        return Kept(self._plan.programs[client].init(client)) if known is None else known

    def held(self) -> list[Envelope]:
        """What has not been handled."""
        return [Envelope(Kind.HELD, w.src, w.to, w.number, body=_encoded(w)) for w in self._inbox]


def _encoded(waiting: _Waiting) -> Body:
    return list(encode_parts(waiting.body)) if waiting.encoded is None else waiting.encoded
