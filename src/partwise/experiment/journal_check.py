"""A run's journal, held against itself, against the run's record and against its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from partwise.core.errors import CheckpointError
from partwise.experiment.journaling import JOURNAL, author_of, digest_of_params, item_of, parts_of
from partwise.experiment.result import MODEL
from partwise.experiment.store import RunStore

__all__ = ["Checked", "Standing", "check_journal"]


class Standing(NamedTuple):
    """Where an author stands after the last entry.

    Args:
        author: its name.
        contributions: rounds in which it opened a digest.
        reputation: 0 to 1,000,000.
        stake: what is left of it.
        paid: what it was paid.
    """

    author: str
    contributions: int
    reputation: int
    stake: int
    paid: int


class Checked(NamedTuple):
    """What was found.

    Args:
        entries: in the journal.
        rounds: that were settled.
        head: hash of the last entry.
        operator: the operator's public key.
        standings: by author; empty where the journal is not whole.
        fault: what was tampered with, and where, as a sentence; "" if nothing was.
    """

    entries: int
    rounds: int
    head: str
    operator: str
    standings: Sequence[Standing]
    fault: str

    @property
    def is_whole(self) -> bool:
        """Whether nothing was found."""
        return not self.fault


class _Round(NamedTuple):
    """A round as the journal has it. at: line of its settlement, from 1."""

    at: int
    items: dict[str, str]
    model: str


def check_journal(folder: str | Path, *, head: str = "", operator: str = "") -> Checked:
    """Check the journal of a run: chain, signatures and rules; digests against the record; the last model.

    Args:
        folder: of the run.
        head: hash of the last entry, if it is known from elsewhere.
        operator: the operator's public key, if it is known from elsewhere: without it, whoever can write into the
            folder can write another journal, and another record to fit.

    Raises:
        CheckpointError: the folder holds no run, or the run kept no journal.
    """
    from partwise.journal import find_tampering, lines_of

    path = Path(folder) / JOURNAL
    with RunStore(Path(folder), "read") as store:
        meta, told, commits = store.meta(), store.events("told"), len(store.events("commit"))
    if meta.get("journal") is None and not path.exists():
        raise CheckpointError(
            f"{folder}: must be a run that kept a journal, got none. Run with journal=Journaling(...)."
        )
    if not path.exists():
        return Checked(0, 0, "", "", (), f"{JOURNAL} is missing, and the run kept one.")
    lines = lines_of(path)
    is_done = str(meta.get("status")) not in ("running", "interrupted")
    written = meta.get("journal_written") or {}
    fault = find_tampering(lines, head=head, operator=operator or str(written.get("operator", "")))
    if fault is not None:
        return Checked(len(lines), 0, "", "", (), f"{JOURNAL}, line {fault.at + 1}: {fault.reason}")
    return _told(lines, _Rest(Path(folder), told, commits, written if is_done else {}))


class _Rest(NamedTuple):
    """What else there is of the run. written: what its record says of the journal; empty where the run goes on."""

    folder: Path
    told: list[dict[str, Any]]
    commits: int
    written: dict[str, Any]


def _told(lines: Sequence[str], rest: _Rest) -> Checked:
    """Where everybody stands by a journal that is whole in itself, and whether the rest of the run fits it."""
    import json

    from partwise.journal import Books, Entry, entry_hash

    books, rounds, head = Books(), [_Round(0, {}, "")][:0], ""
    contributions: dict[str, int] = {}
    paid: dict[str, int] = {}
    for at, line in enumerate(lines, 1):
        fields = json.loads(line)["entry"]
        entry = Entry(*(fields[name] for name in Entry._fields))
        if entry.type == "settle":
            items = {author: str(shown["digest"]) for author, shown in books.reveals.items()}
            rounds.append(_Round(at, items, str(entry.payload.get("model", ""))))
            for author in items:
                contributions[author] = contributions.get(author, 0) + 1
            for author, amount in entry.payload["payouts"].items():
                paid[author] = paid.get(author, 0) + amount
        head = entry_hash(entry)
        books.apply(entry, head)
    standings = [
        Standing(a, contributions.get(a, 0), books.reputations[a], stake, paid.get(a, 0))
        for a, stake in books.stakes.items()
    ]
    key = books.keys[books.operator] if books.operator else ""
    return Checked(len(lines), len(rounds), head, key, standings, _unlike(rounds, rest) or _ends(rounds, head, rest))


def _unlike(rounds: Sequence[_Round], rest: _Rest) -> str:
    """The first round that the run's record has otherwise."""
    by_version: dict[int, list[tuple[int, str, str]]] = {}
    for event in rest.told:
        body = event["body"]
        more = [(client, body["stream"], digest) for client, digest in body.get("digests", ())]
        by_version.setdefault(body["version"], []).extend(more)
    for version, found in enumerate(rounds[: rest.commits]):
        recorded = {author_of(c): item_of(own) for c, own in parts_of(by_version.get(version, [])).items()}
        for author in sorted({*recorded, *found.items}):
            if recorded.get(author) != found.items.get(author):
                return (
                    f"version {version + 1}: the record and {JOURNAL}, which settles it in line {found.at}, differ in "
                    f"what {author} sent."
                )
    return ""


def _ends(rounds: Sequence[_Round], head: str, rest: _Rest) -> str:
    """Whether a run that is over ends as its journal does."""
    if not rest.written:
        return ""
    if len(rounds) != rest.commits:
        return f"The record has {rest.commits:,} versions, and {JOURNAL} {len(rounds):,}."
    if rest.written.get("head") != head:
        return f"{JOURNAL} ends in another entry than the run wrote last."
    model = rest.folder / MODEL
    if rounds and model.is_file():
        from safetensors.torch import load_file

        if digest_of_params(load_file(model)) != rounds[-1].model:
            return f"{MODEL} is not the model of the last version, which line {rounds[-1].at} of {JOURNAL} has."
    return ""
