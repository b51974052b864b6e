"""Checkpoints say what the entries before make them: a false root is found, though chain and signatures are right."""

import hashlib
import json
import random

import pytest

from partwise.core.errors import ProtocolError
from partwise.journal import Journal, find_tampering, merkle_root
from partwise.journal.merkle import add_leaf_, root_of

pytest.importorskip("cryptography")
from toy_journal import OPERATOR, begun, forged_line, hash_of, played


def root_by_levels(leaves):
    """RFC 6962 from the leaves up: neighbours are joined, and who has none goes up as it is."""
    level = [hashlib.sha256(b"\0" + leaf).digest() for leaf in leaves] or [hashlib.sha256(b"").digest()]
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(level) // 2 * 2 :]
    return level[0].hex()


def true_root(lines):
    return root_by_levels([bytes.fromhex(hash_of(line)) for line in lines])


def with_checkpoint(journal, root):
    """The journal, a checkpoint by who holds the operator's key and does not keep the rules, and one more entry."""
    lines = journal.lines()
    lines.append(forged_line(lines, journal.books.round, "checkpoint", "server", {"root": root}))
    lines.append(forged_line(lines, journal.books.round, "deposit", "a", {"amount": 3}))
    return lines


@pytest.mark.parametrize("count", range(35))
def test_growing_tree_has_the_root_of_one_that_is_built_at_once(count):
    leaves, peaks = [bytes([i]) * (i % 3) for i in range(count)], []
    for at, leaf in enumerate(leaves):
        add_leaf_(peaks, at, leaf)
    assert root_of(peaks) == merkle_root(leaves) == root_by_levels(leaves)
    assert len(peaks) == count.bit_count()


def test_checkpoints_hold_the_root_of_all_entries_before_them():
    journal = begun()
    for amount in (5, 7, 11):
        journal.checkpoint()
        journal.append("deposit", "a", {"amount": amount}, b"a".ljust(32, b"."))
    lines = journal.lines()
    at = [n for n, line in enumerate(lines) if json.loads(line)["entry"]["type"] == "checkpoint"]
    assert at == [13, 15, 17]
    for n in at:
        assert json.loads(lines[n])["entry"]["payload"] == {"root": true_root(lines[:n])}
    assert find_tampering(lines, head=journal.head) is None


def test_journal_that_was_written_before_roots_were_checked_is_whole():
    """The head is that of the same journal by commit e79ce94, which wrote true roots and checked none."""
    journal = played()
    assert journal.head == "ae44923ac1be3947df6c226817d98c0c8c165c59de2dc5563ef396675eea91f2"
    assert find_tampering(journal.lines(), head=journal.head) is None


def test_true_root_of_another_hand_is_taken():
    """The forger's lines are found for their root only: with the true one they are whole."""
    journal = played()
    lines = with_checkpoint(journal, true_root(journal.lines()))
    assert find_tampering(lines, head=hash_of(lines[-1])) is None


@pytest.mark.parametrize(
    "false",
    [
        lambda lines: "0" * 64,
        lambda lines: true_root(lines[:-1]),
        lambda lines: true_root(lines[1:]),
        lambda lines: true_root([*lines[:3], lines[4], lines[3], *lines[5:]]),
        lambda lines: hash_of(lines[-1]),
        lambda lines: root_by_levels([hash_of(line).encode() for line in lines]),
    ],
    ids=["zeros", "one too few", "without the first", "two exchanged", "the head", "over digits"],
)
def test_false_root_in_a_right_chain_is_found_at_its_line(false, tmp_path):
    journal = played()
    lines, root = journal.lines(), false(journal.lines())
    at = len(lines)
    says = (
        f"entry {at} (checkpoint): root must be that of the {at} entries before, {true_root(lines)}, got {root}. "
        "Leave it out."
    )
    forged = with_checkpoint(journal, root)
    assert find_tampering(forged, head=hash_of(forged[-1])) == (at, says)
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(line + "\n" for line in forged))
    with pytest.raises(ProtocolError) as caught:
        Journal(OPERATOR, path)
    assert f"got tampering at line {at + 1}: {says}" in str(caught.value)


def test_false_root_is_not_written():
    journal = played()
    before, books = journal.lines(), (journal.books.count, list(journal.books.peaks))
    with pytest.raises(ProtocolError, match=r"\(checkpoint\): root must be that of the \d+ entries before, "):
        journal.append("checkpoint", "server", {"root": "0" * 64}, OPERATOR)
    with pytest.raises(ProtocolError, match=r"\(checkpoint\): root must be 64 hexadecimal digits, got 'x'"):
        journal.append("checkpoint", "server", {"root": "x"}, OPERATOR)
    assert (journal.lines(), (journal.books.count, journal.books.peaks)) == (before, books)
    journal.checkpoint()
    assert find_tampering(journal.lines()) is None


def test_any_other_digit_of_a_root_is_found():
    journal, draw = played(), random.Random(3)
    root = true_root(journal.lines())
    for _ in range(20):
        at = draw.randrange(64)
        other = draw.choice([c for c in "0123456789abcdef" if c != root[at]])
        fault = find_tampering(with_checkpoint(journal, root[:at] + other + root[at + 1 :]))
        assert fault.at == len(journal.entries)
