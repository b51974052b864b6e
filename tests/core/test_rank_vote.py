"""Rank voting: robustness.md §16."""

import math

import pytest
import torch

from partwise.core.index import Coords, Whole
from partwise.core.rank_vote import RankVote, places_of, vote
from partwise.core.update import Update
from toy_updates import aggregate


def order_of(places):
    return places.argsort().tolist()


def test_votes_of_the_tables():
    votes = [torch.tensor(v) for v in ([2, 3, 0, 5, 1, 4], [3, 2, 5, 0, 4, 1], [0, 2, 3, 1, 5, 4])]
    places = [places_of(v) for v in votes]
    assert sum(places).tolist() == [5, 12, 2, 3, 14, 9]
    assert order_of(vote(places)) == [2, 3, 0, 5, 1, 4]
    reverse = torch.tensor([4, 1, 5, 0, 3, 2])
    assert order_of(vote([*places, places_of(reverse)])) == [2, 3, 0, 5, 1, 4]
    honest = [places_of(torch.tensor(v)) for v in ([2, 0, 3, 1], [2, 3, 0, 1], [0, 2, 3, 1])]
    assert sum(honest).tolist() == [3, 9, 1, 5]
    bad = places_of(torch.tensor([1, 3, 0, 2]))
    assert order_of(vote(honest)) == order_of(vote([*honest, bad])) == [2, 0, 3, 1]
    assert order_of(vote([*honest, bad, bad, bad])) == [3, 0, 1, 2]


def test_properties_of_a_vote():
    rng = torch.Generator().manual_seed(1)
    votes = [torch.randperm(12, generator=rng) for _ in range(5)]
    assert torch.equal(vote(votes[:1]), votes[0])
    assert torch.equal(vote([votes[0]] * 4), votes[0])
    assert torch.equal(vote(votes), vote(votes[::-1]))
    with pytest.raises(ValueError, match=r"places_of\(\): an order must name each edge once, got \[0, 0, 1\]"):
        places_of(torch.tensor([0, 0, 1]))


def test_who_sends_no_order_does_not_vote():
    start = torch.arange(5).double()
    params = {"w": start}
    votes = [torch.tensor(v).double() for v in ([4, 0, 1, 2, 3], [4, 1, 0, 2, 3], [3, 0, 1, 2, 4])]
    updates = [Update(Whole({"w": (5,)}), {"w": v - start}) for v in votes]
    base = aggregate(RankVote(), updates, params).values()["w"] + start
    assert sorted(base.tolist()) == [0.0, 1.0, 2.0, 3.0, 4.0]
    junk = ([1e5, 0, 0, 0, 0], [0.5, 0.5, 1, 2, 3], [math.nan, 1, 2, 3, 4], [0, 0, 1, 2, 3])
    bad = [Update(Whole({"w": (5,)}), {"w": torch.tensor(v).double() - start}) for v in junk]
    part_of = Update(Coords({"w": (5,)}, {"w": torch.tensor([0, 1])}), {"w": torch.zeros(2).double()})
    assert torch.equal(aggregate(RankVote(), [*updates, *bad, part_of], params).values()["w"] + start, base)
    assert not aggregate(RankVote(), bad, params).value


def test_one_voter_moves_a_sum_by_at_most_n_minus_one():
    rng = torch.Generator().manual_seed(8)
    honest = torch.stack([torch.randperm(9, generator=rng) for _ in range(4)])
    for _ in range(50):
        one, other = torch.randperm(9, generator=rng), torch.randperm(9, generator=rng)
        assert int(((honest.sum(0) + one) - (honest.sum(0) + other)).abs().max()) <= 8


@pytest.mark.parametrize(
    ("p", "alpha", "exact", "bound"),
    [(0.8, 0, 3.69e-4, 0.1333), (0.8, 0.2, 1.518e-2, 0.2222), (0.9, 0.2, 2.66e-4, 0.125), (0.9, 0.4, 8.83e-2, 0.375)],
)
def test_wrong_decisions_on_one_edge(p, alpha, exact, bound):
    """Two edges, 25 voters: how often the vote is wrong, counted over all outcomes with their probabilities."""
    n = 25
    bad = round(alpha * n)
    right, wrong = torch.tensor([0, 1]), torch.tensor([1, 0])
    total = 0.0
    for honest_right in range(n - bad + 1):
        for bad_right in range(bad + 1):  # those vote the opposite of what is right with probability p
            chance = math.comb(n - bad, honest_right) * p**honest_right * (1 - p) ** (n - bad - honest_right)
            chance *= math.comb(bad, bad_right) * (1 - p) ** bad_right * p ** (bad - bad_right)
            votes = [right] * (honest_right + bad_right) + [wrong] * (n - honest_right - bad_right)
            total += chance * (not torch.equal(vote(votes), right))
    assert total == pytest.approx(exact, rel=2e-3)
    margin = n * (p + alpha * (1 - 2 * p) - 0.5)
    assert total <= 0.5 * math.sqrt(n * p * (1 - p) / margin**2) == pytest.approx(bound, abs=1e-4)
