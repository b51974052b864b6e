"""Slashing needs a proof: two heads for one place, or the digest that was opened, which all can look up."""

import pytest

from partwise.core.errors import ProtocolError
from partwise.journal import Journal, digest_of, find_tampering, two_stories

pytest.importorskip("cryptography")
from partwise.channels.crypto import sign
from toy_journal import OPERATOR, begun, contribute, forged_line, hash_of, judge, secret

BAD = digest_of(b"not a number")


def staked():
    """The operator has put in 400,003 of its own."""
    journal = begun()
    journal.append("deposit", "server", {"amount": 400_003}, OPERATOR)
    return journal


def forked():
    """A journal, and what its operator told somebody else of entry 14."""
    journal, other = staked(), staked()
    journal.append("deposit", "a", {"amount": 1}, secret("a"))
    other.append("deposit", "a", {"amount": 2}, secret("a"))
    assert journal.entries[14].entry.seq == other.entries[14].entry.seq == 14
    return journal, journal.entries[14], other.entries[14]


def head_of(seq, told, key=OPERATOR):
    """A pair of hash and signature by the specification."""
    return [told, sign(key, b"submodel-ledger/head/v1\0" + seq.to_bytes(8, "big") + bytes.fromhex(told)).hex()]


# ---- equivocation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["server", "b"])
def test_two_heads_slash_the_operator_whoever_shows_them(by):
    journal, one, other = forked()
    proof = two_stories(one, other)
    assert proof == {"seq": 14, "heads": [head_of(14, hash_of(one.line())), head_of(14, hash_of(other.line()))]}
    if by == "server":
        journal.slash("server", "equivocation", proof)
    else:  # 400,003 / 4, rounded down
        payload = {**proof, "who": "server", "reason": "equivocation", "amount": 100_000}
        journal.append("slash", by, payload, secret(by))
    assert journal.entries[-1].entry.author == by
    assert (journal.books.stakes["server"], journal.books.treasury) == (300_003, 100_000)
    assert journal.books.is_balanced()
    assert find_tampering(journal.lines(), head=journal.head) is None
    with pytest.raises(ProtocolError, match=r"two heads for one place are slashed for once, got 14 again\. Leave"):
        journal.slash("server", "equivocation", proof)


def test_same_place_is_not_slashed_for_again_in_a_later_round():
    journal, one, other = forked()
    journal.slash("server", "equivocation", two_stories(one, other))
    contribute(journal, {"a": digest_of(b"1")})
    judge(journal, {"a": [600_000] * 3})
    journal.settle(0)
    with pytest.raises(ProtocolError, match="got 14 again"):
        journal.slash("server", "equivocation", two_stories(other, one))
    assert journal.books.treasury == 100_000


def false_proofs():
    journal, one, other = forked()
    a, b = (hash_of(signed.line()) for signed in (one, other))
    good, form = [head_of(14, a), head_of(14, b)], "heads must be two pairs of hash and signature"
    none = "two heads for one place must prove equivocation of"
    return journal, {
        "none": ("server", {}, "seq must be a whole number from 0 on, got None"),
        "no heads": ("server", {"seq": 14}, form),
        "one head": ("server", {"seq": 14, "heads": good[:1]}, form),
        "three heads": ("server", {"seq": 14, "heads": [*good, good[0]]}, form),
        "no hash": ("server", {"seq": 14, "heads": [["x", good[0][1]], good[1]]}, form),
        "number": ("server", {"seq": 14, "heads": [[1, 2], good[1]]}, form),
        "text": ("server", {"seq": 14, "heads": "ab"}, form),
        "twice the same": ("server", {"seq": 14, "heads": [good[0], good[0]]}, none),
        "another place": ("server", {"seq": 13, "heads": good}, none),
        "two places": ("server", {"seq": 14, "heads": [good[0], head_of(13, b)]}, none),
        "another key": ("server", {"seq": 14, "heads": [good[0], head_of(14, b, secret("a"))]}, none),
        "another's stake": ("a", {"seq": 14, "heads": good}, none),
    }


@pytest.mark.parametrize("which", list(false_proofs()[1]))
def test_no_stake_is_slashed_on_a_word_or_a_false_proof_of_equivocation(which):
    journal, cases = false_proofs()
    who, proof, says = cases[which]
    lines, stakes = journal.lines(), dict(journal.books.stakes)
    with pytest.raises(ProtocolError, match=rf"\(slash\): {says}"):
        journal.slash(who, "equivocation", proof)
    assert (journal.lines(), journal.books.stakes, journal.books.treasury) == (lines, stakes, 0)
    payload = {**proof, "who": who, "reason": "equivocation", "amount": stakes[who] // 4}
    fault = find_tampering([*lines, forged_line(lines, 0, "slash", "server", payload)])
    assert fault.at == len(lines)
    assert says in fault.reason


# ---- invalid updates ------------------------------------------------------------------------------------------------


def test_invalid_update_is_slashed_by_the_digest_that_was_opened_and_is_not_paid():
    journal = begun()
    contribute(journal, {"a": digest_of(b"1"), "b": BAD})
    judge(journal, {"a": [700_000] * 3, "b": [900_000] * 3})
    journal.slash("b", "invalid", {"digest": BAD})
    assert (journal.books.stakes["b"], journal.books.treasury) == (750_000, 250_000)
    with pytest.raises(ProtocolError, match=r"an update is slashed for once, got 'b' again"):
        journal.slash("b", "invalid", {"digest": BAD})
    journal.settle(1_000)
    assert journal.entries[-1].entry.payload["payouts"] == {"a": 1_000}
    assert (journal.books.stakes["b"], journal.books.treasury) == (750_000, 250_000)  # once
    assert (journal.books.pool, journal.books.paid_out) == (999_000, 1_000)
    assert journal.books.is_balanced()
    assert find_tampering(journal.lines(), head=journal.head) is None
    with pytest.raises(ProtocolError, match=r"digest must be the one that 'b' opened in this round, None, got "):
        journal.slash("b", "invalid", {"digest": BAD})


@pytest.mark.parametrize(
    ("who", "proof", "says"),
    [
        ("b", {}, "digest must be 64 hexadecimal digits, got None"),
        ("b", {"digest": digest_of(b"1")}, f"digest must be the one that 'b' opened in this round, {BAD}, got "),
        ("c", {"digest": BAD}, "digest must be the one that 'c' opened in this round, None, got "),
        ("x", {"digest": BAD}, "names a staked author and one of equivocation, mismatch, invalid, copy, got 'x'"),
    ],
)
def test_no_stake_is_slashed_for_an_update_that_was_not_opened(who, proof, says):
    journal = begun()
    contribute(journal, {"a": digest_of(b"1"), "b": BAD})
    lines = journal.lines()
    with pytest.raises(ProtocolError, match=rf"\(slash\): {says}"):
        journal.slash(who, "invalid", proof)
    assert (journal.lines(), journal.books.treasury) == (lines, 0)
    payload = {**proof, "who": who, "reason": "invalid", "amount": 250_000}
    fault = find_tampering([*lines, forged_line(lines, 0, "slash", "server", payload)])
    assert fault.at == len(lines)
    assert says in fault.reason


def test_only_the_operator_slashes_for_what_is_looked_up():
    journal = begun()
    contribute(journal, {"b": BAD})
    payload = {"who": "b", "reason": "invalid", "amount": 250_000, "digest": BAD}
    with pytest.raises(ProtocolError, match=r"only 'server' writes it, got 'a'"):
        journal.append("slash", "a", payload, secret("a"))


def test_slashes_survive_reading(tmp_path):
    journal, one, other = forked()
    journal.slash("server", "equivocation", two_stories(one, other))
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(line + "\n" for line in journal.lines()))
    again = Journal(OPERATOR, path)
    assert (again.books, again.head) == (journal.books, journal.head)
    assert again.books.forked == {14}
