"""What a node remembers, whatever happens to its process: its clients' states, and what they answered last."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from partwise.core.errors import CheckpointError
from partwise.core.population import Client

__all__ = ["Memory", "Remembered"]

_FORMAT = 1
_KEPT = 4  # answers of a client, of those that took work and of the others
_SCHEMA = """
CREATE TABLE state (client INTEGER PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE answer (
    seq INTEGER PRIMARY KEY, client INTEGER NOT NULL, digest BLOB NOT NULL, life TEXT NOT NULL,
    worked INTEGER NOT NULL, bodies BLOB NOT NULL, UNIQUE (client, digest)
);
"""


class Remembered(NamedTuple):
    """What a client answered to one message.

    Args:
        client: whose.
        digest: of the message.
        life: of the server's process that sent it.
        worked: whether it took local training.
        bodies: the answers, encoded together.
    """

    client: Client
    digest: bytes
    life: str
    worked: bool
    bodies: bytes


class Memory:
    """One SQLite file, written once per batch: either all that came of it is there, or nothing.

    Args:
        path: of the file; made if it is missing.

    Raises:
        CheckpointError: it cannot be opened, or is something else.

    Example:
        >>> import tempfile
        >>> memory = Memory(Path(tempfile.mkdtemp()) / "state.sqlite")
        >>> memory.save({3: b"state"}, [Remembered(3, b"digest", "a life", True, b"bodies")])
        >>> dict(memory.states()), memory.answer(3, b"digest").bodies
        ({3: b'state'}, b'bodies')
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        try:
            self._file = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            weakref.finalize(self, self._file.close)
            self.path.chmod(0o600)  # what clients know is theirs
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")
            (version,) = self._file.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._file.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT;")
            elif version != _FORMAT:
                raise CheckpointError(
                    f"Memory({str(self.path)!r}): must have format {_FORMAT}, got {version}. Update Partwise."
                )
            self._file.execute("CREATE TABLE IF NOT EXISTS run (id TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise self._failed("opening", error) from error

    def _failed(self, doing: str, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"Memory({str(self.path)!r}): {doing} needs a file that can be written and is a node's memory, got: "
            f"{error}. Look at the disk, or name another file; what was there is as it was."
        )

    def turn_to(self, run: str) -> bool:
        """Go on with what is remembered of a run; whether another one's was there, which is kept in a file beside it.

        What was remembered before a run was named is the first one's.

        Raises:
            CheckpointError: the file cannot be written.
        """
        try:
            (known,) = self._file.execute("SELECT max(id) FROM run").fetchone()
            if known == run:
                return False
            if known is not None:
                self._file.close()
                self.path.rename(self._aside(known))
            if known is not None or not self._has_any():
                self._fetch(run)
            if self._file.execute("SELECT count(*) FROM run").fetchone() == (0,):
                self._file.execute("INSERT INTO run VALUES (?)", (run,))
        except (sqlite3.Error, OSError) as error:
            raise self._failed("turning to another run", error) from error
        return known is not None

    def _has_any(self) -> bool:
        found: tuple[bool] = self._file.execute(
            "SELECT EXISTS (SELECT * FROM state) OR EXISTS (SELECT * FROM answer)"
        ).fetchone()
        return bool(found[0])

    def _fetch(self, run: str) -> None:
        """Open what was put aside of a run, or else a new file."""
        self._file.close()
        if self._aside(run).exists():
            self._aside(run).rename(self.path)
        self._open()

    def _aside(self, run: str) -> Path:
        return self.path.with_name(f"{self.path.stem}-{run}{self.path.suffix}")

    def states(self) -> Iterator[tuple[Client, bytes]]:
        """Every client's state."""
        with closing(self._file.execute("SELECT client, body FROM state ORDER BY client")) as rows:
            yield from rows

    def answer(self, client: Client, digest: bytes) -> Remembered | None:
        """What a client answered to a message, if that is remembered."""
        row = self._file.execute(
            "SELECT client, digest, life, worked, bodies FROM answer WHERE client = ? AND digest = ?", (client, digest)
        ).fetchone()
        return None if row is None else Remembered(row[0], row[1], row[2], bool(row[3]), row[4])

    def save(self, states: Mapping[Client, bytes | None], answers: Iterable[Remembered]) -> None:
        """Remember the states that have changed (None: there is none any more), and the answers, in one go.

        Raises:
            CheckpointError: the file cannot be written; then nothing was.
        """
        try:
            self._file.execute("BEGIN IMMEDIATE")
            try:
                for client, body in states.items():
                    if body is None:
                        self._file.execute("DELETE FROM state WHERE client = ?", (client,))
                    else:
                        self._file.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (client, body))
                for answer in answers:
                    self._file.execute("INSERT OR REPLACE INTO answer VALUES (NULL, ?, ?, ?, ?, ?)", answer)
                    self._file.execute(
                        "DELETE FROM answer WHERE client = ?1 AND worked = ?2 AND seq NOT IN "
                        "(SELECT seq FROM answer WHERE client = ?1 AND worked = ?2 ORDER BY seq DESC LIMIT ?3)",
                        (answer.client, answer.worked, _KEPT),
                    )
            except BaseException:
                self._file.execute("ROLLBACK")
                raise
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failed("saving", error) from error

    def close(self) -> None:
        """Give the file up."""
        self._file.close()
