"""What a journal's entries mean: stakes, scores, pay, reputation, slashing; whole numbers that anybody can replay.

All amounts are in millionths of a unit.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from partwise.core.errors import ProtocolError
from partwise.journal.entries import TYPES, Entry, commitment, is_digest
from partwise.journal.heads import are_two_heads
from partwise.journal.merkle import add_leaf_, root_of

__all__ = ["Books", "Terms", "lower_median", "scores_by_rank", "split_pool"]

MILLION = 1_000_000
_REASONS = ("equivocation", "mismatch", "invalid", "copy")


@dataclass(frozen=True)
class Terms:
    """The numbers of a journal's rules, as its first entry may set them.

    Args:
        stake_min: below which nobody takes part.
        validators: how many judge each item, odd and >= 3, or all there are where there are fewer; 0 for the operator
            alone.
        theta: score above which an item is paid.
        theta_bad: score below which its author is slashed.
        sigma: share of the stake that is slashed.
        mu: how much of a reputation stays from round to round.
        tolerance: how far a validator may be from the median.
        validator_penalty: what it loses if it is farther.
        no_reveal_penalty: what is lost by a commitment that is not opened.

    Raises:
        ValueError: a number of validators that is even, or 1.
    """

    stake_min: int = 0
    validators: int = 5
    theta: int = 500_000
    theta_bad: int = 200_000
    sigma: int = 250_000
    mu: int = 900_000
    tolerance: int = 150_000
    validator_penalty: int = 10_000
    no_reveal_penalty: int = 5_000

    def __post_init__(self) -> None:
        if self.validators and (self.validators < 3 or self.validators % 2 == 0):
            raise ValueError(
                f"Terms(validators={self.validators}): must be odd and at least 3, or 0 for the operator alone, got "
                f"{self.validators}. 5 is usual."
            )


def lower_median(scores: Sequence[tuple[int, int]]) -> int:
    """The smallest score whose cumulative weight reaches half the total. scores: (score, weight > 0), at least one.

    Example:
        >>> lower_median([(900_000, 1), (850_000, 1), (100_000, 1)])
        850000
    """
    total, so_far = sum(weight for _, weight in scores), 0
    for score, weight in sorted(scores):
        so_far += weight
        if 2 * so_far >= total:
            return score
    raise ValueError("lower_median(): needs at least one score, got none. Leave the item unscored.")


def split_pool(pool: int, weights: Mapping[str, int]) -> dict[str, int]:
    """The pool by weight, to the last unit: what is left after rounding down goes to the largest remainders.

    Args:
        pool: >= 0.
        weights: name -> weight >= 0; ties go to the smaller name. Nothing is paid where all are 0.

    Example:
        >>> split_pool(1_000_000, {"a": 350_000, "b": 200_000, "c": 0})
        {'a': 636364, 'b': 363636, 'c': 0}
    """
    total = sum(weights.values())
    if not total:
        return dict.fromkeys(weights, 0)
    paid = {name: pool * weight // total for name, weight in weights.items()}
    order = sorted(weights, key=lambda name: (-(pool * weights[name] % total), name))
    for name in order[: pool - sum(paid.values())]:
        paid[name] += 1
    return paid


def scores_by_rank(values: Mapping[str, float]) -> dict[str, int]:
    """Measured influence, or any number where more is better, as scores: the rank among all, 0 to 1,000,000.

    Example:
        >>> scores_by_rank({"a": 0.3, "b": -0.1, "c": 0.2})
        {'a': 1000000, 'b': 0, 'c': 500000}
    """
    ordered = sorted(values.values())
    last = max(1, len(ordered) - 1)
    return {name: bisect_left(ordered, value) * MILLION // last for name, value in values.items()}


@dataclass
class Books:
    """Where everybody stands after some entries; a function of them and of nothing else.

    Args:
        terms: of the first entry.
        pool: still to be paid out.
        treasury: what was slashed.
        paid_out: what was paid so far.
        deposited: stakes put in.
        withdrawn: stakes taken out.
        stakes: author -> stake.
        reputations: author -> 0 to 1,000,000.
        keys: author -> public key.
        revoked: who may no longer write.
        operator: who orders the entries.
        round: the one that is open.
        base: hash of the last entry before it, from which validators are drawn.
        drawable: of whom they are drawn: who was eligible when that entry was written, or, if there was nobody, at the
            first commitment. Whoever comes later could choose a name that is drawn. Nobody where the operator judges.
        commits: author -> commitment, of this round.
        reveals: author -> what it opened to, of this round.
        digests: digest -> who showed it first, in any round.
        scores: item's author -> validator -> score, of this round.
        flagged: (author, reason) that this round's entries prove, or tell with a digest: it is not paid.
        slashed: those of them that were slashed for.
        forked: places for whose two heads the operator was slashed, in any round.
        first_pool: the pool of the first entry.
        count: entries so far.
        peaks: of the Merkle tree over their hashes, as of `add_leaf_`.
    """

    terms: Terms = field(default_factory=Terms)
    pool: int = 0
    treasury: int = 0
    paid_out: int = 0
    deposited: int = 0
    withdrawn: int = 0
    stakes: dict[str, int] = field(default_factory=dict)
    reputations: dict[str, int] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    operator: str = ""
    round: int = 0
    base: str = ""
    drawable: list[str] = field(default_factory=list)
    commits: dict[str, str] = field(default_factory=dict)
    reveals: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    scores: dict[str, dict[str, int]] = field(default_factory=dict)
    flagged: set[tuple[str, str]] = field(default_factory=set)
    slashed: set[tuple[str, str]] = field(default_factory=set)
    forked: set[int] = field(default_factory=set)
    first_pool: int = 0
    count: int = 0
    peaks: list[bytes] = field(default_factory=list)

    def is_balanced(self) -> bool:
        """Whether no unit was made or lost, and nobody has less than nothing."""
        there = sum(self.stakes.values()) + self.pool + self.treasury + self.paid_out
        no_debt = min([self.pool, self.treasury, *self.stakes.values()]) >= 0
        return no_debt and there == self.first_pool + self.deposited - self.withdrawn

    def root(self) -> str:
        """The Merkle root over the hashes of all entries so far, 32 bytes each, in their order."""
        return root_of(self.peaks)

    def eligible(self) -> list[str]:
        """Who may take part, by name."""
        return sorted(filter(self._is_eligible, self.stakes))

    def _is_eligible(self, author: str) -> bool:
        return author in self.stakes and self.stakes[author] >= self.terms.stake_min and author not in self.revoked

    def validators(self, item: str) -> list[str]:
        """Who judge the item of an author in this round: drawn by what nobody could choose, or the operator.

        In the first round names may be chosen: the entry that they are drawn by is there before anybody is.
        """
        if not self.terms.validators:
            return [self.operator]
        base = bytes.fromhex(self.base)
        there = self.eligible()
        drawn = set(there).intersection(self.drawable or there)
        order = sorted(drawn, key=lambda name: hashlib.sha256(base + name.encode()).digest())
        return [name for name in order if name != item][: self.terms.validators]

    def apply(self, entry: Entry, digest: str) -> None:
        """Go on by one entry.

        Raises:
            ProtocolError: it breaks a rule; nothing is changed then.
        """
        if entry.type not in TYPES:
            raise _broken(entry, f"its type must be known, got {entry.type!r}")
        if (entry.type == "genesis") != (entry.seq == 0):
            raise _broken(entry, "a journal has one genesis, at its beginning")
        if entry.author in self.revoked:
            raise _broken(entry, f"its author's key was revoked, got {entry.author!r}")
        if entry.seq and entry.type != "register" and entry.author not in self.keys:
            raise _broken(entry, f"its author must be registered, got {entry.author!r}")
        if entry.seq and entry.round != self.round:
            raise _broken(entry, f"round {self.round} is open, got {entry.round}")
        getattr(self, f"_{entry.type}")(entry, digest)
        add_leaf_(self.peaks, self.count, bytes.fromhex(digest))
        self.count += 1

    def settlement(self) -> dict[str, int]:
        """Author -> score of its item in this round, by the weighted lower median of its validators."""
        found = {}
        for author, by in self.scores.items():
            weighted = [(score, max(1, self.reputations.get(validator, 0))) for validator, score in by.items()]
            found[author] = lower_median(weighted)
        return dict(sorted(found.items()))

    def payouts(self, payout: int) -> dict[str, int]:
        """Author -> its part of a payout, by how far its score is above theta; nothing for who is flagged."""
        flagged = {who for who, _ in self.flagged}
        good = {a: max(0, s - self.terms.theta) for a, s in self.settlement().items() if a not in flagged}
        return split_pool(payout, good)

    # One method per type of entry; each checks before it changes anything.

    def _genesis(self, entry: Entry, digest: str) -> None:
        known = set(Terms.__dataclass_fields__)
        given = {name: _whole(entry, name) for name in entry.payload if name in known}
        pool = _whole(entry, "pool")
        try:
            self.terms = Terms(**given)
        except ValueError as error:
            raise ProtocolError(f"entry {entry.seq} (genesis): {error}") from error
        self.pool, self.first_pool = pool, pool
        self.operator, self.base = entry.author, digest
        if "pubkey" in entry.payload:
            self.keys[entry.author] = _digest(entry, "pubkey")
        else:
            self.keys[entry.author] = ""

    def _register(self, entry: Entry, digest: str) -> None:
        if entry.author in self.keys:
            raise _broken(entry, f"an author registers once, got {entry.author!r} again")
        self.keys[entry.author] = _digest(entry, "pubkey")
        self.stakes[entry.author], self.reputations[entry.author] = 0, MILLION // 2

    def _deposit(self, entry: Entry, digest: str) -> None:
        amount = _whole(entry, "amount")
        self.stakes[entry.author] = self.stakes.get(entry.author, 0) + amount
        self.reputations.setdefault(entry.author, MILLION // 2)
        self.deposited += amount

    def _withdraw(self, entry: Entry, digest: str) -> None:
        amount = _whole(entry, "amount")
        takes_part = entry.author in self.commits or any(entry.author in by for by in self.scores.values())
        if amount > self.stakes.get(entry.author, 0) or takes_part:
            raise _broken(entry, f"a stake is withdrawn between rounds, and as far as it goes, got {amount}")
        self.stakes[entry.author] -= amount
        self.withdrawn += amount

    def _commit(self, entry: Entry, digest: str) -> None:
        if self.reveals:
            raise _broken(entry, "commitments are over once one was opened")
        if entry.author in self.commits or not self._is_eligible(entry.author):
            raise _broken(entry, f"an eligible author commits once in a round, got {entry.author!r}")
        self.commits[entry.author] = _digest(entry, "commit")
        if self.terms.validators and not self.drawable:
            self.drawable = self.eligible()

    def _reveal(self, entry: Entry, digest: str) -> None:
        author = entry.author
        if author not in self.commits or author in self.reveals:
            raise _broken(entry, f"an author opens its commitment once, got {author!r}")
        shown, nonce = _digest(entry, "digest"), _digest(entry, "nonce")
        self.reveals[author] = dict(entry.payload)
        if commitment(bytes.fromhex(nonce), shown) != self.commits[author]:
            self.flagged.add((author, "mismatch"))
        elif self.digests.setdefault(shown, author) != author:
            self.flagged.add((author, "copy"))

    def _evaluate(self, entry: Entry, digest: str) -> None:
        scores = entry.payload.get("scores")
        if not isinstance(scores, dict) or not scores:
            raise _broken(entry, f"scores must be given by author, got {scores!r}")
        for author, score in scores.items():
            if author not in self.reveals or entry.author not in self.validators(author):
                raise _broken(entry, f"{entry.author!r} must be a validator of a revealed item, got {author!r}")
            if not isinstance(score, int) or not 0 <= score <= MILLION:
                raise _broken(entry, f"a score must be a whole number from 0 to 1000000, got {score!r}")
            if entry.author in self.scores.get(author, {}):
                raise _broken(entry, f"an item is judged once by a validator, got {author!r} again")
        for author, score in scores.items():
            self.scores.setdefault(author, {})[entry.author] = score

    def _settle(self, entry: Entry, digest: str) -> None:
        self._only_operator(entry)
        payout, scores = _whole(entry, "payout"), self.settlement()
        if payout > self.pool:
            raise _broken(entry, f"a payout must be in the pool of {self.pool}, got {payout}")
        payouts = self.payouts(payout)
        for name, expected in (("scores", scores), ("payouts", payouts)):
            if entry.payload.get(name) != expected:
                raise _broken(entry, f"{name} must follow from the entries, {expected}, got {entry.payload.get(name)}")
        self.pool -= sum(payouts.values())
        self.paid_out += sum(payouts.values())
        for author in self.commits.keys() - self.reveals.keys():
            self._fine(author, self.terms.no_reveal_penalty)
        for author, by in self.scores.items():
            for validator, score in by.items():
                if abs(score - scores[author]) > self.terms.tolerance:
                    self._fine(validator, self.terms.validator_penalty)
        for author, score in scores.items():
            if score < self.terms.theta_bad:
                self._fine(author, self._slashed(author))
            mu = self.terms.mu
            self.reputations[author] = (mu * self.reputations[author] + (MILLION - mu) * score) // MILLION
        self.round, self.base = self.round + 1, digest
        for who, _ in sorted(self.flagged - self.slashed):
            self._fine(who, self._slashed(who))
        self.commits, self.reveals, self.scores, self.flagged, self.slashed = {}, {}, {}, set(), set()
        self.drawable = self.eligible() if self.terms.validators else []

    def _slash(self, entry: Entry, digest: str) -> None:
        who, reason = entry.payload.get("who"), entry.payload.get("reason")
        if reason != "equivocation":  # of which anybody may hold a proof, and the accused is the operator
            self._only_operator(entry)
        if not isinstance(who, str) or who not in self.stakes or reason not in _REASONS:
            raise _broken(entry, f"names a staked author and one of {', '.join(_REASONS)}, got {who!r}, {reason!r}")
        if reason == "equivocation":
            self._check_heads(entry, who)
        elif reason == "invalid":
            self._check_invalid(entry, who)
        elif (who, reason) not in self.flagged - self.slashed:
            raise _broken(entry, f"the entries must prove {reason} of {who!r}, got no such thing")
        if _whole(entry, "amount") != self._slashed(who):
            raise _broken(entry, f"slashes {self._slashed(who)}, got {entry.payload['amount']}")
        self._fine(who, self._slashed(who))
        if reason == "equivocation":
            self.forked.add(entry.payload["seq"])
        else:
            self.flagged.add((who, reason))  # it is not paid
            self.slashed.add((who, reason))

    def _check_heads(self, entry: Entry, who: str) -> None:
        """Two heads for one place, signed by the operator; each place counts once."""
        seq, heads = _whole(entry, "seq"), entry.payload.get("heads")
        is_form = (
            isinstance(heads, list) and len(heads) == 2 and all(isinstance(h, list) and len(h) == 2 for h in heads)
        )
        if not is_form or not all(is_digest(told) and isinstance(head, str) for told, head in heads or ()):
            raise _broken(entry, f"heads must be two pairs of hash and signature, got {heads!r}")
        if who != self.operator or not are_two_heads(seq, heads or [], self.keys[self.operator]):
            raise _broken(entry, f"two heads for one place must prove equivocation of {who!r}, got none for {seq}")
        if seq in self.forked:
            raise _broken(entry, f"two heads for one place are slashed for once, got {seq} again")

    def _check_invalid(self, entry: Entry, who: str) -> None:
        """The journal holds no update: the entry binds the charge to the digest that was opened, for all to look."""
        shown, told = self.reveals.get(who, {}).get("digest"), _digest(entry, "digest")
        if told != shown:
            raise _broken(entry, f"digest must be the one that {who!r} opened in this round, {shown}, got {told}")
        if (who, "invalid") in self.slashed:
            raise _broken(entry, f"an update is slashed for once, got {who!r} again")

    def _checkpoint(self, entry: Entry, digest: str) -> None:
        self._only_operator(entry)
        told, root = _digest(entry, "root"), self.root()
        if told != root:
            raise _broken(entry, f"root must be that of the {self.count} entries before, {root}, got {told}")

    def _revoke(self, entry: Entry, digest: str) -> None:
        who = entry.payload.get("who")
        if who not in self.keys or entry.author not in (who, self.operator):
            raise _broken(entry, f"a key is revoked by its owner or the operator, got {who!r}")
        self.revoked.add(str(who))

    def _slashed(self, author: str) -> int:
        return self.stakes[author] * self.terms.sigma // MILLION

    def _fine(self, author: str, amount: int) -> None:
        amount = min(amount, self.stakes.get(author, 0))
        if amount:
            self.stakes[author] -= amount
            self.treasury += amount

    def _only_operator(self, entry: Entry) -> None:
        if entry.author != self.operator:
            raise _broken(entry, f"only {self.operator!r} writes it, got {entry.author!r}")


def _broken(entry: Entry, rule: str) -> ProtocolError:
    return ProtocolError(f"entry {entry.seq} ({entry.type}): {rule}. Leave it out.")


def _whole(entry: Entry, name: str) -> int:
    found = entry.payload.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise _broken(entry, f"{name} must be a whole number from 0 on, got {found!r}")
    return found


def _digest(entry: Entry, name: str) -> str:
    found = entry.payload.get(name)
    if not is_digest(found):
        raise _broken(entry, f"{name} must be 64 hexadecimal digits, got {found!r}")
    return str(found)
