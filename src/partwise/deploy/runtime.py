"""The runtime of a deployment: the server's program here, its clients wherever a post reaches them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from partwise.core.codec import DEFAULT_MAX_BYTES
from partwise.core.plan import Executor
from partwise.core.population import Population
from partwise.core.program import NodeId, Program
from partwise.core.runtime import Observer
from partwise.core.spool import DEFAULT_MEMORY_BYTES
from partwise.deploy.enrolled import Enrolled
from partwise.deploy.network import Network, Timing
from partwise.deploy.post import Post
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.wallclock import Limits, WallClock

__all__ = ["Deployed"]


@dataclass(frozen=True)
class Deployed:
    """Real nodes on a network, and the wall clock.

    A node that is lost takes the tasks of its clients with it. What was sent and not answered is saved with the run,
    and sent again when it is resumed; a node answers what it has worked through already from its memory. The states
    of clients stay with the nodes: an evaluation sees none.

    Args:
        post: carries batches to the nodes and back.
        patience_seconds: an answer that takes longer is not waited for, > 0.
        max_message_bytes: a longer message from a client, or a longer batch from a node, is refused.
        timing: how often the network is looked at.
        executor: runs what the server itself has to compute.
        memory_bytes: bound of the memory for replies that wait (half of it) and for messages under way (the other).
        folder: of the temporary files for the rest.
    """

    post: Post = field(repr=False)
    patience_seconds: float = 3600.0
    max_message_bytes: int = DEFAULT_MAX_BYTES
    timing: Timing = field(default_factory=Timing)
    executor: Executor = field(default_factory=Plain)
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    folder: str | None = None
    relays: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("patience_seconds", "max_message_bytes"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"Deployed({name}={value}): must be above 0, got {value}. Raise it.")

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
            TypeError: the population is not an `Enrolled` one, of which it is known who has which clients.
        """
        if not isinstance(population, Enrolled):
            raise TypeError(
                f"Deployed(): needs to know which node has which clients, got a {type(population).__name__}. "
                "Give it an Enrolled population."
            )
        clock: Any = entries["clock"] if entries is not None else {"now": 0.0}
        began = time.monotonic() - clock["now"]
        run: str = clock.get("run") or secrets.token_hex(8)
        limit, timing = self.max_message_bytes, self.timing
        network = Network(self.post, population.owners(), began, max_bytes=limit, timing=timing, run=run)
        population.reachable, population.counting = network.nodes, network.census
        world = WallClock(
            programs,
            self.executor,
            network,
            began,
            memory=(self.memory_bytes, self.folder),
            limits=Limits(self.max_message_bytes, self.patience_seconds),
            place="node",
            run=run,
        )
        return world.whole_run(observer, until, entries)
