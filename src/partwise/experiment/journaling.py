"""A journal that a run writes as it goes: whose update was committed when, how it was judged, and what came of it."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partwise.core.aggregate import Aggregator
from partwise.core.channel import Channel
from partwise.core.codec import encode
from partwise.core.detect import DOUBTFUL, GOOD, score_of
from partwise.core.errors import CheckpointError, CompositionError, DataError
from partwise.core.model import Params

if TYPE_CHECKING:
    from partwise.journal import Journal

__all__ = ["JOURNAL", "Journaling", "Keeper", "author_of", "digest_of_params", "item_of", "parts_of"]

JOURNAL = "journal.jsonl"
_OPERATOR = "server"


@dataclass(frozen=True)
class Journaling:
    """The run writes a journal: who contributed what, by digests, what the aggregator suspects, and what that is worth.

    Each version is a round of `partwise.journal`: its clients commit to the digests of their updates and open them, the
    operator judges them, and the round is settled, with the digest of the model that came of it. Who is not suspected
    scores 1,000,000; who is, but is not confirmed or only unreliable, 300,000; who is confirmed 0, and is slashed. A
    copy of another's update scores 300,000, is not paid, and slashed: of two that are the same to the last bit the one
    heard of later, in one commit that of the larger number. What is written does not change the run.

    All keys are the operator's: a client's follows from the operator's secret, so that the journal proves what the
    operator wrote down then, and not what a client signed.

    Args:
        secret: file with the operator's key, 64 hexadecimal digits; it is made if it is not there. Keep it out of the
            run's folder: who has it can write another journal.
        stake: what a client puts in when it first contributes, >= 0.
        pool: what is to be paid out in all, >= 0.
        payout: of every version, while the pool lasts, >= 0.

    Source: robust accountability after Jaberzadeh et al., "Blockchain-based federated learning", 2023,
        arXiv:2307.10492.
    Differs: no public chain; the operator judges, by what the aggregator tells.

    Example:
        >>> Journaling(Path("operator.key"), payout=1_000).stake
        1000000
    """

    secret: Path
    stake: int = 1_000_000
    pool: int = 1_000_000_000
    payout: int = 1_000_000

    def __post_init__(self) -> None:
        for name in ("stake", "pool", "payout"):
            value = getattr(self, name)
            if not 0 <= value < 1 << 52:
                raise ValueError(
                    f"Journaling({name}={value}): must be a whole number from 0 to 2^52, got {value}. "
                    "A million is usual."
                )

    def noted(
        self, aggregators: Mapping[str, Aggregator], channel: Channel, is_private: bool = False
    ) -> dict[str, Aggregator]:
        """Stream -> the aggregator, which tells digests.

        Raises:
            CompositionError: updates are hidden from the server or protected by noise in their sum, or the package
                `cryptography` is missing.
        """
        from partwise.channels.crypto import require
        from partwise.experiment.noted import Noted

        if channel.reveals != "each":
            raise CompositionError(
                f"{self!r}: writes down the digest of each update, but {channel!r} reveals only their sum. Use a "
                "channel that reveals each, or keep no journal."
            )
        if is_private:
            raise CompositionError(
                f"{self!r}: writes down the digest of each update, by which anybody can tell whether a client sent "
                "some update, got a privacy guarantee that hides it. Leave one of the two out."
            )
        require()
        return {stream: Noted(part) for stream, part in aggregators.items()}

    def key(self) -> bytes:
        """The operator's secret key, made if there is none.

        Raises:
            DataError: the file cannot be read or written, or holds something else.
        """
        path = Path(self.secret)
        try:
            path = path.expanduser()
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(os.urandom(32).hex())
            found = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except (OSError, ValueError, RuntimeError) as error:  # the last where `~` leads to no home
            raise DataError(
                f"Journaling(secret={str(path)!r}): must be a file with 64 hexadecimal digits, or a place for a new "
                f"one, got {type(error).__name__}. Name another."
            ) from error
        if len(found) != 32:
            raise DataError(
                f"Journaling(secret={str(path)!r}): must hold 64 hexadecimal digits, got {2 * len(found)}. "
                "Name another."
            )
        return found


class Keeper:
    """Writes a run's journal, as the recorder tells it what happens.

    Args:
        settings: what is written.
        folder: the run's.
    """

    def __init__(self, settings: Journaling, folder: Path) -> None:
        self._settings, self._path, self._operator = settings, folder / JOURNAL, settings.key()
        self._digests: list[tuple[int, str, str]] = []  # client, stream, digest
        self._scores: dict[int, int] = {}  # of those who are suspected
        self._journal: Journal | None = None

    def __len__(self) -> int:
        return self._open().books.count

    @property
    def about(self) -> dict[str, Any]:
        """What may be kept elsewhere, to notice a missing end or a whole new journal."""
        journal = self._open()
        return {
            "entries": journal.books.count,
            "head": journal.head,
            "operator": journal.books.keys[journal.books.operator],
        }

    def rewind(self, count: int) -> None:
        """Forget all but the first entries, and what was told since; 0 to begin anew.

        Raises:
            CheckpointError: there are fewer, or the operator's key is another one.
            ProtocolError: what is left was tampered with.
        """
        self._digests, self._scores, self._journal = [], {}, None
        written = self._path.read_bytes() if self._path.exists() else b""
        ends = [at + 1 for at, byte in enumerate(written) if byte == ord("\n")][:count]
        if len(ends) < count:
            raise CheckpointError(
                f"{self._path}: must have the {count:,} entries of the checkpoint, got {len(ends):,}. "
                "Restore the file from a copy, or begin the run again."
            )
        if written:
            os.truncate(self._path, ends[-1] if ends else 0)
        self._open()

    def told(self, fields: Mapping[str, Any]) -> None:
        """What an aggregator told of a commit that is under way."""
        self._digests += [(client, fields["stream"], digest) for client, digest in fields.get("digests", ())]
        for found in fields.get("suspects", ()):
            score = score_of(found["kind"], is_confirmed=found["confirmed"])
            self._scores[found["client"]] = min(score, self._scores.get(found["client"], GOOD))

    def skipped(self) -> None:
        """That commit came to nothing."""
        self._digests, self._scores = [], {}

    def committed(self, params: Params) -> None:
        """A version was made: one round of the journal."""
        journal, parts = self._open(), parts_of(self._digests)
        items = {client: item_of(own) for client, own in parts.items()}
        for client in items:
            if author_of(client) not in journal.books.keys:
                self._enrol(journal, client)
        nonces = {client: self._secret(f"nonce {journal.books.round} {client}") for client in items}
        for client, digest in items.items():
            self._append(journal, client, "commit", {"commit": _commitment(nonces[client], digest)})
        for client, digest in items.items():
            payload = {"digest": digest, "nonce": nonces[client].hex(), "updates": parts[client]}
            self._append(journal, client, "reveal", payload)
        if items:
            copied = {who for who, _ in journal.books.flagged}  # slashed for that, and not for the score as well
            scores = {author_of(c): self._scores.get(c, GOOD) for c in items}
            scores = {who: DOUBTFUL if who in copied else s for who, s in scores.items()}
            journal.append("evaluate", _OPERATOR, {"scores": scores}, self._operator)
        journal.settle(min(self._settings.payout, journal.books.pool), model=digest_of_params(params))
        self.skipped()

    def flush(self) -> None:
        """Wait until the disk has it.

        Raises:
            CheckpointError: it was taken away, or the disk is full.
        """
        if self._journal is not None:
            self._journal.flush()

    def _open(self) -> Journal:
        if self._journal is None:
            from partwise.channels.crypto import verifying_key
            from partwise.journal import Journal

            self._journal = journal = Journal(self._operator, self._path)
            if not journal.books.count:
                journal.begin(_OPERATOR, {"pool": self._settings.pool, "stake_min": 0, "validators": 0})
            if journal.books.keys[journal.books.operator] != verifying_key(self._operator).hex():
                raise CheckpointError(
                    f"{self._path}: was begun with another key than that of {str(self._settings.secret)!r}. "
                    "Put the operator's key back."
                )
        return self._journal

    def _enrol(self, journal: Journal, client: int) -> None:
        from partwise.channels.crypto import verifying_key

        key = verifying_key(self._secret(author_of(client))).hex()
        self._append(journal, client, "register", {"pubkey": key})
        if self._settings.stake:
            self._append(journal, client, "deposit", {"amount": self._settings.stake})

    def _append(self, journal: Journal, client: int, type: str, payload: dict[str, Any]) -> None:
        journal.append(type, author_of(client), payload, self._secret(author_of(client)))

    def _secret(self, purpose: str) -> bytes:
        return hmac.digest(self._operator, purpose.encode(), "sha256")


def author_of(client: int) -> str:
    """A client's name in the journal."""
    return f"client-{client}"


def item_of(parts: Sequence[str]) -> str:
    """The digest of a client's contribution: of its one update, or of the digests of all its updates.

    Args:
        parts: of the client, as of `parts_of`.
    """
    return parts[0][-64:] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()


def parts_of(digests: Iterable[tuple[int, str, str]]) -> dict[int, list[str]]:
    """Client, ascending -> stream and digest of each of its updates of a commit.

    Args:
        digests: (client, stream, digest) of each update of the commit, in order.
    """
    found: dict[int, list[str]] = {}
    for client, stream, digest in digests:
        found.setdefault(client, []).append(f"{stream} {digest}")
    return dict(sorted(found.items()))


def digest_of_params(params: Params) -> str:
    """The digest of a model, whatever the order of its parameters."""
    return hashlib.sha256(bytes(encode({name: params[name] for name in sorted(params)}))).hexdigest()


def _commitment(nonce: bytes, digest: str) -> str:
    from partwise.journal import commitment

    return commitment(nonce, digest)
