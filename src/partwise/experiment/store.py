"""The record of a run: every event and metric, in one SQLite file in the run's folder, and its log beside it.

While a process writes, the file is in write-ahead mode: what was committed survives a kill at any moment, and others
can read meanwhile. Closed, it is a single file that can be read from anywhere.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, NamedTuple

import msgpack

from partwise.core.errors import CheckpointError
from partwise.experiment.lock import WriterLock, identity_of
from partwise.experiment.log import LogWriter
from partwise.experiment.rows import CLIENTS, METRICS, REPLIES, SCHEMA, EventRow, Row, Table

__all__ = ["RECORD", "Ends", "RunStore"]

RECORD = "record.sqlite"
SCHEMA_VERSION = 2
_LOT = 4096  # rows of a table that wait in memory at most
_APPLICATION_ID = 0x50575253  # "PWRS", in the file's first page: tells a record from other databases


class Ends(NamedTuple):
    """The numbers of the last rows of tables; 0 where there is none."""

    events: int = 0
    metrics: int = 0
    replies: int = 0


class RunStore:
    """The record in a run's folder. Appended rows are kept from the next `commit` on.

    Args:
        folder: the run's folder.
        mode: `"append"` continues the record or begins one, `"resume"` needs one, `"read"` needs one and leaves it as
            it is. Of the first two, only one process at a time may have it.

    Raises:
        CheckpointError: no folder or record, not Partwise's, of another schema version, damaged, or another process
            writes it. Any method raises it when the disk is full or cannot be written.

    Example:
        >>> import tempfile
        >>> from partwise.experiment.rows import MetricRow
        >>> with RunStore(tempfile.mkdtemp()) as store:
        ...     store.append_metrics([MetricRow(1, 2.5, 800, 900, "auc", "central", 0.75)])
        ...     store.commit()
        ...     store.metrics(name="auc")[0]["value"]
        0.75
    """

    _MODES: ClassVar = ("append", "resume", "read")

    def __init__(self, folder: Path | str, mode: Literal["append", "resume", "read"] = "append") -> None:
        if mode not in self._MODES:
            raise ValueError(f"RunStore(mode={mode!r}): mode is one of {self._MODES}, got {mode!r}. Choose one.")
        self.folder = Path(folder)
        self._lock: WriterLock | None = None
        self._db: sqlite3.Connection | None = None
        self._log: LogWriter | None = None
        self._seq = 0
        self._waiting: dict[str, tuple[str, list[tuple[Any, ...]]]] = {}  # statement -> what it is for, its rows
        path = self.folder / RECORD
        if mode != "append" and not path.is_file():
            what = "a folder without one" if self.folder.is_dir() else "no folder"
            raise CheckpointError(f"{self._me()}: there must be a run's {RECORD}, got {what}. Name a run's folder.")
        if mode != "read":
            self._lock = WriterLock(self.folder)
        try:
            with self._saying("opening the record"):
                self._db = self._connected(path, mode)
            self._seq = self.last_seq()
            self._identity = identity_of(path)
            if mode != "read":
                self._log = LogWriter(self.folder)
        except BaseException:
            self.close()
            raise

    def _me(self) -> str:
        return f"RunStore({str(self.folder)!r})"

    def _connected(self, path: Path, mode: str) -> sqlite3.Connection:
        access = "ro" if mode == "read" else "rwc"
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode={access}", uri=True, isolation_level=None, timeout=10)
        try:
            self._check(db, may_begin=mode != "read")
            if mode != "read":
                # A disk that cannot share memory, as over a network, keeps the plain journal: slower, as safe.
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection, *, may_begin: bool) -> None:
        """Refuse a database that is not a record of this version; make an empty one a record."""
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == 0 and tables == 0:
            if not may_begin:
                raise CheckpointError(
                    f"{self._me()}: {RECORD} must have been begun, got an empty one: the run was killed before it "
                    "began. Begin it again, in another folder."
                )
            db.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA:
                db.execute(statement)
            db.execute("INSERT INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute("COMMIT")
        elif application != _APPLICATION_ID:
            raise CheckpointError(
                f"{self._me()}: {RECORD} must be a run's record, got another database. Name a run's folder."
            )
        (found,) = db.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone() or ("none",)
        if found != str(SCHEMA_VERSION):
            raise CheckpointError(
                f"{self._me()}: the record must have schema version {SCHEMA_VERSION}, got {found}. "
                "Use the version of Partwise that wrote it, or begin the run again."
            )

    @contextlib.contextmanager
    def _saying(self, doing: str) -> Iterator[None]:
        """Turn SQLite's errors into sentences."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter where what SQLite says is damaged, too
            raise CheckpointError(f"{self._me()}: {doing} {_sentence(str(error))}") from error

    @property
    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            raise CheckpointError(f"{self._me()}: the record must be open, got a closed one. Open it again.")
        return self._db

    @property
    def log(self) -> LogWriter:
        """The run's log, to be written with the record; `read_log` reads it."""
        if self._log is None:
            raise CheckpointError(f"{self._me()}: the log must be open for writing, got a closed one. Open it again.")
        return self._log

    # Writing

    def _write(self, doing: str, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Have rows written by the next commit; a lot of them at once takes less time than some after every message."""
        waiting = self._waiting.setdefault(statement, (doing, []))[1]
        waiting += rows
        if len(waiting) >= _LOT or self._lock is None:  # of a record that is only read, SQLite says so at once
            self._hand_over()

    def _hand_over(self) -> None:
        """Give the database what waits."""
        db, waiting = self._open, self._waiting
        self._waiting = {}
        for statement, (doing, rows) in waiting.items():
            with self._saying(doing):
                if not db.in_transaction:
                    db.execute("BEGIN IMMEDIATE")
                db.executemany(statement, rows)

    def _append(self, table: Table, rows: Iterable[Row]) -> None:
        try:
            plain = table.plain(rows, self._seq)
        except TypeError as error:
            raise TypeError(f"{self._me()}: {error}") from error
        self._write(f"writing {table.name}", table.insert, plain)

    def append_events(self, rows: Iterable[EventRow | tuple[float, str, Any]]) -> int:
        """Append events, numbered upwards from 1; the number of the last one there is."""
        first = self._seq + 1
        packed = [
            (seq, float(time), str(kind), msgpack.packb(body)) for seq, (time, kind, body) in enumerate(rows, first)
        ]
        self._write("writing events", "INSERT INTO events VALUES (?, ?, ?, ?)", packed)
        self._seq += len(packed)
        return self._seq

    def append_metrics(self, rows: Iterable[Row]) -> None:
        """Append `MetricRow`s; one of the same version, name and scope is replaced."""
        self._append(METRICS, rows)

    def append_clients(self, rows: Iterable[Row]) -> None:
        """Append `ClientRow`s; one of the same version, client and name is replaced."""
        self._append(CLIENTS, rows)

    def append_replies(self, rows: Iterable[Row]) -> None:
        """Append `ReplyRow`s."""
        self._append(REPLIES, rows)

    def set_meta(self, **values: Any) -> None:
        """Set facts about the run, as JSON; `schema_version` is not for setting."""
        rows = [(key, json.dumps(value)) for key, value in values.items() if key != "schema_version"]
        self._write("writing meta", "INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def commit(self, *, durable: bool = False) -> None:
        """Keep what was appended, whatever happens to this process.

        Args:
            durable: wait for the disk, so that it also survives a loss of power. For checkpoints.
        """
        db = self._open
        if self._lock is not None:
            self._check_place(durable=durable)
        self._hand_over()
        if self._log is not None:
            self._log.flush(durable=durable)
        with self._saying("committing"):
            if db.in_transaction:
                db.execute("COMMIT")
            if durable:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _check_place(self, *, durable: bool) -> None:
        """What is written must go into this run's folder, not nowhere and not into another run's."""
        found = identity_of(self.folder / RECORD)
        if found is None and durable:
            raise CheckpointError(
                f"{self._me()}: {RECORD} must stay where it is while the run goes on, got no file: it was taken away. "
                "Restore the file from a copy, or begin the run again."
            )
        if found not in {None, self._identity}:
            raise CheckpointError(
                f"{self._me()}: the run's folder must stay where it is while the run goes on, got another {RECORD} in "
                "its place. Nothing was written there; resume the run where its folder is now."
            )

    def truncate_after(self, *, seq: int | None = None, version: int | None = None, heard: int | None = None) -> None:
        """Remove, in one transaction, what was recorded after a checkpoint.

        Args:
            seq: events with a higher number go, and all rows appended after them; None keeps all.
            version: rows of higher server versions go; None keeps all.
            heard: messages of the log behind so many go; None keeps all.

        Raises:
            CheckpointError: there are fewer events or messages than that.
        """
        db = self._open
        try:
            self._hand_over()
            if seq is not None and seq > (there := self.last_seq()):
                raise CheckpointError(
                    f"{self._me()}: {RECORD} must have the {seq:,} events of the checkpoint, got {there:,}. "
                    "Restore a later copy of the file, or begin the run again."
                )
            if heard is not None:
                self.log.truncate(heard)
            with self._saying("truncating the record"):
                if not db.in_transaction:
                    db.execute("BEGIN IMMEDIATE")
                if seq is not None:
                    db.execute("DELETE FROM events WHERE seq > ?", (seq,))
                for table in (METRICS, CLIENTS, REPLIES):
                    if seq is not None:
                        db.execute(f"DELETE FROM {table.name} WHERE seq > ?", (seq,))
                    if version is not None:
                        db.execute(f"DELETE FROM {table.name} WHERE version > ?", (version,))
                db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")  # or `close` would commit a half of it
            raise
        self._seq = self.last_seq()

    # Reading

    def _all(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        self._hand_over()
        with self._saying("reading the record"):
            return self._open.execute(statement, values).fetchall()

    def _rows(self, statement: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        where = [f"{name} = ?" for name, value in values.items() if value is not None]
        statement = statement.replace("{where}", f"WHERE {' AND '.join(where)}" if where else "")
        return self._all(statement, [v for v in values.values() if v is not None])

    def _read(self, table: Table, order: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        statement = f"SELECT {', '.join(table.columns)} FROM {table.name} {{where}} ORDER BY {order}"
        empty = [float("nan") if kind is float else None for kind in table.kinds]
        return [
            {c: e if v is None else v for c, v, e in zip(table.columns, row, empty, strict=True)}
            for row in self._rows(statement, values)
        ]

    def last_seq(self) -> int:
        """The number of the last event; 0 if there is none."""
        return int(self._rows("SELECT coalesce(max(seq), 0) FROM events", {})[0][0])

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Events in order: seq, time, kind, body."""
        return self._events(*(("WHERE kind = ?", (kind,)) if kind is not None else ("", ())))

    def _events(self, where: str, values: Sequence[object]) -> list[dict[str, Any]]:
        unpack, found = (
            msgpack.unpackb,
            self._all(f"SELECT seq, time, kind, body FROM events {where} ORDER BY seq", values),
        )
        try:
            return [
                {"seq": seq, "time": time, "kind": what, "body": unpack(body, strict_map_key=False)}
                for seq, time, what, body in found
            ]
        except ValueError as error:
            raise CheckpointError(
                f"{self._me()}: reading the record {_sentence(f'malformed event, {error}')}"
            ) from error

    def metrics(self, name: str | None = None, scope: str | None = None) -> list[dict[str, Any]]:
        """Metrics by version; the keys are the fields of `MetricRow`."""
        return self._read(METRICS, "version, name, scope", {"name": name, "scope": scope})

    def latest(self, name: str) -> tuple[int, list[dict[str, Any]]]:
        """The last version with a metric, 0 if there is none, and all metrics of the last with one of this name."""
        last = "SELECT version FROM metrics {where} ORDER BY version DESC LIMIT 1"
        found = [self._rows(last, {"name": one}) for one in (None, name)]
        at, measured = (rows[0][0] if rows else 0 for rows in found)
        return at, self._read(METRICS, "name, scope", {"version": measured})

    def clients(
        self, version: int | None = None, name: str | None = None, client: int | None = None
    ) -> list[dict[str, Any]]:
        """Metrics of clients by version and client; the keys are the fields of `ClientRow`."""
        return self._read(CLIENTS, "version, client, name", {"version": version, "name": name, "client": client})

    def replies(self, version: int | None = None, client: int | None = None) -> list[dict[str, Any]]:
        """Replies in the order in which they were appended; the keys are the fields of `ReplyRow`."""
        return self._read(REPLIES, "rowid", {"version": version, "client": client})

    def answers(self) -> dict[int, int]:
        """Client -> how many of its replies arrived, counted by the database: there may be millions."""
        return dict(self._all("SELECT client, count(*) FROM replies GROUP BY client"))

    def answered(self, version: int) -> int:
        """How many replies arrived before this version was made."""
        return int(self._all("SELECT count(*) FROM replies WHERE version <= ?", (version,))[0][0])

    def reply_times(self) -> list[tuple[Any, ...]]:
        """Of every reply: client, id, and when it began, was fetched, trained and arrived."""
        return self._rows("SELECT client, id, began, fetched, trained, arrived FROM replies ORDER BY rowid", {})

    def meta(self) -> dict[str, Any]:
        """Facts about the run."""
        found = self._rows("SELECT key, value FROM meta ORDER BY key", {})
        try:
            return {key: json.loads(value) for key, value in found}
        except (ValueError, TypeError) as error:
            said = _sentence(f"malformed fact, {error}")
            raise CheckpointError(f"{self._me()}: reading the record {said}") from error

    # Following a run, by the numbers of rows: those of one table only ever grow, unless a resumed run cuts them

    def ends(self) -> Ends:
        """The numbers of the last rows there are."""
        lasts = ", ".join(f"(SELECT coalesce(max(rowid), 0) FROM {table})" for table in Ends._fields)
        return Ends(*self._all(f"SELECT {lasts}")[0])

    def event_at(self, seq: int) -> tuple[Any, ...] | None:
        """An event as it is stored: time, kind, body; None if there is none of this number."""
        return next(iter(self._all("SELECT time, kind, body FROM events WHERE seq = ?", (seq,))), None)

    def events_between(self, after: int, until: int) -> list[dict[str, Any]]:
        """Events of these numbers, without those of replies: seq, time, kind, body."""
        return self._events("WHERE seq > ? AND seq <= ? AND kind <> 'reply'", (after, until))

    def metrics_between(self, after: int, until: int) -> list[tuple[Any, ...]]:
        """Rows of metrics of these numbers: the fields of `MetricRow`; a value that is not a number is None."""
        columns = ", ".join(METRICS.columns)
        return self._all(f"SELECT {columns} FROM metrics WHERE rowid > ? AND rowid <= ? ORDER BY rowid", (after, until))

    def replies_between(self, after: int, until: int) -> list[tuple[Any, ...]]:
        """Rows of replies of these numbers, by client.

        Returns:
            Of each client its number, how many replies it gave, their uplink and downlink bytes and their staleness,
            summed; then of its last one the row's number, version, arrived, staleness and loss.
        """
        sums = "client, count(*), sum(uplink_bytes), sum(downlink_bytes), sum(staleness)"
        last = "max(rowid), version, arrived, staleness, loss"  # beside a max, SQLite takes columns from its row
        return self._all(
            f"SELECT {sums}, {last} FROM replies WHERE rowid > ? AND rowid <= ? GROUP BY client", (after, until)
        )

    # Closing

    def close(self) -> None:
        """Commit, leave a single file, and let others write. May be called twice."""
        try:
            if self._db is not None and self._lock is not None:
                self.commit()
                with contextlib.suppress(sqlite3.Error):  # somebody reads: the last of them tidies up
                    self._db.execute("PRAGMA journal_mode = DELETE").fetchall()
        finally:
            if self._db is not None:
                self._db.close()
            self._db = self._log = None
            if self._lock is not None:
                self._lock.release()
            self._lock = None

    def __enter__(self) -> RunStore:  # noqa: PYI034 - no concrete class is subclassed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sentence(text: str) -> str:
    """Rule, value and remedy for SQLite's message; its codes are not available in Python 3.10."""
    kept = "What was committed before is safe."
    if any(word in text for word in ("not a database", "malformed", "no such", "decode")):
        return f"needs a whole {RECORD}, got: {text}. Restore the file from a copy, or begin the run again."
    if "full" in text:
        return f"needs room on the disk, got: {text}. {kept} Free some space and resume the run."
    if "readonly" in text or "unable to open" in text:
        return f"needs a folder that it may write to, got: {text}. {kept} Make it writable."
    if "locked" in text:
        return f"needs the database for itself for a moment, got: {text}. Close the program that has it open."
    return f"needs a disk that works, got: {text}. {kept} Look at the disk and resume the run."
