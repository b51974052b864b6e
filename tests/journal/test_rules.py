"""What entries mean, held against sums by hand and plain recomputation: draws, salts, medians, pay, withdrawals."""

import hashlib
import hmac
import re

import pytest

from partwise.core.errors import ProtocolError
from partwise.journal import Books, Journal, Terms, digest_of, entry_hash, find_tampering, index_leaves

pytest.importorskip("cryptography")
from partwise.channels.crypto import verifying_key
from toy_journal import NAMES, OPERATOR, begun, contribute, hash_of, judge, secret, signed_line


def conserved_throughout(journal):
    """Invariant (a) after every entry, by amounts that are read off the entries themselves."""
    books, put_in = Books(), 0
    for signed in journal.entries:
        entry = signed.entry
        books.apply(entry, entry_hash(entry))
        if entry.type in ("deposit", "withdraw"):
            put_in += entry.payload["amount"] * (1 if entry.type == "deposit" else -1)
        there = sum(books.stakes.values()) + books.pool + books.treasury + books.paid_out
        assert there == journal.entries[0].entry.payload["pool"] + put_in
        assert min([*books.stakes.values(), books.pool, books.treasury, books.paid_out]) >= 0
        assert books.is_balanced()
    return True


# ---- who judges -----------------------------------------------------------------------------------------------------


def drawn(head, names, item, count):
    """Validators by the specification: by SHA-256(head of the round before || id), who authored the item left out."""
    order = sorted(names, key=lambda name: hashlib.sha256(bytes.fromhex(head) + name.encode("utf-8")).hexdigest())
    return [name for name in order if name != item][:count]


@pytest.mark.parametrize("count", [3, 5])
def test_validators_are_drawn_by_the_head_before_the_round(count):
    journal = begun(validators=count)
    heads = [hash_of(journal.lines()[0])]
    orders = set()
    for n in range(4):
        contribute(journal, {"a": digest_of(bytes([n])), "v2": digest_of(bytes([n, 1]))})
        for item in NAMES:
            assert journal.books.validators(item) == drawn(heads[-1], NAMES, item, count)
            assert item not in journal.books.validators(item)
        orders.add(tuple(journal.books.validators("a")))
        judge(journal, {"a": [600_000] * count})
        journal.settle(0)
        heads.append(hash_of(journal.lines()[-1]))
    assert len(orders) > 1  # another head, another order
    assert find_tampering(journal.lines()) is None


def test_only_the_eligible_are_drawn():
    journal = begun(validators=5)
    journal.append("revoke", "b", {"who": "b"}, secret("b"))
    journal.append("withdraw", "c", {"amount": 500_001}, secret("c"))  # leaves less than the least stake
    contribute(journal, {"a": digest_of(b"1")})
    rest = ["a", "v1", "v2", "v3"]
    assert journal.books.eligible() == rest
    assert journal.books.validators("a") == drawn(hash_of(journal.lines()[0]), rest, "a", 5)
    for outsider in ("b", "c", "a"):
        with pytest.raises(ProtocolError, match=r"must be a validator of a revealed item|key was revoked"):
            journal.append("evaluate", outsider, {"scores": {"a": 1}}, secret(outsider))


def test_names_that_are_chosen_for_the_head_do_not_judge_in_its_round():
    journal = begun()
    contribute(journal, {"a": digest_of(b"1")})
    journal.settle(0)
    contribute(journal, {"a": digest_of(b"2")})
    before, head = journal.books.validators("a"), hash_of(journal.lines()[-3])
    names = drawn(head, [f"n{at}" for at in range(300)], "a", 3)
    for name in names:
        journal.append("register", name, {"pubkey": verifying_key(secret(name)).hex()}, secret(name))
        journal.append("deposit", name, {"amount": 1_000_000}, secret(name))
    assert journal.books.validators("a") == before == drawn(head, NAMES, "a", 3)
    with pytest.raises(ProtocolError, match=r"must be a validator of a revealed item, got 'a'"):
        journal.append("evaluate", names[0], {"scores": {"a": 1_000_000}}, secret(names[0]))
    journal.settle(0)
    assert journal.books.validators("a") == drawn(journal.head, [*NAMES, *names], "a", 3)  # from now on it may


@pytest.mark.parametrize("count", [1, 2, 4, 100])
def test_number_of_validators_is_odd_and_three_at_least(count):
    says = (
        f"Terms(validators={count}): must be odd and at least 3, or 0 for the operator alone, got {count}. 5 is usual."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        Terms(validators=count)
    journal = Journal(OPERATOR)
    with pytest.raises(ProtocolError) as refused:
        journal.begin("server", {"pool": 9, "validators": count})
    assert str(refused.value) == f"entry 0 (genesis): {says}"
    assert (journal.lines(), journal.books) == ([], Books())
    entry = {"v": 1, "seq": 0, "prev": "0" * 64, "round": 0, "type": "genesis", "author": "server"}
    pubkey = verifying_key(OPERATOR).hex()
    entry["payload"] = {"pool": 9, "validators": count, "pubkey": pubkey}
    assert find_tampering([signed_line(entry)]) == (0, f"entry 0 (genesis): {says}")
    entry["payload"]["validators"] = 3
    assert find_tampering([signed_line(entry)]) is None


@pytest.mark.parametrize("count", [0, 3, 5, 7, 101])
def test_numbers_of_validators_that_are_taken(count):
    journal = begun(validators=count)
    assert len(journal.books.validators("a")) == (min(count, len(NAMES) - 1) or 1)


# ---- index sets -----------------------------------------------------------------------------------------------------


def test_salts_are_an_hmac_of_the_index_by_the_clients_secret():
    own, indices = b"a client's secret of any length", [70_000, 3, 258, 0, 2**32 - 1]
    by_hand = []
    for index in (0, 3, 258, 70_000, 2**32 - 1):
        number = bytes([index % 256, index // 256 % 256, index // 65_536 % 256, index // 16_777_216])
        by_hand.append(hmac.new(own, number, hashlib.sha256).digest()[:16] + number)
    assert index_leaves(indices, own) == by_hand
    assert len({leaf[:16] for leaf in by_hand}) == 5


# ---- settlement -----------------------------------------------------------------------------------------------------


def test_settlement_with_unequal_reputations_by_hand():
    """Four authors and three validators, so that the three others judge each item, whatever the draw.

    Round 0, all of one mind: x 1,000,000, y 300,000, z 200,000. With mu = 100,000, r <- .1 * 500,000 + .9 * score:
    x 950,000, y 320,000, z 230,000; w stays at 500,000.

    Round 1, item of w: z 500,000, y 600,000, x 900,001. Weights 230 + 320 + 950 thousand = 1,500,000, half 750,000:
    reached by 500,000 + 600,000 (550,000)? no; so 900,001, where three equal votes make 600,000. y is 300,001 off and z
    400,001, more than the tolerance of 150,000: 10,000 each.
    Item of x: y 650,000, w 700,000, z 800,000. Weights 320 + 500 + 230 = 1,050,000, half 525,000: 320,000 is not,
    820,000 is: 700,000. Nobody is farther than 100,000.
    Pay: w 900,001 - 500,000 = 400,001, x 200,000, of 600,001 in all. 1000 * 400,001 / 600,001 = 666.66.., remainder
    400,334; 1000 * 200,000 / 600,001 = 333.33.., remainder 199,667: the unit that is left is w's. 667 and 333.
    Reputations: w .1 * 500,000 + .9 * 900,001 = 860,000.9, rounded down; x .1 * 950,000 + .9 * 700,000 = 725,000.
    """
    journal = Journal(OPERATOR)
    journal.begin("server", {"pool": 5_000, "stake_min": 500_000, "validators": 3, "mu": 100_000})
    for name in "wxyz":
        journal.append("register", name, {"pubkey": verifying_key(secret(name)).hex()}, secret(name))
        journal.append("deposit", name, {"amount": 1_000_000}, secret(name))
    contribute(journal, {"x": digest_of(b"1"), "y": digest_of(b"2"), "z": digest_of(b"3")})
    judge(journal, {"x": [1_000_000] * 3, "y": [300_000] * 3, "z": [200_000] * 3})
    journal.settle(0)
    assert journal.books.reputations == {"w": 500_000, "x": 950_000, "y": 320_000, "z": 230_000}
    assert journal.books.treasury == 0  # 200,000 is not below theta_bad

    contribute(journal, {"w": digest_of(b"4"), "x": digest_of(b"5")})
    for item, given in (
        ("w", {"x": 900_001, "y": 600_000, "z": 500_000}),
        ("x", {"w": 700_000, "y": 650_000, "z": 800_000}),
    ):
        for validator, score in given.items():
            journal.append("evaluate", validator, {"scores": {item: score}}, secret(validator))
    journal.settle(1_000)
    settled = journal.entries[-1].entry.payload
    assert settled["scores"] == {"w": 900_001, "x": 700_000}
    assert settled["payouts"] == {"w": 667, "x": 333}
    books = journal.books
    assert books.reputations == {"w": 860_000, "x": 725_000, "y": 320_000, "z": 230_000}
    assert books.stakes == {"w": 1_000_000, "x": 1_000_000, "y": 990_000, "z": 990_000}
    assert (books.pool, books.paid_out, books.treasury) == (4_000, 1_000, 20_000)
    assert conserved_throughout(journal)
    assert find_tampering(journal.lines(), head=journal.head) is None


# ---- withdrawals ----------------------------------------------------------------------------------------------------


def test_withdrawals_keep_the_sum_and_leave_the_rest():
    journal = begun()
    journal.append("withdraw", "b", {"amount": 300_001}, secret("b"))
    journal.append("withdraw", "b", {"amount": 0}, secret("b"))
    journal.append("withdraw", "v1", {"amount": 1_000_000}, secret("v1"))
    assert (journal.books.stakes["b"], journal.books.stakes["v1"]) == (699_999, 0)
    assert (journal.books.pool, journal.books.treasury, journal.books.paid_out) == (1_000_000, 0, 0)
    assert journal.books.eligible() == ["a", "b", "c", "v2", "v3"]
    contribute(journal, {"a": digest_of(b"1"), "b": digest_of(b"2")})
    judge(journal, {"a": (800_000, 820_000, 810_000), "b": (0, 0, 0)})
    journal.settle(600_000)
    # a quarter of 699,999, rounded down, is slashed; what is left can be taken out, and no unit more
    assert (journal.books.stakes["b"], journal.books.treasury) == (525_000, 174_999)
    with pytest.raises(ProtocolError, match=r"and as far as it goes, got 525001"):
        journal.append("withdraw", "b", {"amount": 525_001}, secret("b"))
    journal.append("withdraw", "b", {"amount": 525_000}, secret("b"))
    assert journal.books.stakes["b"] == 0
    journal.append("deposit", "b", {"amount": 7}, secret("b"))
    assert journal.books.stakes["b"] == 7
    assert conserved_throughout(journal)
    assert find_tampering(journal.lines(), head=journal.head) is None


def test_stake_stays_while_its_owner_takes_part():
    journal = begun()
    contribute(journal, {"a": digest_of(b"1")})
    before = journal.lines()
    with pytest.raises(ProtocolError, match=r"a stake is withdrawn between rounds, and as far as it goes, got 1\b"):
        journal.append("withdraw", "a", {"amount": 1}, secret("a"))
    assert (journal.lines(), journal.books.stakes["a"]) == (before, 1_000_000)
    judge(journal, {"a": (800_000, 820_000, 810_000)})
    journal.settle(0)
    journal.append("withdraw", "a", {"amount": 1}, secret("a"))
    assert journal.books.stakes["a"] == 999_999
    assert conserved_throughout(journal)


def test_stake_of_who_has_judged_stays_until_it_is_settled():
    """Else a validator far from the median would take its stake away from the fine."""
    journal = begun(validator_penalty=400_000)
    contribute(journal, {"a": digest_of(b"1")})
    liar = journal.books.validators("a")[2]
    judge(journal, {"a": (800_000, 820_000, 10)})
    with pytest.raises(ProtocolError, match=r"a stake is withdrawn between rounds, and as far as it goes, got 1000000"):
        journal.append("withdraw", liar, {"amount": 1_000_000}, secret(liar))
    journal.settle(0)
    assert (journal.books.stakes[liar], journal.books.treasury) == (600_000, 400_000)
    journal.append("withdraw", liar, {"amount": 600_000}, secret(liar))
    assert conserved_throughout(journal)


# ---- what an entry costs ---------------------------------------------------------------------------------------------


class Stakes(dict):
    """Stakes that count how often all of them are looked at."""

    looks = 0

    def __iter__(self):
        self.looks += 1
        return super().__iter__()

    def items(self):
        self.looks += 1
        return super().items()


@pytest.mark.parametrize("validators", [0, 3])
def test_an_entry_does_not_look_at_all_authors(validators, monkeypatch):
    journal, rounds, checks = begun(validators=validators), 3, []
    stakes = journal.books.stakes = Stakes(journal.books.stakes)
    for n in range(rounds):
        contribute(journal, {name: digest_of(name.encode() + bytes([n])) for name in NAMES})
        journal.settle(0)
    assert stakes.looks == (rounds + 1 if validators else 0)  # who may judge next: once a round, and at the first one
    is_balanced = Books.is_balanced
    monkeypatch.setattr(Books, "is_balanced", lambda books: checks.append(books.count) or is_balanced(books))
    assert find_tampering(journal.lines()) is None
    assert len(checks) == rounds + 1  # at every settlement, and at the end


def test_money_that_is_made_or_lost_is_found_at_the_settlement_or_the_end(monkeypatch):
    journal = begun()
    contribute(journal, {"a": digest_of(b"1")})
    unsettled = journal.lines()
    journal.settle(0)
    settled = journal.lines()
    contribute(journal, {"a": digest_of(b"2")})
    monkeypatch.setattr(Books, "is_balanced", lambda books: False)
    assert find_tampering(unsettled) == (len(unsettled) - 1, "makes or loses money")
    assert find_tampering(journal.lines()) == (len(settled) - 1, "makes or loses money")
