"""What a run says while it goes on, gathered for whatever shows it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from partwise.core.errors import CheckpointError

if TYPE_CHECKING:
    from partwise.core.program import Record
    from partwise.core.runtime import World
    from partwise.experiment.evaluate import Score

__all__ = ["Header", "Notice", "Snapshot", "View", "Watcher", "main_value"]


_SCOPES = ("central", "pooled")


class Header(NamedTuple):
    """What is known when a run begins.

    Args:
        name: of the run.
        folder: of the run.
        total: versions to come in all; 0 if nobody knows.
        clients: in the population.
        metric: the main one.
        noun: what a version is called.
    """

    name: str
    folder: str
    total: int
    clients: int
    metric: str
    noun: str


class Snapshot(NamedTuple):
    """A run after a version.

    Args:
        version: how many commits were made.
        total: how many there will be; 0 if nobody knows.
        loss: mean training loss of the cohort.
        scores: of this version; empty where it was not evaluated.
        value: the main metric when it was measured last; nan before.
        best: the best it ever was.
        uplink: bytes from clients so far.
        downlink: bytes to clients so far.
        seconds: on the runtime's clock.
        clients_per_second: replies per second on the wall's clock, lately.
        seconds_left: on the wall's clock; nan if nobody knows.
        lost: clients lost so far.
        refused: updates refused so far.
    """

    version: int
    total: int
    loss: float
    scores: Sequence[Score]
    value: float
    best: float
    uplink: int
    downlink: int
    seconds: float
    clients_per_second: float
    seconds_left: float
    lost: int
    refused: int


class Notice(NamedTuple):
    """A client that was lost or refused, by name where it has one; or no client: a round or a checkpoint."""

    kind: str
    client: int | None
    name: str
    version: int
    reason: str

    def __str__(self) -> str:
        if self.kind == "passed over":
            return self.reason
        if self.client is None:
            return f"a round was {self.kind} at version {self.version}: {self.reason}"
        who = f"client {self.client}" if self.name == str(self.client) else f"client {self.client} ({self.name})"
        return f"{who} {self.kind} at version {self.version}: {self.reason}"


class View(Protocol):
    """Shows a run somewhere."""

    def prepare(self, what: str) -> None:
        """Data are being read; nothing runs yet."""
        ...

    def begin(self, header: Header) -> None: ...

    def show(self, snapshot: Snapshot) -> None: ...

    def notice(self, notice: Notice) -> None: ...

    def end(self, reason: str, snapshot: Snapshot | None) -> None: ...

    def close(self) -> None:
        """Leave the terminal to others; may be called at any time, and again."""
        ...


class Watcher:
    """Follows a run, and tells a view. It is the `Progress` that `Experiment.run` asks for.

    Args:
        view: shows it.
        scope: of the main metric; the default is that of targets.
    """

    def __init__(self, view: View, scope: str = "") -> None:
        self._view, self._scope = view, scope
        self.header: Header | None = None
        self.last: Snapshot | None = None
        self.reason = ""
        self._meta: Mapping[str, Any] = {}
        self._value, self._best = math.nan, math.nan
        self._counts = {"lost": 0, "refused": 0}
        self._names: Mapping[int, str] | None = None
        self._began = self._before = time.monotonic()
        self._first_version: int | None = None
        self._asked: int | None = None
        self._rate = math.nan

    @property
    def folder(self) -> str:
        """Of the run; empty before it starts."""
        return self.header.folder if self.header else ""

    @property
    def noun(self) -> str:
        """What a version is called."""
        return self.header.noun if self.header else "version"

    # What an experiment calls

    def started(self, total: int, folder: str) -> None:
        self._meta = _meta(folder)
        noun = "round" if str(self._meta.get("scheduler", "")).startswith("Synchronous") else "version"
        name, metric = str(self._meta.get("name", "run")), str(self._meta.get("metric", ""))
        self.header = Header(name, folder, total, int(self._meta.get("num_clients", 0)), metric, noun)
        for value in self._recorded():  # of a run that is resumed
            self._value, self._best = value, _better(self._best, value, self._is_higher_better)
        self._counts |= self._troubled()
        self._began = self._before = time.monotonic()
        self._view.begin(self.header)

    def committed(self, version: int, loss: float, world: World, scores: Sequence[Score]) -> None:
        from partwise.experiment.words import time_left

        assert self.header is not None
        self._measured(scores)
        self._paced(world)
        if self._first_version is None:
            self._first_version = version - 1
        done, elapsed = version - self._first_version, time.monotonic() - self._began
        total, traffic = self.header.total, world.traffic
        self.last = Snapshot(
            version=version,
            total=total,
            loss=loss,
            scores=scores,
            value=self._value,
            best=self._best,
            uplink=traffic.uplink,
            downlink=traffic.downlink,
            seconds=world.now,
            clients_per_second=self._rate,
            seconds_left=time_left(elapsed / done, total - version) if total else math.nan,
            lost=self._counts["lost"],
            refused=self._counts["refused"],
        )
        self._view.show(self.last)

    def noticed(self, record: Record) -> None:
        from partwise.experiment.words import printable

        fields = record.fields
        self._counts[record.kind] = self._counts.get(record.kind, 0) + 1
        reason = printable(str(fields["reason"]))
        if fields.get("stage"):
            reason = f"in {fields['stage']}: {reason}"
        client = int(fields["client"]) if "client" in fields else None  # a round is nobody's
        name = "" if client is None else self._name(client)
        self._view.notice(Notice(record.kind, client, name, int(fields["version"]), reason))

    def finished(self, reason: str) -> None:
        self.reason = reason
        if self.last is not None:  # the last version was measured after it was shown
            value = self._on_record(self.last.value)
            best = _better(self.last.best, value, self._is_higher_better)
            self.last = self.last._replace(value=value, best=best)
        self._view.end(reason, self.last)

    # What is made of it

    @property
    def _is_higher_better(self) -> bool:
        return bool(self._meta.get("higher_is_better", True))

    def _measured(self, scores: Sequence[Score]) -> None:
        assert self.header is not None
        value = main_value({(s.name, s.scope): s.value for s in scores}, self.header.metric, self._scope)
        if value is not None:
            self._value = value
            self._best = _better(self._best, value, self._is_higher_better)

    def _recorded(self) -> list[float]:
        """The main metric by version, as the record has it."""
        from partwise.experiment.store import RunStore

        assert self.header is not None
        with RunStore(self.header.folder, "read") as store:
            by_scope = [store.metrics(self.header.metric, s) for s in ((self._scope,) if self._scope else _SCOPES)]
        return [row["value"] for row in next((rows for rows in by_scope if rows), [])]

    def _troubled(self) -> dict[str, int]:
        """How often clients were lost and refused, as the record has it."""
        from partwise.experiment.store import RunStore

        assert self.header is not None
        with RunStore(self.header.folder, "read") as store:
            return {kind: len(store.events(kind)) for kind in ("lost", "refused")}

    def _on_record(self, otherwise: float) -> float:
        """The metric when it was measured last."""
        with contextlib.suppress(CheckpointError):  # what goes wrong here has been said already
            values = self._recorded()
            return values[-1] if values else otherwise
        return otherwise

    def _paced(self, world: World) -> None:
        """Update the replies per second, as a mean in which the last few versions count most."""
        from partwise.core.program import SERVER

        server, now = world.state(SERVER), time.monotonic()
        asked = server.next_id - len(server.in_flight)
        if self._asked is not None and now > self._before:
            rate = (asked - self._asked) / (now - self._before)
            self._rate = rate if math.isnan(self._rate) else 0.8 * self._rate + 0.2 * rate
        self._asked, self._before = asked, now

    def _name(self, client: int) -> str:
        if self._names is None:
            from partwise.experiment.runs import names_of, read_population

            assert self.header is not None
            self._names = names_of(read_population(Path(self.header.folder)) or {})
        return self._names.get(client, str(client))


def main_value(values: Mapping[tuple[str, str], float], metric: str, scope: str = "") -> float | None:
    """The value that speaks for a version: central where there is one, else pooled over the clients."""
    return next((values[metric, s] for s in ((scope,) if scope else _SCOPES) if (metric, s) in values), None)


def _better(one: float, other: float, higher: bool) -> float:
    if math.isnan(one) or math.isnan(other):
        return other if math.isnan(one) else one
    return (max if higher else min)(one, other)


def _meta(folder: str) -> Mapping[str, Any]:
    from partwise.experiment.store import RunStore

    with RunStore(folder, "read") as store:
        return store.meta()
