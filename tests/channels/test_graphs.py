"""Degrees of the specification's table; graphs that are regular, symmetric and connected."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import comb

import pytest

from partwise.channels.graphs import Complete, Degree, RandomRegular, choose_degree, harary
from partwise.core.errors import ProtocolError

TABLE = {
    100: [(30, 6), (42, 11), (48, 21), None],
    1_000: [(34, 18), (52, 28), (58, 39), (310, 159)],
    10_000: [(38, 21), (60, 32), (68, 46), (472, 241)],
    1_000_000: [(44, 23), (70, 37), (78, 52), (572, 291)],
}
RATES = [(0.05, 0.05), (0.10, 0.10), (0.20, 0.05), (0.33, 0.33)]


@pytest.mark.parametrize("clients", TABLE)
def test_degrees_of_the_specification(clients):
    assert [choose_degree(clients, RandomRegular(*rates)) for rates in RATES] == TABLE[clients]


def chances(n, corrupt, staying, k, t):
    """The two tails, term by term."""
    whole = comb(n - 1, k)
    leak = sum(comb(corrupt, x) * comb(n - 1 - corrupt, k - x) for x in range(t, k + 1))
    stuck = sum(comb(staying, x) * comb(n - 1 - staying, k - x) for x in range(t))
    return Fraction(n * leak, whole), Fraction(n * stuck, whole)


def test_a_degree_keeps_its_promises_and_the_next_smaller_one_does_not():
    k, t = choose_degree(100, RandomRegular(0.1, 0.1))
    leak, stuck = chances(100, 10, 89, k, t)
    assert leak < Fraction(1, 2**40)
    assert stuck < Fraction(1, 2**30)
    for other in range(1, k - 1):
        leak, stuck = chances(100, 10, 89, k - 2, other)
        is_linked = 100 * 0.2 ** ((k - 2) / 2) < 2**-40
        assert leak >= Fraction(1, 2**40) or stuck >= Fraction(1, 2**30) or not is_linked


def test_too_small_a_cohort_is_refused():
    with pytest.raises(ProtocolError, match=r"RandomRegular\(.*no graph over 20 clients keeps both chances"):
        RandomRegular().degree(20, is_active=False)


def test_thresholds_of_the_complete_graph():
    assert [Complete().degree(n, is_active=False).threshold for n in (3, 10, 100)] == [2, 6, 51]
    assert [Complete().degree(n, is_active=True).threshold for n in (3, 10, 100)] == [3, 7, 67]
    assert Complete(0.8).degree(10, is_active=False) == Degree(9, 9)
    assert Complete(0.57).degree(100, is_active=False).threshold == 58  # though 0.57 * 100 is 56.99999999999999
    # A share that is asked for does not lower what a server that lies makes necessary: 2 * 10 // 3 + 1 of ten.
    assert Complete(0.5).degree(10, is_active=True).threshold == 7
    assert Complete(0.5).degree(10, is_active=False).threshold == 6
    for n in range(2, 60):  # against a server with a third of the clients, 2t > n + n_c
        assert 2 * Complete().degree(n, is_active=True).threshold > n + (n - 1) // 3
    with pytest.raises(ValueError, match=r"Complete\(threshold=0.4\): must lie in \[0.5, 1\)"):
        Complete(0.4)


@pytest.mark.parametrize(("n", "k"), [(10, 4), (9, 6), (7, 6), (6, 5), (5, 4)])
def test_graphs(n, k):
    edges = harary(list(range(100, 100 + n)), k)
    assert all(len(found) == k for found in edges.values())
    assert all(a in edges[b] for a, found in edges.items() for b in found)
    seen, front = {100}, [100]
    while front:
        front = [c for d in front for c in edges[d] if c not in seen]
        seen |= set(front)
    assert len(seen) == n


def test_ring_of_the_specification():
    assert harary(range(10), 4)[0] == (1, 2, 8, 9)
    with pytest.raises(ValueError, match="must be even, got 3"):
        harary(range(10), 3)


def test_as_many_neighbours_as_there_are_others_is_the_complete_graph():
    assert harary([3, 1, 2], 2) == Complete().edges([3, 1, 2], 2)


def test_the_order_is_drawn():
    graph, clients = RandomRegular(), range(40)
    drawn = {graph.edges(clients, 4)[0] for _ in range(20)}
    assert len(drawn) > 10


@pytest.mark.parametrize(("keeps_own", "passing"), [(False, 9), (True, 45)], ids=["neighbours only", "and oneself"])
def test_patterns_of_loss_that_can_be_opened(keeps_own, passing):
    """The ring of 8 with 4 neighbours and 3 shares: every client's secret needs 3 live holders, a lost one's too."""
    edges = harary(range(8), 4)
    found = []
    for alive in itertools.product((False, True), repeat=8):
        held = [sum(alive[d] for d in edges[c]) + (keeps_own and alive[c]) for c in range(8)]
        found.append(all(h >= 3 for h in held))
    assert sum(found) == passing


@pytest.mark.parametrize("wrong", [{"corrupt": 1.0}, {"lost": -0.1}])
def test_rates_out_of_range(wrong):
    with pytest.raises(ValueError, match=r"RandomRegular\((corrupt|lost)=.*must lie in \[0, 1\)"):
        RandomRegular(**wrong)
    with pytest.raises(ValueError, match="must be at least 1"):
        RandomRegular(security_bits=0)
