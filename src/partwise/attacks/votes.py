"""Attacks on rank voting, where clients send the order of a parameter's edges and the server adds up places.

Shapes and notation: a parameter has n edges, of which the k with the highest totals are used; a attackers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from partwise.core.attack import Attack, Scene, restricted
from partwise.core.update import Update

__all__ = ["ReversedVote", "VulnerableEdges"]


@dataclass(frozen=True)
class ReversedVote(Attack):
    """Against rank voting: the attackers add up the places that they computed and send the reverse order.

    Source: Mozaffari, Shejwalkar, Houmansadr, "Every vote counts", USENIX Security 2023, arXiv:2110.04350, §5.
    """

    def forge(self, scene: Scene) -> list[Update]:
        worst = {}
        for name, start in scene.params.items():
            total = _total(scene.own, name, start)
            if total is not None:
                worst[name] = total.argsort(stable=True).flip(0).argsort()
        return _voting(scene, worst)


@dataclass(frozen=True)
class VulnerableEdges(Attack):
    """Against rank voting: as many edges as can be are carried across the cut between those used and those not.

    Only edges whose totals are near the cut can be: all attackers send one order, in which the s best of the unused
    edges come last, the best of them in the lowest of these places, the s worst of the used ones first, and all
    others between them as they were; s is the largest number with which the s pairs change sides.

    Args:
        keep: k / n, the share of a parameter's edges that the model uses, in (0, 1).
        is_omniscient: whether the totals are those of the honest clients' votes; else the attackers' own stand for
            them.

    Source: Gong et al., "Not all edges are equally robust: evaluating the robustness of ranking-based federated
        learning", 2025, arXiv:2503.08976 (abstract and summaries; the formulas are ours).
    Differs: which edges change sides is found directly, not by a relaxation of permutations.
    """

    keep: float = 0.5
    is_omniscient: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"VulnerableEdges(keep={self.keep}): must lie in (0, 1), got {self.keep}. 0.5 is usual.")

    def forge(self, scene: Scene) -> list[Update]:
        sees = self.is_omniscient and bool(scene.honest)
        places = {}
        for name, start in scene.params.items():
            votes = scene.honest if sees else scene.own
            total = _total(votes, name, start)
            if total is not None:
                total *= 1.0 if sees else max(1, len(scene.honest)) / len(votes)
                places[name] = _crossing(total, len(scene.own), round(self.keep * len(total)))
        return _voting(scene, places)


def _crossing(totals: Tensor, attackers: int, used: int) -> Tensor:
    """The places, (n,) int64, by which most edges change sides of the cut. totals: (n,) float64 of the others."""
    num = len(totals)
    order = totals.argsort(stable=True)
    cut = num - used
    is_used = torch.zeros(num, dtype=torch.bool, device=totals.device)
    is_used[order[cut:]] = True

    def places(pairs: int) -> Tensor:
        found = torch.empty_like(order)
        mid = torch.cat([order[: cut - pairs], order[cut + pairs :]])
        found[mid] = torch.arange(pairs, num - pairs, device=order.device)
        found[order[cut - pairs : cut]] = torch.arange(num - pairs, num, device=order.device).flip(0)
        found[order[cut : cut + pairs]] = torch.arange(pairs, device=order.device).flip(0)
        return found

    def changes(pairs: int) -> bool:
        after = (totals + attackers * places(pairs)).argsort(stable=True)[cut:]
        return int((~is_used[after]).sum()) >= pairs

    low, high = 0, min(used, cut)
    while low < high:
        pairs = (low + high + 1) // 2
        low, high = (pairs, high) if changes(pairs) else (low, pairs - 1)
    return places(low)


def _total(votes: Sequence[Update], name: str, start: Tensor) -> Tensor | None:
    """The sum of the places that are voted for, (n,) float64; None where nobody holds the whole parameter."""
    places = [start.double() + u.values()[name].double() for u in votes if _is_whole(u, name)]
    return torch.stack(places).sum(0).reshape(-1) if places else None


def _voting(scene: Scene, places: dict[str, Tensor]) -> list[Update]:
    """Updates that vote for these places; of what is not among them they say nothing new."""
    base = {name: torch.zeros_like(start) for name, start in scene.params.items()}
    for name, at in places.items():
        start = scene.params[name]
        base[name] = (at.reshape(start.shape).double() - start.double()).to(start)
    return [Update(u.index, restricted(base, u.index, scene.params), u.weight) for u in scene.own]


def _is_whole(update: Update, name: str) -> bool:
    return name in update.index.shapes and update.index.grain(name) == 0
