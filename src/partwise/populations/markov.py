"""Clients that come and go at random: a chain of two states, of which any moment can be looked up."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from partwise.core.population import Client
from partwise.populations.availability import Availability
from partwise.populations.hashing import key, share
from partwise.populations.slots import check_above_zero, slot_of

__all__ = ["Markov"]

_CYCLES = 32  # in an epoch; work per question grows with it, and what the cuts change falls


@dataclass(frozen=True)
class Markov(Availability):
    """Each client comes and goes, for exponentially distributed times: a chain of two states in continuous time.

    It is there for mean_on / (mean_on + mean_off) of the time.

    Args:
        mean_on_seconds: mean length of a stay, > 0 and finite.
        mean_off_seconds: mean length of an absence, > 0 and finite.
        seed: of the draws.

    Differs: time is cut into epochs of 32 (mean_on + mean_off). At the beginning of each the state is drawn anew, from
        the long-run shares, so that any moment can be looked up by itself. Within an epoch this is the chain exactly,
        and the share of time is right at every moment; what is before a cut says nothing of what is after it. Cuts
        add less than 1 % to the number of comings and goings.

    Example:
        >>> world = Markov(mean_on_seconds=60.0, mean_off_seconds=30.0)
        >>> back = world.next_available(4, 1000.0)
        >>> world.available_until(4, back) > back
        True
    """

    mean_on_seconds: float = 3600.0
    mean_off_seconds: float = 3600.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_above_zero(self, "mean_on_seconds", self.mean_on_seconds)
        check_above_zero(self, "mean_off_seconds", self.mean_off_seconds)

    def next_available(self, client: Client, now: float) -> float:
        is_there, turn = self._look(client, now)
        return now if is_there else turn

    def available_until(self, client: Client, now: float) -> float:
        is_there, turn = self._look(client, now)
        return turn if is_there else now

    @property
    def epoch_seconds(self) -> float:
        """From one cut to the next."""
        return _CYCLES * (self.mean_on_seconds + self.mean_off_seconds)

    def _look(self, client: Client, now: float) -> tuple[bool, float]:
        """Whether the client is there, and when that changes."""
        epoch = slot_of(now, self.epoch_seconds)
        first, turns = _turns(self, client, epoch)
        passed = bisect_right(turns, now)
        is_there = first == (passed % 2 == 0)
        while passed == len(turns):  # nothing changes before the epoch ends
            epoch += 1
            first, turns = _turns(self, client, epoch)
            passed = 0
            if first != is_there:
                return is_there, epoch * self.epoch_seconds
        return is_there, turns[passed]


@lru_cache(maxsize=1 << 12)
def _turns(world: Markov, client: Client, epoch: int) -> tuple[bool, Sequence[float]]:
    """Whether the client is there when an epoch begins, and when it comes and goes until it ends."""
    on, off, begin = world.mean_on_seconds, world.mean_off_seconds, key(world.seed, "markov")
    now, end = epoch * world.epoch_seconds, (epoch + 1) * world.epoch_seconds
    first = is_there = share(begin, client, epoch, 0) < on / (on + off)
    turns: list[float] = []
    while True:
        stay = -math.log(share(begin, client, epoch, len(turns) + 1)) * (on if is_there else off)
        # Times that are equal once they are rounded would be a change that is none.
        now, is_there = max(now + stay, math.nextafter(now, math.inf)), not is_there
        if now >= end:
            return first, tuple(turns)
        turns.append(now)
