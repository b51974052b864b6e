"""The journal itself: entries that are chained, signed by their authors and by the operator, and checked by anybody."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from partwise.channels.crypto import sign, verifying_key
from partwise.core.errors import CheckpointError, ProtocolError
from partwise.journal.entries import GENESIS_PREV, Entry, canonical, entry_hash
from partwise.journal.heads import are_two_heads, head_bytes, is_signed
from partwise.journal.rules import Books

__all__ = ["Fault", "Journal", "Signed", "find_tampering", "lines_of", "proves_equivocation", "two_stories"]

_FIELDS = {"v", "seq", "prev", "round", "type", "author", "payload"}


class Signed(NamedTuple):
    """An entry with two signatures, in hexadecimal digits.

    Args:
        entry: what is said.
        by: its author's, over the entry's hash.
        head: the operator's, over place and hash: two heads for one place prove that it told two stories.
    """

    entry: Entry
    by: str
    head: str

    def line(self) -> str:
        """One line of the file."""
        return canonical({"entry": self.entry.plain(), "by": self.by, "head": self.head}).decode()


class Fault(NamedTuple):
    """Where a journal was tampered with. at: line, from 0; the number of lines where the end is missing."""

    at: int
    reason: str


class Journal:
    """Entries in order, kept in a file of one line each, and the books that follow from them.

    Args:
        operator: the secret key, 32 bytes, of who orders the entries.
        path: a file that is added to; None to keep it in memory.

    Example:
        >>> journal = Journal(operator=bytes(32))
        >>> _ = journal.begin("server", {"pool": 1_000_000, "stake_min": 0})
        >>> journal.books.pool, find_tampering(journal.lines())
        (1000000, None)
    """

    def __init__(self, operator: bytes, path: Path | None = None) -> None:
        self._operator, self._path = operator, path
        self._kept: list[Signed] = []  # where there is no file
        self.books = Books()
        self.head = GENESIS_PREV
        if path is not None and path.exists():
            lines = lines_of(path)
            fault = find_tampering(lines)
            if fault is not None:
                raise ProtocolError(
                    f"Journal({str(path)!r}): must be whole, got tampering at line {fault.at + 1}: {fault.reason}. "
                    "Go back to a copy that is."
                )
            for line in lines:
                self._take(_read(line))

    @property
    def entries(self) -> list[Signed]:
        """All entries, read from the file where there is one: memory does not grow by what is in it."""
        if self._path is None:
            return self._kept
        return [_read(line) for line in lines_of(self._path)] if self._path.exists() else []

    def begin(self, name: str, terms: dict[str, int]) -> str:
        """Write the first entry, by the operator; its hash. terms: `pool`, and fields of `Terms`."""
        payload = {**terms, "pubkey": verifying_key(self._operator).hex()}
        return self.append("genesis", name, payload, self._operator)

    def append(self, type: str, author: str, payload: dict[str, Any], secret: bytes) -> str:
        """Write an entry, signed by its author; its hash.

        Raises:
            ProtocolError: it breaks a rule of the journal; nothing is written.
        """
        entry = Entry(self.books.count, self.head, self.books.round, type, author, payload)
        digest = entry_hash(entry)
        by = sign(secret, bytes.fromhex(digest)).hex()
        _check_author(entry, digest, by, self.books)
        signed = Signed(entry, by, sign(self._operator, head_bytes(entry.seq, digest)).hex())
        self._take(signed)
        if self._path is not None:
            if entry.seq and not self._path.exists():
                raise _taken_away(self._path, entry.seq)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _on_disk(self._path), self._path.open("a", encoding="ascii") as file:
                file.write(signed.line() + "\n")
        return digest

    def flush(self) -> None:
        """Wait until the disk has what is in the file.

        Raises:
            CheckpointError: the file was taken away, or the disk is full.
        """
        if self._path is None or not self.books.count:
            return
        if not self._path.exists():
            raise _taken_away(self._path, self.books.count)
        with _on_disk(self._path), self._path.open("rb") as file:
            os.fsync(file.fileno())

    def settle(self, payout: int, **facts: str) -> str:
        """Close the round, by the operator: scores and pay follow from the entries; `facts` are written beside them."""
        books = self.books
        payload = {**facts, "payout": payout, "scores": books.settlement(), "payouts": books.payouts(payout)}
        return self.append("settle", books.operator, payload, self._operator)

    def slash(self, who: str, reason: str, proof: Mapping[str, Any] | None = None) -> str:
        """Slash an author, by the operator.

        Args:
            who: whose stake.
            reason: `mismatch` or `copy`, which the round's entries prove; `equivocation`, for the operator itself; or
                `invalid`: an update that is none, has other shapes than it should, or is not finite.
            proof: `two_stories(...)` for equivocation. For `invalid`, {"digest": of the update, as it was opened in
                this round}: the journal holds no updates, so who doubts it fetches the one of that digest and looks.

        Raises:
            ProtocolError: it is not proved; nothing is written.
        """
        amount = self.books.stakes.get(who, 0) * self.books.terms.sigma // 1_000_000
        payload = {**(proof or {}), "who": who, "reason": reason, "amount": amount}
        return self.append("slash", self.books.operator, payload, self._operator)

    def checkpoint(self) -> str:
        """Write the Merkle root of all entries so far, by which one of them can be shown without the others."""
        return self.append("checkpoint", self.books.operator, {"root": self.books.root()}, self._operator)

    def lines(self) -> list[str]:
        """The lines of the file."""
        return [signed.line() for signed in self.entries]

    def _take(self, signed: Signed) -> None:
        self.books.apply(signed.entry, entry_hash(signed.entry))
        if self._path is None:
            self._kept.append(signed)
        self.head = entry_hash(signed.entry)


@contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    """Says so where the disk does not take it."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path}: needs room on a disk it may write to, got: {error.strerror}. Free some, and resume the run."
        ) from error


def _taken_away(path: Path, count: int) -> CheckpointError:
    """What is said of a journal whose file is gone, where so many entries were in it."""
    return CheckpointError(
        f"{path}: must have the {count:,} entries that were written before, got no file: it was taken away while the "
        "run went on. Put it back and resume the run, or begin it again."
    )


def lines_of(path: Path) -> list[str]:
    """The lines of a journal's file, which end in a newline and nothing else.

    Whatever else is in it stays in its line, where it is found. A last line without its end gets a zero, with which it
    is no entry: what is added to the file would stand in the same line.
    """
    *lines, rest = path.read_bytes().decode("latin-1").split("\n")
    return [*lines, rest + "\0"] if rest else lines


def _read(line: str) -> Signed:
    """One line, which must be written in the one way there is."""
    try:
        found = json.loads(line)
        fields = found["entry"]
        if set(found) != {"entry", "by", "head"} or set(fields) != _FIELDS or fields["v"] != 1:
            raise ProtocolError("has other fields than an entry")
        entry = Entry(*(fields[name] for name in Entry._fields))
        signed = Signed(entry, found["by"], found["head"])
        digits = (found["by"], found["head"])
        if signed.line() != line or not all(len(d) == 128 and set(d) <= set("0123456789abcdef") for d in digits):
            raise ProtocolError("is not written canonically")  # capital digits would say the same in other bytes
    except ProtocolError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError(f"cannot be read: {error}") from error
    return signed


def _check_author(entry: Entry, digest: str, by: str, books: Books) -> None:
    """Whether the author's key signed the entry; that of a first entry stands in it."""
    has_own = entry.type in ("genesis", "register")
    key = entry.payload.get("pubkey") if has_own else books.keys.get(entry.author)
    if not key or not is_signed(str(key), bytes.fromhex(digest), by):
        raise ProtocolError(f"entry {entry.seq} ({entry.type}): must be signed by {entry.author!r}, and is not.")


def find_tampering(lines: Iterable[str], *, head: str = "", operator: str = "") -> Fault | None:
    """The first line at which a journal is not what was written; None if it is whole.

    Checks the form of every line, the chain, both signatures, and that every entry follows the rules: that scores, pay,
    slashes and the roots of checkpoints are those that the entries before make them.

    Args:
        lines: of the file.
        head: the hash of the last entry, if it is known from elsewhere: only so a missing end can be noticed.
        operator: the operator's public key, if it is known from elsewhere: only so a whole new journal can be noticed.
    """
    books, prev, count = Books(), GENESIS_PREV, 0
    for at, line in enumerate(lines):
        try:
            signed = _read(line)
            entry = signed.entry
            if (entry.seq, entry.prev) != (at, prev):
                return Fault(
                    at, f"does not follow on the entry before: it says entry {entry.seq} after {entry.prev[:8]}…"
                )
            prev = entry_hash(entry)
            _check_author(entry, prev, signed.by, books)
            books.apply(entry, prev)
            key = books.keys[books.operator]
            if operator and key != operator:
                return Fault(at, "has another operator's key")
            if not is_signed(key, head_bytes(at, prev), signed.head):
                return Fault(at, "is not signed by the operator")
            if entry.type == "settle" and not books.is_balanced():  # which looks at all stakes
                return Fault(at, "makes or loses money")
        except (ProtocolError, ValueError, TypeError, AttributeError) as error:
            return Fault(at, str(error))
        count = at + 1
    if not books.is_balanced():
        return Fault(count - 1, "makes or loses money")
    if head and prev != head:
        return Fault(count, "ends too early, or in another entry")
    return None


def proves_equivocation(one: Signed, other: Signed, operator: str) -> bool:
    """Whether two signed entries prove that the operator told two stories: two heads for one place."""
    heads = [(entry_hash(signed.entry), signed.head) for signed in (one, other)]
    return one.entry.seq == other.entry.seq and are_two_heads(one.entry.seq, heads, operator)


def two_stories(one: Signed, other: Signed) -> dict[str, Any]:
    """What a slash for `equivocation` is proved by: the place, and the two heads for it.

    A head names its place and not its journal: an operator needs a key of its own for each.

    Args:
        one: an entry that the operator signed.
        other: another one that it signed for the same place.
    """
    return {"seq": one.entry.seq, "heads": [[entry_hash(signed.entry), signed.head] for signed in (one, other)]}
