"""Follows a run by its folder: reads what was added to the record since it looked last, and keeps a bounded summary."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partwise.core.errors import CheckpointError, PartwiseError
from partwise.experiment.accounts import EPSILON
from partwise.experiment.rundir import status_of
from partwise.experiment.runs import Point
from partwise.experiment.store import RECORD, Ends, RunStore
from partwise.experiment.words import printable, time_left
from partwise.monitor.clients import Names, Tallies
from partwise.monitor.series import Series
from partwise.monitor.standing import Incident, Node, Standing

__all__ = ["LOSS", "MEAN_STALENESS", "MOST_STALENESS", "Follower"]

LOSS = ("train_loss", "cohort")
MEAN_STALENESS, MOST_STALENESS = ("staleness", "mean"), ("staleness", "most")  # kept beside the metrics of the record
_SCOPES = ("central", "pooled", "mean", "cohort")
_ROWS = 50_000  # read at once
_INCIDENTS = 50  # the last ones are kept, of each with so much text:
_REASON, _TRACEBACK = 500, 4000  # characters; of a traceback the last ones, which say what happened
_NODES = 1000
_SERIES = 200  # curves; a run that records more is followed by its first ones


class Follower:
    """Reads a run again and again, and never the same row twice unless a resumed run has cut the record.

    Nothing it keeps grows with the length of the run: curves are thinned, incidents forgotten but for the last 50, and
    clients take 88 bytes each. It opens the record for every look and leaves the writer alone in between.

    Args:
        folder: of the run.

    Raises:
        CheckpointError: the folder holds no run, or its record is damaged; so does `refresh`.

    Example:
        >>> import tempfile
        >>> with RunStore(tempfile.mkdtemp()) as store:
        ...     store.append_metrics([(3, 2.5, 800, 900, "auc", "central", 0.75)])
        ...     store.set_meta(metric="auc", status="done")
        ...     store.commit()
        ...     now = Follower(store.folder).standing()
        >>> now.version, now.value, now.uplink, now.status
        (3, 0.75, 800, 'done')
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.changes = 0  # how often a look found something new
        self._forget()
        self.refresh()

    def _forget(self) -> None:
        self._ends = Ends()
        self._mark: tuple[Any, ...] | None = None  # the last event that was read
        self._meta: Mapping[str, Any] = {}
        self._status, self._written_at = "", 0.0
        self.series: dict[tuple[str, str], Series] = {}
        self.clients, self.names = Tallies(), Names(self.folder)
        self.incidents: deque[Incident] = deque(maxlen=_INCIDENTS)
        self.nodes: dict[str, Node] = {}
        self.counts = Counter[str]()
        self._point = Point(0, 0.0, 0, 0, math.nan)
        self._pace: deque[tuple[float, int]] = deque(maxlen=100)

    # Reading

    def refresh(self) -> None:
        """Read what is new."""
        try:
            if not self._looked():
                return
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            if isinstance(error, PartwiseError):
                raise
            self._forget()
            raise CheckpointError(
                f"Follower({str(self.folder)!r}): needs a whole {RECORD}, got a row that is not one: {error!r}. "
                "Restore the file from a copy, or begin the run again."
            ) from error
        self._written_at = _written_at(self.folder)
        if not self._pace or self._pace[-1][1] != self._point.version:
            self._pace.append((time.monotonic(), self._point.version))
        self.changes += 1

    def _looked(self) -> bool:
        """Read what is new; whether anything was."""
        with RunStore(self.folder, "read") as store:
            meta, ends = store.meta(), store.ends()
            if self._was_cut(store, ends):
                self._forget()
            status = status_of(meta, self.folder)
            if (ends, status) == (self._ends, self._status):
                return False
            if not self._ends.events:
                self.names = Names(self.folder)  # they are written after the record is begun
            self._meta, self._status = meta, status
            self._read(store, ends)
        return True

    def _was_cut(self, store: RunStore, ends: Ends) -> bool:
        """Whether rows that were read are gone, or others stand in their place."""
        if any(now < before for now, before in zip(ends, self._ends, strict=True)):
            return True
        return bool(self._ends.events) and store.event_at(self._ends.events) != self._mark

    def _read(self, store: RunStore, ends: Ends) -> None:
        """Read up to there. What was read counts as such piece by piece, so that a fault makes nothing count twice."""
        for after, until in _pieces(self._ends.metrics, ends.metrics):
            self._measured(store.metrics_between(after, until))
            self._ends = self._ends._replace(metrics=until)
        for after, until in _pieces(self._ends.events, ends.events):
            events, mark = store.events_between(after, until), store.event_at(until)
            self._happened(events)
            self._ends, self._mark = self._ends._replace(events=until), mark
        for after, until in _pieces(self._ends.replies, ends.replies):
            replies = store.replies_between(after, until)
            self.counts["replies"] += sum(row[1] for row in replies)
            self.clients.add_replies(replies)
            self._ends = self._ends._replace(replies=until)

    def _measured(self, rows: list[tuple[Any, ...]]) -> None:
        for version, seconds, up, down, name, scope, value in rows:
            spent = int(version), float(seconds), int(up), int(down)  # a damaged column may hold anything
            point = Point(*spent, math.nan if value is None else float(value))
            self._add((name, scope), point)
            if point.version >= self._point.version:
                self._point = point

    def _add(self, key: tuple[str, str], point: Point) -> None:
        if key not in self.series and len(self.series) < _SERIES:
            self.series[key] = Series()
        if key in self.series:
            self.series[key].add(point)

    def _happened(self, events: list[dict[str, Any]]) -> None:
        troubled: dict[Any, list[int]] = {"lost": [], "refused": []}
        for event in events:
            kind, body, now = event["kind"], event["body"], event["time"]
            if kind == "commit":
                self._committed(body, now)
            elif kind in ("node", "node_error", "rejected"):
                self._about_node(kind, body, now)
            elif kind in ("lost", "refused", "skipped"):
                self.counts[kind] += 1
                client = None if kind == "skipped" else int(body["client"])
                if client is not None:
                    troubled[kind].append(client)
                name = "" if client is None else self.names.of(client)
                self.incidents.append(_incident(kind, client, name, body, now))
        for kind, clients in troubled.items():
            self.clients.add_trouble(kind, clients)

    def _about_node(self, kind: str, body: Mapping[str, Any], now: float) -> None:
        name = printable(str(body["node"]), 100)
        if name not in self.nodes and len(self.nodes) == _NODES:
            return
        node = self.nodes.get(name) or Node(name)
        match kind:
            case "node":
                node = node._replace(is_there=bool(body["is_there"]), since=now, clients=int(body["clients"]))
            case "node_error":
                node = node._replace(errors=node.errors + 1)
                text = str(body.get("text", "")).strip()
                told = {"reason": text.rpartition("\n")[2], "traceback": text}
                self.incidents.append(_incident("failed", None, f"node {name}", told, now))
            case _:
                node = node._replace(rejected=node.rejected + 1)
                self.incidents.append(_incident("rejected", None, f"node {name}", body, now))
        self.nodes[name] = node

    def _committed(self, body: Mapping[str, Any], now: float) -> None:
        staleness, version = body.get("staleness") or (), int(body["version"])
        if staleness:
            mean, most = sum(staleness) / len(staleness), float(max(staleness))
            for key, value in ((MEAN_STALENESS, mean), (MOST_STALENESS, most)):
                self._add(key, Point(version, now, math.nan, math.nan, value))

    # What is made of it

    @property
    def main(self) -> tuple[str, str]:
        """Name and scope of the score that speaks for the run."""
        name = str(self._meta.get("metric", ""))
        wanted = [s for s in (self._meta.get("scope"), *_SCOPES) if s]
        return name, str(next((scope for scope in wanted if (name, scope) in self.series), wanted[0]))

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the main metric is better."""
        return bool(self._meta.get("higher_is_better", True))

    def standing(self) -> Standing:
        """How the run stood when it was looked at last."""
        meta, point, main = self._meta, self._point, self.series.get(self.main)
        last = self._last
        return Standing(
            name=printable(str(meta.get("name") or self.folder.name), 200),
            folder=str(self.folder),
            status=printable(self._status),
            is_running=self._status.startswith("running"),
            noun="round" if str(meta.get("scheduler", "Synchronous")).startswith("Synchronous") else "version",
            version=point.version,
            total=int(meta.get("versions") or 0),
            seconds=point.seconds,
            is_virtual=str(meta.get("runtime", "Simulate")).startswith(("Simulate", "Retrace")),
            metric=self.main[0],
            scope=self.main[1],
            value=last(self.main),
            best=main.best(self.higher_is_better) if main else math.nan,
            loss=last(LOSS),
            epsilon=last(EPSILON),
            guarantee=str(meta.get("guarantee") or ""),
            uplink=int(point.uplink),
            downlink=int(point.downlink),
            clients=int(meta.get("num_clients") or 0),
            answered=len(self.clients),
            **{kind: self.counts[kind] for kind in ("replies", "lost", "refused", "skipped")},
            staleness=last(MEAN_STALENESS),
            seconds_left=self._seconds_left(),
            written_at=self._written_at,
            about={
                key: printable(str(meta.get(key, "")), 2000)
                for key in ("algorithm", "scheduler", "workload", "runtime", "seed")
            },
        )

    def _last(self, key: tuple[str, str]) -> float:
        found = self.series.get(key)
        return found.last.value if found and found.last else math.nan

    def _seconds_left(self) -> float:
        total = int(self._meta.get("versions") or 0)
        if len(self._pace) < 3 or not total or not self._status.startswith("running"):
            return math.nan
        (began, first), (ended, last) = self._pace[0], self._pace[-1]
        return time_left((ended - began) / (last - first), total - last) if last > first else math.nan


def _pieces(after: int, until: int) -> list[tuple[int, int]]:
    return [(start, min(start + _ROWS, until)) for start in range(after, until, _ROWS)]


def _incident(kind: str, client: int | None, name: str, body: Mapping[str, Any], now: float) -> Incident:
    version = body.get("version")
    return Incident(
        kind=kind,
        client=client,
        name=name,
        version=None if version is None else int(version),
        stage=printable(str(body.get("stage", "")), 50),
        reason=printable(str(body.get("reason", "")), _REASON),
        traceback=printable(str(body.get("traceback") or "")[-_TRACEBACK:], _TRACEBACK),
        seconds=now,
    )


def _written_at(folder: Path) -> float:
    """When the record or what belongs to it was written last; a file may go while it is looked at."""
    found = [0.0]
    for path in folder.glob(f"{RECORD}*"):
        with contextlib.suppress(OSError):
            found.append(path.stat().st_mtime)
    return max(found)
