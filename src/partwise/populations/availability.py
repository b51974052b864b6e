"""When clients could answer: a property of the world, computed when asked."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Protocol

import numpy as np

from partwise.core.population import Client, Reals
from partwise.core.rng import numpy_generator
from partwise.populations.hashing import key, share, shares
from partwise.populations.slots import check_above_zero, slot_of

__all__ = ["Always", "Availability", "Bernoulli", "Blocks", "Daily"]

_HAIRS = 4  # to the next number that there is; what is lost in two differences is less


class Availability(Protocol):
    """When a client could answer; computed from its number and the moment alone.

    Of a part that derives from this class, only `next_available` and `available_until` must be written.
    """

    def next_available(self, client: Client, now: float) -> float:
        """The first moment, not before `now`, at which the client could answer; inf for never."""
        ...

    def available_until(self, client: Client, now: float) -> float:
        """The moment at which a client that could answer now no longer can; `now` for one that cannot."""
        ...

    def are_there(self, clients: Sequence[Client], now: float) -> list[bool]:
        """Whether each of some clients could answer now: as `next_available` tells."""
        return [self.next_available(client, now) <= now for client in clients]

    def stays(self, clients: Sequence[Client], moments: Reals) -> Reals:
        """`available_until` of many clients at once, each at a moment of its own: (n,)."""
        return np.array(list(map(self.available_until, clients, moments.tolist())), np.float64)

    def block(self, client: Client) -> int:
        """The part of a cycle that the client belongs to; 0 where there are no cycles."""
        return 0


@dataclass(frozen=True)
class Always(Availability):
    """Every client at any time."""

    def next_available(self, client: Client, now: float) -> float:
        return now

    def available_until(self, client: Client, now: float) -> float:
        return math.inf

    def stays(self, clients: Sequence[Client], moments: Reals) -> Reals:
        return np.full(len(clients), math.inf)


@dataclass(frozen=True)
class Daily(Availability):
    """Each client during one stretch of every period, beginning at its own hour.

    Args:
        share: length of the stretch over the period, in (0, 1].
        period_seconds: > 0. Default: a day.
        seed: of the hours at which the stretches begin, uniform over the period.

    Example:
        >>> world = Daily(share=0.25)
        >>> later = world.next_available(3, 0.0)
        >>> world.next_available(3, later) == later
        True
    """

    share: float = 0.5
    period_seconds: float = 86_400.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"Daily(share={self.share}): share must be in (0, 1], got {self.share}. Use Always() for 1."
            )
        if not self.period_seconds > 0 or math.isinf(self.period_seconds):
            raise ValueError(
                f"Daily(period_seconds={self.period_seconds}): the period must be positive and finite, "
                f"got {self.period_seconds}. A day has 86400 seconds."
            )

    def _begin(self, client: Client) -> float:
        return _hour(self.seed, client) * self.period_seconds

    def available_until(self, client: Client, now: float) -> float:
        if self.share == 1:
            return math.inf
        begin, seconds = self._begin(client), self.share * self.period_seconds
        since = (now - begin) % self.period_seconds
        if since >= seconds:
            return now
        until = max(now + (seconds - since), math.nextafter(now, math.inf))
        # Rounding may leave `until` a hair before the stretch ends: who is asked then would be lost at once.
        for _ in range(_HAIRS):
            if (until - begin) % self.period_seconds >= seconds:
                break
            until = math.nextafter(until, math.inf)
        return until

    def next_available(self, client: Client, now: float) -> float:
        begin = self._begin(client)
        since = (now - begin) % self.period_seconds
        if since < self.share * self.period_seconds:
            return now
        later = now + (self.period_seconds - since)
        # Rounding may leave `later` a hair before the stretch begins; the answer must be available by its own word.
        while (later - begin) % self.period_seconds >= self.share * self.period_seconds:
            later = math.nextafter(later, math.inf)
        return later


@lru_cache(maxsize=1 << 14)
def _hour(seed: int, client: Client) -> float:
    return float(numpy_generator(seed, "available", client).random())


@dataclass(frozen=True)
class Bernoulli(Availability):
    """Each client is there in each period with one chance, whatever was before.

    Args:
        p: the chance, in [0.000001, 0.999999], or 1.
        period_seconds: > 0 and finite; all clients' periods begin together, at 0.
        seed: of the draws.

    Example:
        >>> world = Bernoulli(p=0.5, period_seconds=60.0)
        >>> [c for c in range(8) if world.next_available(c, 30.0) == 30.0]
        [1, 2, 4, 5, 7]
    """

    p: float = 0.5
    period_seconds: float = 3600.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (1e-6 <= self.p <= 1 - 1e-6 or self.p == 1):
            raise ValueError(
                f"Bernoulli(p={self.p}): p must be in [0.000001, 0.999999], or 1, got {self.p}. "
                "With less, nobody would ever be there."
            )
        check_above_zero(self, "period_seconds", self.period_seconds)

    def next_available(self, client: Client, now: float) -> float:
        slot = slot_of(now, self.period_seconds)
        return now if self._is_there(client, slot) else self._turn(client, slot, there=True)

    def available_until(self, client: Client, now: float) -> float:
        slot = slot_of(now, self.period_seconds)
        return self._turn(client, slot, there=False) if self._is_there(client, slot) else now

    def _is_there(self, client: Client, slot: int) -> bool:
        return share(key(self.seed, "there"), client, slot) < self.p

    def _turn(self, client: Client, slot: int, *, there: bool) -> float:
        """When the next period begins in which the client is there, or is not; inf for never."""
        if self.p == 1:
            return math.inf
        for _ in range(4):  # mostly enough, and sooner had than an array
            slot += 1
            if self._is_there(client, slot) == there:
                return slot * self.period_seconds
        chance, width, looked = self.p if there else 1 - self.p, 16, 0
        while looked * chance < 100:  # that it goes on for longer has a chance of e^-100
            slots = np.arange(slot + 1, slot + 1 + width)
            found = ((shares(key(self.seed, "there"), client, slots) < self.p) == there).nonzero()[0]
            if len(found):
                return int(slots[found[0]]) * self.period_seconds
            slot, looked, width = slot + width, looked + width, min(2 * width, 1 << 16)
        return math.inf


@dataclass(frozen=True)
class Blocks(Availability):
    """Block-cyclic: the clients of one block after another, each block for its time, over and over.

    Args:
        num_blocks: M, at least 1.
        seconds_per_block: length of a block's time, > 0 and finite; or one length for each block.
        starts: the first client of each block, ascending from 0, as in (0, 500): the clients up to 499 are block 0.
            Default (): client c is in block c mod M.

    Source: Eichner et al., "Semi-cyclic stochastic gradient descent", ICML 2019, arXiv:1904.10120. With two blocks
        and `starts`, the availability of Yan et al., arXiv:2002.07399, whose blocks are E rounds each.
    Differs: blocks end with the clock, not with a round.

    Example:
        >>> world = Blocks(num_blocks=2, seconds_per_block=60.0, starts=(0, 500))
        >>> world.next_available(500, 10.0), world.available_until(0, 10.0), world.block(777)
        (60.0, 60.0, 1)
    """

    num_blocks: int = 2
    seconds_per_block: float | tuple[float, ...] = 3600.0
    starts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("seconds_per_block", "starts"):
            if isinstance(getattr(self, name), Sequence):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.num_blocks < 1:
            raise ValueError(
                f"Blocks(num_blocks={self.num_blocks}): num_blocks must be at least 1, got {self.num_blocks}. Use 2."
            )
        for seconds in self._lengths:
            check_above_zero(self, "seconds_per_block", seconds)
        if len(self._lengths) != self.num_blocks:
            raise ValueError(
                f"Blocks(seconds_per_block={self.seconds_per_block}): seconds_per_block must be one number, or one for "
                f"each of {self.num_blocks} blocks, got {len(self._lengths)}. Give one number for blocks of one length."
            )
        if self.starts and (
            len(self.starts) != self.num_blocks or self.starts[0] or list(self.starts) != sorted(set(self.starts))
        ):
            raise ValueError(
                f"Blocks(starts={self.starts}): starts must be the first clients of {self.num_blocks} blocks, "
                f"ascending from 0, got {self.starts}. Leave starts out for clients by turns."
            )

    @property
    def _lengths(self) -> tuple[float, ...]:
        lengths = self.seconds_per_block
        return lengths if isinstance(lengths, tuple) else (lengths,) * self.num_blocks

    @cached_property
    def _ends(self) -> tuple[float, ...]:
        """When the blocks' times end, in the first cycle."""
        return tuple(accumulate(self._lengths))

    def block(self, client: Client) -> int:
        return bisect_right(self.starts, client) - 1 if self.starts else client % self.num_blocks

    def next_available(self, client: Client, now: float) -> float:
        begin, end = self._visit(client, now)
        return now if begin <= now < end else begin

    def available_until(self, client: Client, now: float) -> float:
        if self.num_blocks == 1:
            return math.inf
        begin, end = self._visit(client, now)
        return end if begin <= now < end else now

    def _visit(self, client: Client, now: float) -> tuple[float, float]:
        """Begin and end of the block's time that is now, or else of the next one."""
        cycle, block = self._ends[-1], self.block(client)
        turn = slot_of(now, cycle)
        begin, end = self._times(turn, block)
        return (begin, end) if now < end else self._times(turn + 1, block)

    def _times(self, turn: int, block: int) -> tuple[float, float]:
        """When a block's time begins and ends; one begins where another ends, to the last bit."""
        cycle = self._ends[-1]
        begin = turn * cycle + self._ends[block - 1] if block else turn * cycle
        is_last = block == self.num_blocks - 1
        return begin, (turn + 1) * cycle if is_last else turn * cycle + self._ends[block]
