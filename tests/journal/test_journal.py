"""The journal of contributions: robustness.md §15's worked example, its invariants, and 1,000 tamperings."""

import gc
import json
import random

import pytest
import torch

from partwise.core.errors import ProtocolError
from partwise.core.index import Whole
from partwise.core.update import Update
from partwise.journal import (
    GENESIS_PREV,
    Books,
    Entry,
    Journal,
    Signed,
    commitment,
    digest_of,
    entry_hash,
    find_tampering,
    index_leaves,
    lower_median,
    merkle_path,
    merkle_root,
    proves_equivocation,
    scores_by_rank,
    split_pool,
    verify_path,
)
from partwise.journal.entries import canonical

pytest.importorskip("cryptography")
from partwise.channels.crypto import verifying_key
from toy_journal import OPERATOR, begun, contribute, judge, played, secret

# ---- the worked example ---------------------------------------------------------------------------------------------


def test_hashes_of_the_worked_example():
    genesis = Entry(0, GENESIS_PREV, 0, "genesis", "server", {"pool": 1000000, "stake_min": 500000})
    assert entry_hash(genesis) == "0ab5da89c7873192c3ca972fcfd8c54904210c19eb679a28785162b844fe1796"
    digest = digest_of(b"update-of-client-a")
    assert digest == "ae816ddc98c309dd91cd79d08650aef17d1fb17e4cdab6eb29ff5a1f3c4e6c51"
    told = commitment(bytes(32), digest)
    assert told == "c5aa891db2e1a3ad874e7a294e974fa98c78eb6714008b53d2939b9e5ede00f7"
    commit = Entry(1, entry_hash(genesis), 1, "commit", "client-a", {"commit": told})
    assert entry_hash(commit) == "f713037d15830292500e38560d68e0874c5bcfc918e7f8bda1714f417f7168f5"
    root = "6109ee179dabd1faa65fda8de98e3efa6fc300ef8b27861cd955b68ad26c48e0"
    payload = {"digest": digest, "index_root": root, "nonce": "0" * 64, "num_examples": 120}
    reveal = Entry(2, entry_hash(commit), 1, "reveal", "client-a", payload)
    assert entry_hash(reveal) == "63be5adf9856330002aff4343f62d5e693cc7d5d8d270021422e4a0f5b91342c"


def test_index_commitment_of_the_worked_example():
    leaves = index_leaves([9, 3, 7], None)
    root = "6109ee179dabd1faa65fda8de98e3efa6fc300ef8b27861cd955b68ad26c48e0"
    assert merkle_root(leaves) == root
    path = [
        "b1ff4abeae91c401404281851b4ce24274ca41158d475b750bb9f9f72f9aa8aa",
        "017836cb8d48c44ca67a215a2b64c5d543ea3c7654a2fbdd7accece875ab70e1",
    ]
    assert merkle_path(leaves, 1) == path
    assert verify_path(leaves[1], 1, 3, path, root)
    assert merkle_root([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_settlement_of_the_worked_example():
    scores = {"a": (900000, 850000, 100000), "b": (700000, 720000, 690000), "c": (150000, 100000, 900000)}
    medians = {name: lower_median([(s, 1) for s in given]) for name, given in scores.items()}
    assert medians == {"a": 850000, "b": 700000, "c": 150000}
    good = {name: max(0, m - 500000) for name, m in medians.items()}
    assert split_pool(1_000_000, good) == {"a": 636364, "b": 363636, "c": 0}
    journal = begun(tolerance=1_000_000)  # nobody is fined for its opinion here
    contribute(journal, {"a": digest_of(b"1"), "b": digest_of(b"2"), "c": digest_of(b"3")})
    judge(journal, scores)
    journal.settle(1_000_000)
    books = journal.books
    assert [books.stakes[n] for n in "abc"] == [1_000_000, 1_000_000, 750_000]
    assert [books.reputations[n] for n in "abc"] == [535000, 520000, 465000]
    assert (books.pool, books.paid_out, books.treasury) == (0, 1_000_000, 250_000)


# ---- invariants -----------------------------------------------------------------------------------------------------


def test_money_is_neither_made_nor_lost_after_any_entry():
    journal, books = played(), Books()
    for signed in journal.entries:
        books.apply(signed.entry, entry_hash(signed.entry))
        assert books.is_balanced()
    assert books == journal.books
    assert books.treasury > 0


def test_replay_gives_the_same_bytes(tmp_path):
    journal = played(tmp_path / "a" / "journal.jsonl")
    assert played().lines() == journal.lines()
    again = Journal(OPERATOR, tmp_path / "a" / "journal.jsonl")
    assert (again.head, again.books) == (journal.head, journal.books)
    assert (tmp_path / "a" / "journal.jsonl").read_text() == "".join(line + "\n" for line in journal.lines())


def test_a_journal_in_a_file_keeps_no_entries_in_memory(tmp_path):
    def there() -> int:
        gc.collect()
        return sum(type(thing) is Signed for thing in gc.get_objects())

    before = there()
    journal = played(tmp_path / "journal.jsonl")
    assert there() == before
    again = Journal(OPERATOR, tmp_path / "journal.jsonl")
    assert there() == before
    assert journal.entries == again.entries == played().entries
    assert len(journal.entries) == journal.books.count == len((tmp_path / "journal.jsonl").read_text().splitlines())


def test_change_of_one_entry_changes_every_later_hash():
    entries = [signed.entry for signed in played().entries]
    prev, changed = GENESIS_PREV, []
    for entry in entries:
        payload = {**entry.payload, "amount": 2_000_000} if entry.seq == 4 else entry.payload
        prev = entry_hash(entry._replace(prev=prev, payload=payload))
        changed.append(prev)
    same = [a == entry_hash(b) for a, b in zip(changed, entries, strict=True)]
    assert same == [True] * 4 + [False] * (len(entries) - 4)


def test_entry_is_shown_by_a_checkpoint_without_the_others():
    journal = played()
    at = journal.entries[-1].entry
    leaves = [bytes.fromhex(entry_hash(s.entry)) for s in journal.entries[:-1]]
    path = merkle_path(leaves, 9)
    assert len(path) <= 6
    assert verify_path(leaves[9], 9, len(leaves), path, at.payload["root"])
    assert not verify_path(leaves[8], 9, len(leaves), path, at.payload["root"])


@pytest.mark.parametrize("count", range(1, 18))
def test_paths_of_trees_of_any_size(count):
    leaves = [bytes([i]) for i in range(count)]
    root = merkle_root(leaves)
    for at in range(count):
        path = merkle_path(leaves, at)
        assert verify_path(leaves[at], at, count, path, root)
        assert not verify_path(b"x", at, count, path, root)
        assert not verify_path(leaves[at], (at + 1) % count, count, path, root) or count == 1
        assert not verify_path(leaves[at], at, count, [*path, root], root)


def test_salts_hide_small_numbers():
    with_salt = index_leaves([3, 7], b"secret")
    assert len({leaf[:16] for leaf in with_salt}) == 2
    assert with_salt != index_leaves([3, 7], b"another")
    assert [int.from_bytes(leaf[16:], "little") for leaf in with_salt] == [3, 7]


# ---- tampering ------------------------------------------------------------------------------------------------------


def edited(text, rng):
    """One byte of the file is another one."""
    at = rng.randrange(len(text))
    other = rng.choice([b for b in range(256) if b != text[at]])
    return text[:at] + bytes([other]) + text[at + 1 :], text[:at].count(b"\n")


def short():
    journal = Journal(OPERATOR)
    journal.begin("server", {"pool": 1_000_000})
    journal.append("register", "a", {"pubkey": verifying_key(secret("a")).hex()}, secret("a"))
    journal.append("deposit", "a", {"amount": 5}, secret("a"))
    contribute(journal, {"a": digest_of(b"1")})
    return journal


def test_1000_of_1000_random_tamperings_are_found_and_located():
    """800 in a journal of five entries, and 200 in one of a whole round, where each takes longer to check."""
    operator, rng, found = verifying_key(OPERATOR).hex(), random.Random(1), 0
    for journal, times in ((short(), 800), (played(), 200)):
        text = "\n".join(journal.lines()).encode()
        assert find_tampering(text.decode().split("\n"), head=journal.head, operator=operator) is None
        for _ in range(times):
            changed, line = edited(text, rng)
            fault = find_tampering(changed.decode("latin-1").split("\n"), head=journal.head, operator=operator)
            found += fault is not None and fault.at == line
    assert found == 1000


def test_signature_in_capital_digits_is_another_line():
    lines = short().lines()
    capital = lines[2].replace('"by":"' + json.loads(lines[2])["by"], '"by":"' + json.loads(lines[2])["by"].upper())
    assert find_tampering([*lines[:2], capital, *lines[3:]]) == (2, "is not written canonically")


def test_lines_left_out_moved_and_repeated_are_found():
    lines = played().lines()
    for at in range(len(lines) - 1):
        assert find_tampering([*lines[:at], *lines[at + 1 :]]).at == at
        assert find_tampering([*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]).at == at
        assert find_tampering([*lines[: at + 1], lines[at], *lines[at + 1 :]]).at == at + 1


def test_missing_end_is_found_by_who_knows_the_head():
    journal = played()
    assert find_tampering(journal.lines()[:-2]) is None
    fault = find_tampering(journal.lines()[:-2], head=journal.head)
    assert fault == (len(journal.entries) - 2, "ends too early, or in another entry")


def test_whole_new_journal_is_found_by_who_knows_the_operator():
    other = Journal(bytes([8]) * 32)
    other.begin("server", {"pool": 1})
    assert find_tampering(other.lines()) is None
    assert find_tampering(other.lines(), operator=verifying_key(OPERATOR).hex()) == (0, "has another operator's key")


def test_operator_cannot_rewrite_what_others_signed():
    """It has its own key and computes the whole chain anew; the authors' signatures stay what they were."""
    journal, forged, prev = played(), [], GENESIS_PREV
    from partwise.channels.crypto import sign
    from partwise.journal.heads import head_bytes

    for signed in journal.entries:
        payload = {**signed.entry.payload, "amount": 9_000_000} if signed.entry.seq == 2 else signed.entry.payload
        entry = signed.entry._replace(prev=prev, payload=payload)
        prev = entry_hash(entry)
        by = signed.by if entry.author != "server" else sign(OPERATOR, bytes.fromhex(prev)).hex()
        forged.append(Signed(entry, by, sign(OPERATOR, head_bytes(entry.seq, prev)).hex()))
    fault = find_tampering([s.line() for s in forged])
    assert fault == (2, "entry 2 (deposit): must be signed by 'a', and is not.")


def test_two_stories_of_the_operator_are_proof():
    one, other = begun(), begun()
    one.append("deposit", "a", {"amount": 1}, secret("a"))
    other.append("deposit", "a", {"amount": 2}, secret("a"))
    key = verifying_key(OPERATOR).hex()
    assert proves_equivocation(one.entries[-1], other.entries[-1], key)
    assert not proves_equivocation(one.entries[-1], one.entries[-1], key)
    assert not proves_equivocation(one.entries[-2], other.entries[-1], key)
    assert not proves_equivocation(one.entries[-1], other.entries[-1], verifying_key(secret("a")).hex())


# ---- who does what it must not --------------------------------------------------------------------------------------


def test_copying_opening_to_something_else_and_not_opening_cost():
    journal = begun()
    items = {"a": digest_of(b"1"), "b": digest_of(b"1"), "c": digest_of(b"3"), "v1": digest_of(b"4")}
    contribute(journal, items, opened={"c": digest_of(b"other"), "v1": None})
    assert journal.books.flagged == {("b", "copy"), ("c", "mismatch")}
    judge(journal, {n: [900_000] * 3 for n in "abc"})
    journal.slash("c", "mismatch")
    journal.settle(1_000_000)
    books = journal.books
    assert books.stakes == {"a": 1_000_000, "b": 750_000, "c": 750_000, "v1": 995_000, "v2": 1_000_000, "v3": 1_000_000}
    assert books.paid_out == 1_000_000  # a alone is paid
    assert journal.entries[-1].entry.payload["payouts"] == {"a": 1_000_000}
    assert find_tampering(journal.lines()) is None


def test_validator_far_from_the_median_is_fined():
    journal = begun()
    contribute(journal, {"a": digest_of(b"1")})
    liar = journal.books.validators("a")[2]
    judge(journal, {"a": (800_000, 820_000, 10)})
    journal.settle(0)
    assert journal.books.stakes[liar] == 990_000
    assert journal.books.pool == 1_000_000


def test_stake_below_the_least_is_out():
    journal = begun(sigma=600_000)
    contribute(journal, {"a": digest_of(b"1")})
    judge(journal, {"a": (0, 0, 0)})
    journal.settle(0)
    assert "a" not in journal.books.eligible()
    with pytest.raises(ProtocolError, match=r"\(commit\): an eligible author commits once in a round, got 'a'"):
        contribute(journal, {"a": digest_of(b"2")})


def test_pool_rolls_over_where_nobody_earned_any():
    journal = begun()
    contribute(journal, {"a": digest_of(b"1")})
    judge(journal, {"a": (400_000, 400_000, 400_000)})
    journal.settle(1_000_000)
    assert (journal.books.pool, journal.books.paid_out) == (1_000_000, 0)


def test_what_breaks_the_rules_is_not_written():
    journal = begun()
    before, head = len(journal.entries), journal.head
    bad = verifying_key(secret("x")).hex()
    for type, author, payload, says in (
        ("deposit", "x", {"amount": 1}, r"must be signed by 'x', and is not"),
        ("register", "a", {"pubkey": bad}, r"must be signed by 'a', and is not"),
        ("deposit", "a", {"amount": -1}, r"amount must be a whole number from 0 on, got -1"),
        ("withdraw", "a", {"amount": 2_000_000}, r"a stake is withdrawn between rounds, and as far as it goes"),
        ("reveal", "a", {"digest": bad, "nonce": bad}, r"an author opens its commitment once, got 'a'"),
        ("evaluate", "a", {"scores": {"b": 1}}, r"must be a validator of a revealed item, got 'b'"),
        ("settle", "a", {"payout": 0}, r"only 'server' writes it, got 'a'"),
        ("only_operator", "a", {}, r"its type must be known, got 'only_operator'"),
        ("genesis", "a", {"pool": 1}, r"must be signed by 'a', and is not"),
        ("deposit", "a", {"amount": 0.5}, r"a journal holds strings, integers, lists and objects, got 0\.5"),
    ):
        with pytest.raises(ProtocolError, match=says):
            journal.append(type, author, payload, secret(author))
    with pytest.raises(ProtocolError, match=r"scores must follow from the entries"):
        journal.append("settle", "server", {"payout": 0, "scores": {"a": 5}, "payouts": {}}, OPERATOR)
    assert (len(journal.entries), journal.head) == (before, head)


def test_revoked_key_writes_no_more():
    journal = begun()
    journal.append("revoke", "a", {"who": "a"}, secret("a"))
    with pytest.raises(ProtocolError, match=r"its author's key was revoked, got 'a'"):
        journal.append("deposit", "a", {"amount": 1}, secret("a"))


def test_commitments_are_over_once_one_was_opened():
    journal = begun()
    contribute(journal, {"a": digest_of(b"1")})
    with pytest.raises(ProtocolError, match=r"commitments are over once one was opened"):
        contribute(journal, {"b": digest_of(b"2")})


def test_file_that_was_tampered_with_is_not_gone_on_with(tmp_path):
    path = tmp_path / "journal.jsonl"
    played(path)
    path.write_text(path.read_text().replace("1000000", "1000001", 1))
    with pytest.raises(ProtocolError, match=r"must be whole, got tampering at line 1: "):
        Journal(OPERATOR, path)


@pytest.mark.parametrize("other", [b"\r", b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\r\n", b""])
def test_an_end_of_a_line_that_is_another_byte_is_found(tmp_path, other):
    path = tmp_path / "journal.jsonl"
    played(path)
    written = path.read_bytes()
    first = written.index(b"\n")
    for changed in (written[:first] + other + written[first + 1 :], written[:-1] + other):
        path.write_bytes(changed)
        with pytest.raises(ProtocolError, match=r"must be whole, got tampering at line \d+: "):
            Journal(OPERATOR, path)


@pytest.mark.parametrize("line", [b"\xe9", b"\xff" * 9, b"[" * 100_000])
def test_what_is_no_text_is_found_with_its_line(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    played(path)
    path.write_bytes(line + path.read_bytes())
    with pytest.raises(ProtocolError, match=r"must be whole, got tampering at line 1: "):
        Journal(OPERATOR, path)


# ---- small parts ----------------------------------------------------------------------------------------------------


def test_canonical_bytes():
    assert canonical({"b": 1, "a": ["é", {"z": 0, "y": -5}]}) == b'{"a":["\\u00e9",{"y":-5,"z":0}],"b":1}'
    for bad in (1.5, None, True, {"a": 2**53}, {1: "a"}):
        with pytest.raises(ProtocolError, match=r"canonical\(\): "):
            canonical(bad)


def test_split_pool_pays_every_unit():
    rng = random.Random(4)
    for _ in range(300):
        weights = {str(i): rng.randrange(1000) for i in range(rng.randrange(1, 9))}
        pool = rng.randrange(10**6)
        paid = split_pool(pool, weights)
        total = sum(weights.values())
        assert sum(paid.values()) == (pool if total else 0)
        for name, weight in weights.items():
            assert not total or abs(paid[name] - pool * weight / total) < 1
    assert split_pool(1, {"b": 1, "a": 1}) == {"b": 0, "a": 1}


def test_weighted_lower_median():
    assert lower_median([(10, 1), (20, 1)]) == 10
    assert lower_median([(10, 1), (20, 3)]) == 20
    assert lower_median([(5, 2), (1, 1), (9, 1)]) == 5


def test_influence_as_scores():
    assert scores_by_rank({"a": 3.0, "b": -1.0, "c": 3.0, "d": 0.0, "e": 9.0}) == {
        "a": 500000,
        "b": 0,
        "c": 500000,
        "d": 250000,
        "e": 1000000,
    }


def test_digest_of_an_update_is_that_of_its_bytes():
    one = Update(Whole({"w": (2,)}), {"w": torch.tensor([1.0, 2.0])}, 3.0)
    same = Update(Whole({"w": (2,)}), {"w": torch.tensor([1.0, 2.0])}, 3.0)
    other = Update(Whole({"w": (2,)}), {"w": torch.tensor([1.0, 2.5])}, 3.0)
    assert digest_of(one) == digest_of(same) != digest_of(other)


def test_line_is_read_in_one_way_only():
    line = played().lines()[3]
    spaced = json.dumps(json.loads(line))
    assert find_tampering([*played().lines()[:3], spaced]) == (3, "is not written canonically")
