"""The tables of a run's record, and the rows in them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from typing import Any, NamedTuple, get_type_hints

__all__ = ["CLIENTS", "METRICS", "REPLIES", "SCHEMA", "ClientRow", "EventRow", "MetricRow", "ReplyRow", "Row", "Table"]


class EventRow(NamedTuple):
    """Something that happened.

    Args:
        time: seconds since the run began, on the runtime's clock.
        kind: what it was, such as `"refused"`.
        body: what msgpack takes: None, bool, int, float, str, bytes, lists and dicts of these. Tuples become lists.
    """

    time: float
    kind: str
    body: Any


class MetricRow(NamedTuple):
    """A metric of one version.

    Args:
        version: the server version that was measured.
        time: seconds since the run began, on the runtime's clock.
        uplink_bytes: bytes that clients had sent by then, in all.
        downlink_bytes: bytes that clients had received by then, in all.
        name: of the metric.
        scope: over what: `"central"`, `"clients mean"`, ...
        value: may be nan or infinite.
    """

    version: int
    time: float
    uplink_bytes: int
    downlink_bytes: int
    name: str
    scope: str
    value: float


class ClientRow(NamedTuple):
    """A metric of one client. examples: how many it was measured on."""

    version: int
    client: int
    name: str
    value: float
    examples: int


class ReplyRow(NamedTuple):
    """A reply that arrived.

    Args:
        version: the server version it can become part of at the earliest.
        client: who sent it.
        id: number of the task it answers.
        steps: local steps it took.
        examples: examples it trained on.
        uplink_bytes: bytes that it and what belongs to it took.
        downlink_bytes: bytes that the task it answers took.
        began: when the client was asked, seconds since the run began; and so the next three.
        fetched: when it had what it trains, on its own clock.
        trained: when it had trained, on its own clock.
        arrived: when the reply was in.
        loss: mean training loss.
        staleness: versions committed since its work began.
    """

    version: int
    client: int
    id: int
    steps: int
    examples: int
    uplink_bytes: int
    downlink_bytes: int
    began: float
    fetched: float
    trained: float
    arrived: float
    loss: float
    staleness: int


Row = tuple[Any, ...] | Mapping[str, Any]  # the fields in order, or by name


def _text(value: object) -> str | None:
    return None if value is None else str(value)


_CASTS: Mapping[type, Callable[[Any], Any]] = {int: operator.index, float: float, str: _text}


class Table(NamedTuple):
    """A table; every row in it carries the number of the last event before it, so that a record can be cut at an event.

    Args:
        name: of the table.
        row: the `NamedTuple` of a row.
        columns: names.
        kinds: of the values: int, float or str.
        constraint: of SQL, behind the columns.
    """

    name: str
    row: Any
    columns: tuple[str, ...]
    kinds: tuple[type, ...]
    constraint: str

    @property
    def create(self) -> str:
        """The statement that makes it."""
        names = {int: "INTEGER", float: "REAL", str: "TEXT"}
        # No column is NOT NULL: SQLite keeps nan as NULL.
        columns = ", ".join(f"{c} {names[k]}" for c, k in zip(self.columns, self.kinds, strict=True))
        return f"CREATE TABLE {self.name} ({columns}, seq INTEGER{self.constraint})"

    @property
    def insert(self) -> str:
        """The statement that puts a row into it, in place of one with the same key."""
        holes = ", ".join("?" for _ in (*self.columns, "seq"))
        return f"INSERT OR REPLACE INTO {self.name} VALUES ({holes})"

    def plain(self, rows: Iterable[Row], seq: int) -> list[tuple[Any, ...]]:
        """Rows as SQLite takes them, behind event `seq`.

        Raises:
            TypeError: a row that does not have these columns, or something else in them.
        """
        given = list(rows)
        casts = [_CASTS[kind] for kind in self.kinds]
        try:  # column by column, which takes a third to a half of the time
            columns = [list(map(cast, column)) for cast, column in zip(casts, zip(*given, strict=True), strict=True)]
            return list(zip(*columns, repeat(seq, len(given)), strict=True))
        except (TypeError, ValueError):  # something is missing, or rows are by name
            return [self._one(row, seq) for row in given]

    def _one(self, row: Row, seq: int) -> tuple[Any, ...]:
        try:
            full = self.row(**row) if isinstance(row, Mapping) else row
            values = (v if v is None else _CASTS[kind](v) for kind, v in zip(self.kinds, full, strict=True))
            return (*values, seq)
        except (TypeError, ValueError) as error:
            rule = f"a {self.row.__name__} is {', '.join(self.columns)}"
            raise TypeError(f"{rule}, got {row!r}. Give these, in this order.") from error


def _table(name: str, row: Any, *key: str) -> Table:
    kinds = get_type_hints(row)
    constraint = f", PRIMARY KEY ({', '.join(key)})" if key else ""
    return Table(name, row, tuple(kinds), tuple(kinds.values()), constraint)


METRICS = _table("metrics", MetricRow, "version", "name", "scope")
CLIENTS = _table("clients", ClientRow, "version", "client", "name")
REPLIES = _table("replies", ReplyRow)  # the same client may reply twice before a commit, so there is no key
SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE events (seq INTEGER PRIMARY KEY, time REAL, kind TEXT, body BLOB)",
    *(table.create for table in (METRICS, CLIENTS, REPLIES)),
    "CREATE INDEX events_by_kind ON events (kind)",
)
