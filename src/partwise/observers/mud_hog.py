"""MUD-HoG: who is malicious, and how, and who is merely unreliable, by the history of updates.

Notation: s_i is the mean of a client's last K updates, its short history; l_i the sum of all, its long one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from partwise.aggregators import Median
from partwise.aggregators.geometry import distances, inner_products
from partwise.core.aggregate import sum_updates
from partwise.core.codec import register
from partwise.core.detect import Verdict
from partwise.core.model import Params
from partwise.core.population import Census, Client
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, is_finite
from partwise.observers.clusters import dbscan, gap_threshold, silhouette, two_means

__all__ = ["History", "MUDHoG", "MUDHoGState"]

SIGN, NOISE, TARGETED, UNRELIABLE = "sign flip", "noise", "targeted", "unreliable"


@register
@dataclass
class History:
    """What is remembered of a client.

    Args:
        last: its last updates, the newest at the end.
        total: the sum of all.
        short: the frozen mean, of the released code's rule.
        suspected: kind -> rounds in a row under that suspicion.
        confirmed: the kind that was confirmed; empty for none.
        doubts: how often it was unlike the others, less how often it was not.
    """

    last: list[Update] = field(default_factory=list)
    total: Update | None = None
    short: Update | None = None
    suspected: dict[str, int] = field(default_factory=dict)
    confirmed: str = ""
    doubts: int = 0


@register
@dataclass
class MUDHoGState:
    """rounds: judged so far. clients: client -> its history."""

    rounds: int = 0
    clients: dict[int, History] = field(default_factory=dict)


@dataclass(frozen=True)
class MUDHoG:
    """Five looks at the histories of updates, in order; each at those whom the ones before do not suspect.

    1. Sign flip: s_i points away from the median of all. 2. Noise: by DBSCAN of s_i, in no cluster, and beyond the
    largest gap in the distances to the centre of the largest one. 3. Targeted: the smaller of two clusters of l_i,
    where the two are apart. 4. A suspicion that stays for `delay` rounds, twice as many for a targeted attack, is
    confirmed. 5. Unreliable: below the largest gap in the cosines to the median, for more than `delay` rounds. Left out
    are those who are confirmed, and those suspected in this round of 1, 2 or 3; the unreliable are told of, and kept.
    Whose updates are so large that their sum is not finite is suspected of noise, and not looked at.

    Args:
        window: K, >= 1.
        start: the first round, from 1, in which anybody is suspected.
        delay: rounds in a row until a suspicion is confirmed, >= 1.
        eps: of DBSCAN, in units of the median length of the short histories, so that it transfers.
        min_samples: of DBSCAN.
        silhouette: how far apart the two clusters of long histories must be, for the smaller to be suspected.
        min_gap: how wide the gap in the cosines must be.
        min_overlap: coordinates that two histories must share to be compared.
        legacy_frozen_short: the released code's short history, which stays as it was after K rounds.

    Source: Gupta, Luo, Ngo, Das, "Long-short history of gradients is all you need: detecting malicious and unreliable
        clients in federated learning", ESORICS 2022, arXiv:2208.10273, algorithm 1.
    Differs: submodels, each coordinate by the rounds in which it was held; eps has no unit; nobody is suspected where
        there is but one cluster; those under suspicion of flipped signs are left out at once.
    """

    window: int = 3
    start: int = 3
    delay: int = 2
    eps: float = 1.0
    min_samples: int = 5
    silhouette: float = 0.1
    min_gap: float = 0.05
    min_overlap: int = 10
    legacy_frozen_short: bool = False

    def __post_init__(self) -> None:
        for name in ("window", "start", "delay", "min_samples", "min_overlap"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"MUDHoG({name}={getattr(self, name)}): must be at least 1, got {getattr(self, name)}. Raise it."
                )
        if not self.eps > 0:
            raise ValueError(f"MUDHoG(eps={self.eps}): must be above 0, got {self.eps}. 1 is the median length.")

    def init(self, params: Params, census: Census) -> MUDHoGState:
        return MUDHoGState()

    def judge(
        self, updates: Sequence[Update], replies: Sequence[ReplyInfo], state: MUDHoGState, params: Params
    ) -> tuple[Sequence[Verdict], MUDHoGState]:
        now: list[Client] = list(dict.fromkeys(reply.client for reply in replies))  # who sent two has one history
        # Copies: where the aggregator refuses the commit, none of it is remembered.
        fresh = {client: replace(state.clients.get(client) or History()) for client in now}
        state = MUDHoGState(state.rounds + 1, {**state.clients, **fresh})
        for reply, update in zip(replies, updates, strict=True):
            self._remember_(state.clients[reply.client], update, params)
        if state.rounds < self.start:
            return [], state
        shorts = {client: self.short(state.clients[client], params) for client in now}
        # Of sums that ran over nothing can be told, and nothing of the others by them.
        wild = {c for c in now if not (is_finite(shorts[c]) and is_finite(state.clients[c].total or shorts[c]))}
        found = dict.fromkeys(sorted(wild), (NOISE, "updates whose sum is not finite"))
        shorts = {client: short for client, short in shorts.items() if client not in wild}
        malicious = {client for client in now if state.clients[client].confirmed}
        self._sign_(found, {c: s for c, s in shorts.items() if c not in malicious}, shorts, params)
        rest = {c: s for c, s in shorts.items() if c not in found and state.clients[c].confirmed != SIGN}
        self._noise_(found, rest, params)
        clean = [c for c in now if c not in found and state.clients[c].confirmed not in (SIGN, NOISE)]
        self._targeted_(found, {c: total for c in clean if (total := state.clients[c].total) is not None}, params)
        self._confirm_(found, state, now)
        self._doubt_(shorts, state, found, params)
        return self._verdicts(found, state, now), state

    def short(self, history: History, params: Params) -> Update:
        """s_i: each coordinate's mean over the rounds of the window in which it was held."""
        if self.legacy_frozen_short and history.short is not None:
            return history.short
        total = sum_updates([Update(u.index, u.value) for u in history.last], params)
        return Update(total.index, {n: v / total.weight[n].clamp(min=1).to(v) for n, v in total.value.items()})

    def _remember_(self, history: History, update: Update, params: Params) -> None:
        own = Update(update.index, {n: v.clone() for n, v in update.values().items()})
        history.last = [*history.last, own][-self.window :]
        before = [] if history.total is None else [history.total]
        total = sum_updates([*before, own], params)
        history.total = Update(total.index, total.value)
        if self.legacy_frozen_short and history.short is None and len(history.last) == self.window:
            history.short = self.short(History(last=history.last), params)

    def _sign_(
        self,
        found: dict[Client, tuple[str, str]],
        trusted: Mapping[Client, Update],
        shorts: Mapping[Client, Update],
        params: Params,
    ) -> None:
        for client, cosine in _cosines(shorts, list((trusted or shorts).values()), params, self.min_overlap).items():
            if cosine < 0:
                found[client] = SIGN, f"cosine {cosine:.3f} to the median of all"

    def _noise_(self, found: dict[Client, tuple[str, str]], rest: Mapping[Client, Update], params: Params) -> None:
        clients = list(rest)
        if len(clients) < 3:
            return
        squared = distances(list(rest.values()), params, self.min_overlap)
        inner, _ = inner_products(list(rest.values()), params)
        length = float(inner.diagonal().clamp(min=0).sqrt().median())
        label = dbscan(squared, self.eps * length, self.min_samples)
        known = [group for group in label if group >= 0]
        if not known:
            return
        largest = max(sorted(set(known)), key=known.count)
        normal = [at for at, group in enumerate(label) if group == largest]
        centre = _median([rest[clients[at]] for at in normal], params)
        apart = distances([*rest.values(), centre], params, self.min_overlap)[-1, :-1].sqrt().tolist()
        others = [at for at, group in enumerate(label) if group != largest]
        if not others or length == 0:
            return
        # With the farthest of the normal ones, so that one suspect alone has a neighbour to be apart from.
        limit, _ = gap_threshold([max(apart[at] for at in normal), *(apart[at] for at in others)])
        for at in others:
            if apart[at] > limit and label[at] == -1:
                found[clients[at]] = NOISE, f"{apart[at] / length:.2f} median lengths from the largest cluster"

    def _targeted_(self, found: dict[Client, tuple[str, str]], longs: Mapping[Client, Update], params: Params) -> None:
        clients = list(longs)
        if len(clients) < 4:
            return
        squared = distances(list(longs.values()), params, self.min_overlap)
        if not bool((squared < torch.inf).all()):
            return
        second = two_means(squared)
        apart = silhouette(squared, second)
        # Of two that are as large as one another, none is the smaller: which one came second tells nothing.
        if apart < self.silhouette or int(second.sum()) in (0, len(clients)) or 2 * int(second.sum()) == len(clients):
            return
        smaller = second if 2 * int(second.sum()) <= len(clients) else ~second
        for at in smaller.nonzero().reshape(-1).tolist():
            found[clients[at]] = TARGETED, f"in a cluster of {int(smaller.sum())}, silhouette {apart:.2f}"

    def _confirm_(self, found: Mapping[Client, tuple[str, str]], state: MUDHoGState, now: Sequence[Client]) -> None:
        for client in now:
            history, kind = state.clients[client], found.get(client, ("", ""))[0]
            history.suspected = {kind: history.suspected.get(kind, 0) + 1} if kind else {}
            needed = 2 * self.delay if kind == TARGETED else self.delay
            if kind and history.suspected[kind] >= needed and not history.confirmed:
                history.confirmed = kind

    def _doubt_(
        self,
        shorts: Mapping[Client, Update],
        state: MUDHoGState,
        found: Mapping[Client, tuple[str, str]],
        params: Params,
    ) -> None:
        looked = {c: s for c, s in shorts.items() if not state.clients[c].confirmed and c not in found}
        if len(looked) < 2:
            return
        cosines = _cosines(looked, list(looked.values()), params, self.min_overlap)
        limit, width = gap_threshold(list(cosines.values()))
        for client, cosine in cosines.items():
            history = state.clients[client]
            is_odd = width >= self.min_gap and cosine < limit
            history.doubts = history.doubts + 1 if is_odd else max(0, history.doubts - 1)

    def _verdicts(
        self, found: Mapping[Client, tuple[str, str]], state: MUDHoGState, now: Sequence[Client]
    ) -> list[Verdict]:
        verdicts = []
        for client in sorted(now):
            history = state.clients[client]
            kind, reason = found.get(client, (history.confirmed, "confirmed before"))
            if kind:
                verdicts.append(Verdict(client, history.confirmed or kind, reason, bool(history.confirmed), True))
            elif history.doubts > self.delay:
                reason = f"{history.doubts} rounds below the gap in the cosines"
                verdicts.append(Verdict(client, UNRELIABLE, reason, True, False))
        return verdicts


def _median(updates: Sequence[Update], params: Params) -> Update:
    return Median(min_holders=1).reduce(list(updates), (), params)[0]


def _cosines(of: Mapping[Client, Update], among: Sequence[Update], params: Params, overlap: int) -> dict[Client, float]:
    """Client -> cosine to the median of some updates."""
    cosine: Tensor = inner_products([*of.values(), _median(among, params)], params, min_overlap=overlap)[1][-1, :-1]
    return dict(zip(of, cosine.tolist(), strict=True))
