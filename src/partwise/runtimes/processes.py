"""Separate processes: the server in this one, the clients in workers, encoded messages between them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, ClassVar

from partwise.core.checks import at_least
from partwise.core.codec import DEFAULT_MAX_BYTES
from partwise.core.errors import CompositionError
from partwise.core.plan import Executor, Resident
from partwise.core.population import Population
from partwise.core.program import NodeId, Program
from partwise.core.runtime import Observer
from partwise.core.spool import DEFAULT_MEMORY_BYTES
from partwise.runtimes.crew import Crew
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.host import HostPlan
from partwise.runtimes.wallclock import Limits, WallClock

__all__ = ["Processes"]


@dataclass(frozen=True)
class Processes:
    """One operating-system process per worker, real messages between them, the wall clock.

    Client c lives in worker `c % workers`. Workers are forked when the run begins and inherit the programs, so that
    nothing is pickled. Each computes with as many torch threads as this process; workers times threads should not be
    more than there are cores, or they take the cores from one another. What a message takes is what it takes: the
    population's profiles are not looked at.

    A worker that dies takes the tasks of its clients with it: the server counts them as lost, and the worker is
    started again. Its clients go on from their state when the world was last looked at (a checkpoint, or an
    evaluation per client), or from the beginning.

    Args:
        workers: how many, >= 1.
        executor: runs local plans, in the workers; not one that is `core.plan.Resident`.
        memory_bytes: bound of the memory for replies that wait for a commit (half of it) and for messages under way
            and client states (the other half), in this process, and for as much again in all workers together; what
            is more goes to temporary files. No result depends on it.
        folder: where those files are; the system's folder for temporary files by default.
        max_message_bytes: a longer message from a client is refused.
        max_restarts: how often one worker may be started again.
    """

    workers: int = 2
    executor: Executor = field(default_factory=Plain)
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    folder: str | None = None
    max_message_bytes: int = DEFAULT_MAX_BYTES
    max_restarts: int = 3
    relays: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(self, workers=1, memory_bytes=0, max_message_bytes=1, max_restarts=0)
        if isinstance(self.executor, Resident):
            raise CompositionError(
                f"Processes(executor={self.executor!r}): its workers are processes already and open no executor, "
                "got one that is opened for a run. Use Plain()."
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
            ProtocolError: a worker does not start, dies too often, or meets an error that no program catches.
        """
        clock: Any = entries["clock"] if entries is not None else {"now": 0.0}
        began = time.monotonic() - clock["now"]
        plan = HostPlan(programs, self.executor, self.memory_bytes // self.workers, self.folder, began)
        crew = Crew(self.workers, plan, max_bytes=self.max_message_bytes, max_restarts=self.max_restarts)
        memory, limits = (self.memory_bytes, self.folder), Limits(self.max_message_bytes)
        with closing(crew):
            crew.start()
            world = WallClock(programs, self.executor, crew, began, memory=memory, limits=limits)
            return world.whole_run(observer, until, entries)
