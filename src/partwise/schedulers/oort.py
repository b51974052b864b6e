"""Oort: clients that are both useful and quick, with an eye on those not yet tried. Standard library only.

Notation: N clients, K of them picked; R the pick's number, from 1 (a round, under a synchronous scheduler); U_i the
utility of client i as last told, R_i the R for which i was last picked.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from partwise.core.schedule import ReplyInfo, Roster
from partwise.schedulers.choice import Choice, sample

__all__ = ["Oort", "bonus", "scores", "slowed"]

_LEAST_RANGE = 1e-4
_RANKED = 4096
# What is known of a client that has been picked: [U_i or None, R_i, answers, seconds or None, whether by its score].
_UTILITY, _LAST, _USES, _SECONDS, _IS_EXPLOITED = range(5)


def bonus(number: int, last: int) -> float:
    """What is added to a score for how little is known: sqrt(0.1 ln R / R_i).

    Example:
        >>> round(bonus(5, 2), 6)
        0.283676
    """
    return math.sqrt(0.1 * math.log(number) / last)


def slowed(score: float, seconds: float, preferred: float, power: float) -> float:
    """A score times (T / t_i)^alpha where the client takes longer than T.

    Example:
        >>> round(slowed(27**0.5, seconds=20, preferred=10, power=2), 6)
        1.299038
    """
    return score * (preferred / seconds) ** power if seconds > preferred else score


def scores(
    known: Mapping[int, Sequence[Any]], number: int, *, clip: float, preferred: float = math.inf, power: float = 2.0
) -> dict[int, float]:
    """The score of each client that has been picked before.

    (min(U_i, q) - 0.999 min U) / (max U - 0.999 min U) + sqrt(0.1 ln R / R_i), slowed; q is the quantile of all U,
    and those not greater than 0 are left out of q, min and max.

    Args:
        known: client -> U_i, R_i, answers, seconds. U_i and seconds None if it never answered: it has its bonus only.
        number: R.
        clip: which quantile, in [0, 1].
        preferred: T, seconds.
        power: alpha.
    """
    told = sorted(entry[_UTILITY] for entry in known.values() if entry[_UTILITY])
    least, most = (0.999 * told[0], told[-1]) if told else (0.0, 0.0)
    top, span = _quantile(told, clip), max(most - least, _LEAST_RANGE)
    found = {}
    for client, entry in known.items():
        utility, seconds = entry[_UTILITY], entry[_SECONDS]
        score = bonus(number, entry[_LAST])
        if utility is not None:
            score += (min(utility, top) - least) / span
        found[client] = slowed(max(0.0, score), seconds or 0.0, preferred, power)
    return found


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(int(len(ascending) * share + 1e-9), len(ascending) - 1)] if ascending else 0.0


@dataclass(frozen=True)
class Oort(Choice):
    """Clients in proportion to how useful and how quick they are, and some that were never asked.

    The K(1 - e) to exploit are drawn, in proportion to their scores, among those whose score is at least `cutoff`
    times that of the one at rank K(1 - e); the others, in proportion to min(n_i, `max_examples`), among those never
    asked with the most of it. The share e falls with every pick. A client's utility is what its reply reports as
    `utility` (let the algorithm be `Utility(...)`), or else examples times training loss; its seconds are those from
    asking to answer. To ask more than will be waited for is the scheduler's.

    Args:
        exploration: e before the first pick, in [0, 1].
        exploration_decay: what e is multiplied by at every pick, in (0, 1].
        exploration_min: where it stops, in [0, 1]. When nobody is left to explore, e is 0.
        round_penalty: alpha >= 0, the power of T / t_i for those that take longer than T; 0: time plays no role.
        pacer_rounds: W >= 1. Every W picks the utility exploited in the last W and in the W before decides on T.
        pacer_step: by how many percent of the clients T moves, in (0, 100].
        percentile: of the known seconds, in [0, 100], is T at first; at 100 T is infinite.
        clip: utilities are cut at this quantile, in [0, 1]: the only guard against clients that report too much.
        cutoff: in [0, 1].
        window: how many times as many as are explored stand to choose from, >= 1.
        max_examples: the most that a client trains on in a round, steps times batch, >= 1.
        max_uses: a client that has answered more often is barred; 0 bars nobody.
        max_barred: how much of the population may be barred, those used most, in [0, 1]. When too few others are
            there, they are asked all the same.

    Source: Lai et al., "Oort: efficient federated learning via guided participant selection", OSDI 2021,
        arXiv:2010.06081; the rules and defaults of github.com/SymbioticLab/Oort, oort/oort.py.
    Differs: `Utility` takes all examples once, at the values received, where the released code averages over the first
        epoch's batches; examples times loss, without it, is the same for equal losses. A time is what was measured, so
        that clients not yet asked are not told apart by it, and T knows only those that have answered. The score at
        rank K(1 - e) is that, not the one after. A client picked alone is exploited with probability 1 - e, since
        rounding down would never do so. A client that never answered has no utility; in the released code, the mean.
    """

    exploration: float = 0.9
    exploration_decay: float = 0.95
    exploration_min: float = 0.2
    round_penalty: float = 2.0
    pacer_rounds: int = 20
    pacer_step: float = 5.0
    percentile: float = 10.0
    clip: float = 0.98
    cutoff: float = 0.7
    window: int = 5
    max_examples: int = 600
    max_uses: int = 0
    max_barred: float = 0.3

    def __post_init__(self) -> None:
        inf = math.inf
        for name, least, most in (
            ("exploration", 0, 1),
            ("exploration_decay", 0, 1),
            ("exploration_min", 0, 1),
            ("round_penalty", 0, inf),
            ("pacer_rounds", 1, inf),
            ("pacer_step", 0, 100),
            ("percentile", 0, 100),
            ("clip", 0, 1),
            ("cutoff", 0, 1),
            ("window", 1, inf),
            ("max_examples", 1, inf),
            ("max_uses", 0, inf),
            ("max_barred", 0, 1),
        ):
            value = getattr(self, name)
            if not (least <= value <= most) or value == inf:
                rule = f"must be finite and at least {least}" if most == inf else f"must lie in {least}..{most}"
                raise ValueError(f"Oort({name}={value}): {rule}, got {value}. {getattr(type(self), name)} is usual.")
        for name in ("exploration_decay", "pacer_step"):
            if not getattr(self, name):
                raise ValueError(
                    f"Oort({name}={getattr(self, name)}): must be greater than 0, got {getattr(self, name)}. Raise it."
                )

    def init(self, roster: Roster) -> Any:
        """What is kept, of those that have been picked alone.

        known: client -> entry. gained: sum and number of the utilities told since the last pick by clients that were
        exploited; history: its means. ahead: the next to explore, best first, ranked as far as the client `ranked`.
        """
        return {
            "number": 0,
            "known": {},
            "exploration": self.exploration,
            "percentile": self.percentile,
            "gained": [0.0, 0],
            "history": [],
            "ahead": [],
            "ranked": None,
            "is_ranked": False,
        }

    def pick(
        self, state: Any, count: int, *, turn: int, now: float, roster: Roster, busy: Collection[int] = ()
    ) -> tuple[tuple[int, ...], Any]:
        known, number = state["known"], turn + 1
        chance = random.Random(f"{roster.seed}|oort|{number}")
        self._pace(state, number)

        def is_free(client: int) -> bool:
            return client not in busy and roster.next_available(client, now) <= now

        barred = self._barred(known, len(roster.clients))
        there = [client for client in sorted(known) if is_free(client)]
        open_to = {client: known[client] for client in there if client not in barred}
        scored = scores(open_to, number, clip=self.clip, preferred=self._preferred(state), power=self.round_penalty)
        exploited = self._exploited(scored, self._num_exploited(state, count, roster, chance), chance)
        explored = self._explored(state, count - len(exploited), roster, is_free, chance)
        picked = {*exploited, *explored}
        for others in (open_to, barred.intersection(there)):  # too few to explore: anybody
            left = [client for client in sorted(others) if client not in picked]
            picked.update(chance.sample(left, min(count - len(picked), len(left))))
        for client in picked:
            entry = known.setdefault(client, [None, number, 0, None, False])
            entry[_LAST], entry[_IS_EXPLOITED] = number, client in exploited
        state["number"] = number
        return tuple(sorted(picked)), state

    def heard(self, state: Any, reply: ReplyInfo, seconds: float) -> Any:
        utility = reply.report.get("utility", reply.examples * reply.loss)
        utility = utility if 0 <= utility < math.inf else 0.0  # no number, no use
        entry = state["known"].setdefault(reply.client, [None, max(1, state["number"]), 0, None, False])
        entry[_UTILITY], entry[_SECONDS] = utility, seconds
        entry[_USES] += 1
        if entry[_IS_EXPLOITED]:
            state["gained"][0] += utility
            state["gained"][1] += 1
        return state

    def _pace(self, state: Any, number: int) -> None:
        """Prefer slower clients where utility stands still, quicker ones where it leaps."""
        gained, num_gained = state["gained"]
        history, width = state["history"], self.pacer_rounds
        history.append(gained / num_gained if num_gained else 0.0)
        del history[: -2 * width]
        state["gained"] = [0.0, 0]
        if number >= 2 * width and number % width == 0:
            before, after = sum(history[:-width]), sum(history[-width:])
            if abs(after - before) <= 0.1 * before:
                state["percentile"] = min(100.0, state["percentile"] + self.pacer_step)
            elif abs(after - before) >= 5 * before:
                state["percentile"] = max(self.pacer_step, state["percentile"] - self.pacer_step)

    def _preferred(self, state: Any) -> float:
        """T in seconds."""
        if state["percentile"] >= 100:
            return math.inf
        seconds = sorted(e[_SECONDS] for e in state["known"].values() if e[_SECONDS] is not None)
        return _quantile(seconds, state["percentile"] / 100) if seconds else math.inf

    def _barred(self, known: Mapping[int, Sequence[Any]], num_clients: int) -> set[int]:
        if not self.max_uses:
            return set()
        much = sorted((-entry[_USES], client) for client, entry in known.items() if entry[_USES] > self.max_uses)
        return {client for _, client in much[: int(self.max_barred * num_clients + 1e-9)]}

    def _num_exploited(self, state: Any, count: int, roster: Roster, chance: random.Random) -> int:
        share = max(state["exploration"] * self.exploration_decay, self.exploration_min)
        state["exploration"] = share if len(state["known"]) < len(roster.clients) else 0.0
        share = 1 - state["exploration"]
        return int(chance.random() < share) if count == 1 else int(count * share + 1e-9)

    def _exploited(self, scored: Mapping[int, float], count: int, chance: random.Random) -> set[int]:
        count = min(count, len(scored))
        if not count:
            return set()
        least = self.cutoff * heapq.nlargest(count, scored.values())[-1]
        return set(sample(chance, [(c, score) for c, score in scored.items() if score >= least], count))

    def _explored(
        self, state: Any, count: int, roster: Roster, is_free: Callable[[int], bool], chance: random.Random
    ) -> list[int]:
        known, wanted = state["known"], self.window * count
        state["ahead"] = [client for client in state["ahead"] if client not in known]
        found: list[int] = []
        at = 0
        while len(found) < wanted:
            if at == len(state["ahead"]):
                if state["is_ranked"]:
                    break
                self._rank(state, max(_RANKED, 20 * wanted), roster)
            for client in state["ahead"][at:]:
                at += 1
                if is_free(client):
                    found.append(client)
                    if len(found) == wanted:
                        break
        return sample(chance, [(client, self._prior(client, roster)) for client in found], count)

    def _rank(self, state: Any, count: int, roster: Roster) -> None:
        """Finds the next best to explore: so many that a pass over all clients is rare."""
        known, after = state["known"], state["ranked"] or (-math.inf, -1)
        keys = ((-self._prior(client, roster), client) for client in roster.clients if client not in known)
        best = heapq.nsmallest(count, (key for key in keys if key > after))
        state["ahead"] += [client for _, client in best]
        state["ranked"] = best[-1] if best else after
        state["is_ranked"] = len(best) < count

    def _prior(self, client: int, roster: Roster) -> int:
        return min(roster.examples(client), self.max_examples)
