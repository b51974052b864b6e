"""Ledgers: what each commit is charged to whom, and that they go on from what was saved."""

from __future__ import annotations

import math

import pytest

from partwise.core.codec import encode
from partwise.core.errors import CompositionError
from partwise.experiment.accounting import gaussian_epsilon, poisson_epsilon, zcdp_epsilon
from partwise.experiment.accounts import Concentrated, Counted, Nodes, Replaced, Sampled

pytest.importorskip("dp_accounting")
DELTA = 1e-3


def test_a_client_that_is_in_one_commit_twice_moves_it_twice_as_far():
    ledger = Counted(2.0, DELTA)
    ledger.charge([3, 3, 8])
    assert ledger.epsilon() == pytest.approx(gaussian_epsilon(2 / 2.0, DELTA))
    ledger.charge([8], [0.5])
    assert ledger.epsilon() == pytest.approx(gaussian_epsilon(2 / 2.0, DELTA))  # 8 has 1 + 1/4, 3 still 4
    ledger.charge([3])
    assert ledger.epsilon() == pytest.approx(gaussian_epsilon(math.sqrt(5) / 2.0, DELTA))


def tree(z, leaves, rounds, delta=DELTA, restart=0):
    ledger = Nodes(z, delta, restart)
    for t in range(rounds):
        ledger.charge([5] * leaves.count(t))
    return ledger.epsilon()


def test_one_participation_in_a_tree_of_1024_rounds():
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting import rdp

    assert tree(5.0, [0], 1024, 1e-5) == pytest.approx(2.738, abs=1e-3)  # the Gaussian mechanism at z / sqrt(11)
    rho = 11 / (2 * 5.0**2)
    assert rho == pytest.approx(0.22)
    assert rho + 2 * math.sqrt(rho * math.log(1e5)) == pytest.approx(3.403, abs=1e-3)
    library = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL)
    library.compose(dp.SingleEpochTreeAggregationDpEvent(5.0, 1024))
    assert library.get_epsilon(1e-5) == pytest.approx(2.968, abs=1e-3)
    assert zcdp_epsilon(rho, 1e-5) == pytest.approx(2.968, abs=1e-3)


def spent(leaves, rounds, restart=0):
    """The squares of what a client adds to the nodes of a tree, by enumeration of all nodes."""
    total, starts = 0, range(0, rounds, restart or rounds)
    for start in starts:
        mine = [t - start for t in leaves if start <= t < start + (restart or rounds)]
        length = min(restart or rounds, rounds - start)
        is_whole = restart and length == restart
        padded = 1 << (length - 1).bit_length() if is_whole else length
        size = 1
        while size <= padded:
            for first in range(0, padded - size + 1, size):
                total += sum(first <= t < first + size for t in mine) ** 2
            size *= 2
    return total


@pytest.mark.parametrize(
    ("leaves", "rounds", "restart"),
    [
        ([0], 8, 0),
        ([0, 1], 8, 0),
        ([0, 7], 8, 0),
        ([3, 3], 8, 0),
        ([0, 3, 4], 7, 0),
        ([0, 5], 6, 6),
        ([4, 5, 9], 10, 5),
        ([1, 4, 10], 11, 3),
    ],
)
def test_the_ledger_of_a_tree_counts_every_node_by_client(leaves, rounds, restart):
    expected = gaussian_epsilon(math.sqrt(spent(leaves, rounds, restart)) / 4.0, DELTA)
    assert tree(4.0, leaves, rounds, restart=restart) == pytest.approx(expected)


def test_being_in_a_tree_twice_costs_more_than_twice():
    """Up to a factor k of the sensitivity, not sqrt(k): at neighbouring leaves all but two nodes are shared."""
    once, twice = spent([0], 1024), spent([0, 1], 1024)
    assert (once, twice) == (11, 2 + 10 * 4)
    assert math.sqrt(twice / once) > 1.95


@pytest.mark.parametrize("clients", [([1, 1],), ([1, 2], [1.0, 1.5])])
def test_sampling_hides_nobody_who_is_in_a_commit_twice(clients):
    for ledger in (Sampled(1.0, 0.1, DELTA), Replaced(1.0, 2, 9, DELTA)):
        with pytest.raises(CompositionError, match="must be in a commit once and unscaled for sampling to hide it"):
            ledger.charge(*clients)


@pytest.mark.parametrize(
    "new",
    [
        lambda: Counted(2.0, DELTA),
        lambda: Sampled(1.0, 0.1, DELTA),
        lambda: Replaced(1.0, 2, 9, DELTA),
        lambda: Nodes(2.0, DELTA),
        lambda: Nodes(2.0, DELTA, 3),
        lambda: Concentrated(0.1, DELTA),
    ],
)
def test_a_ledger_goes_on_from_its_state(new):
    one, other = new(), new()
    assert one.epsilon() == 0.0
    for commit in ([1, 2], [], [2]):
        one.charge(commit)
    other.restore(one.state())
    assert one.epsilon() == other.epsilon() > 0
    for ledger in (one, other):
        ledger.charge([2])
    assert one.epsilon() == other.epsilon()


def test_of_what_two_courses_of_a_run_have_spent_the_larger_counts():
    """Version by version where sampling hides who was in it, client by client elsewhere; keys may be strings."""
    ledger = Sampled(1.0, 0.1, DELTA)
    ledger.restore({"commits": 3, "made": 3, "again": {0: 3, 1: 2}})
    ledger.count({"commits": 2, "made": 2, "again": {"0": 2, "1": 4}})
    assert ledger.epsilon() == poisson_epsilon(1.0, 0.1, {1: 1, 3: 1, 4: 1}, DELTA)
    for ledger in (Counted(2.0, DELTA), Nodes(2.0, DELTA)):
        ledger.restore({"step": 0, "open": [], "spent": {1: 4.0, 2: 1.0}})
        assert ledger.epsilon() == pytest.approx(gaussian_epsilon(math.sqrt(4) / 2.0, DELTA))
        ledger.count({"step": 0, "open": [], "spent": {"1": 2.0, "2": 3.5}})
        assert ledger.epsilon() == pytest.approx(gaussian_epsilon(math.sqrt(4) / 2.0, DELTA))
        ledger.charge([2])
        assert ledger.epsilon() == pytest.approx(gaussian_epsilon(math.sqrt(4.5) / 2.0, DELTA))


def test_shares_of_noise_are_charged_for_every_commit_of_a_client_and_for_a_lost_course():
    """The zCDP of commits adds up; of one to which a client sent twice it is four times that of one."""
    ledger = Concentrated(0.05, DELTA)
    for clients in ([4], [4, 7], [4]):
        ledger.charge(clients)
    assert ledger.epsilon() == pytest.approx(zcdp_epsilon(3 * 0.05, DELTA))
    ledger.charge([7, 7])
    assert ledger.epsilon() == pytest.approx(zcdp_epsilon(5 * 0.05, DELTA))
    ledger.count({"spent": {"4": 6.0, "7": 2.0}})
    assert ledger.epsilon() == pytest.approx(zcdp_epsilon(6 * 0.05, DELTA))


def test_one_course_of_a_tree_goes_on_in_the_middle_of_it():
    """Of leaves 0 to 4 in trees of three: as many nodes of each tree as without the stop after the second leaf."""
    ledger = Nodes(4.0, DELTA, 3)
    for t in range(5):
        if t == 2:
            state, ledger = ledger.state(), Nodes(4.0, DELTA, 3)
            ledger.restore(state)
        ledger.charge([5])
        expected = math.sqrt(spent(range(t + 1), t + 1, 3)) / 4.0
        assert ledger.epsilon() == pytest.approx(gaussian_epsilon(expected, DELTA)), t


@pytest.mark.parametrize(
    "new", [lambda: Counted(2.0, DELTA), lambda: Sampled(1.0, 0.1, DELTA), lambda: Nodes(2.0, DELTA)]
)
def test_a_state_stays_what_it_is_while_ledgers_go_on(new):
    one, other = new(), new()
    for _ in range(3):
        one.charge([2])
    state = one.state()
    before = encode(state)
    other.restore(state)
    for ledger in (one, other):
        for _ in range(2):
            ledger.charge([2, 3])
    assert encode(state) == before


@pytest.mark.parametrize("ledger", [lambda: Sampled(1.0, 0.1, DELTA), lambda: Replaced(2.0, 3, 30, DELTA)])
def test_what_sampling_hides_takes_the_same_room_after_any_number_of_versions(ledger):
    sizes = []
    for versions in (100, 400):
        of = ledger()
        for _ in range(versions):
            of.charge([1])
        sizes.append(len(encode(of.state())))
    assert sizes[1] <= sizes[0] + 8  # of a number that takes more bytes


def test_a_ledger_goes_on_from_a_state_that_has_a_number_for_every_version():
    old, new = Sampled(1.0, 0.1, DELTA), Sampled(1.0, 0.1, DELTA)
    old.restore({"commits": 2, "times": [1, 3, 2]})  # the third is to be made again
    new.restore(old.state())
    new.charge([1])
    assert new.epsilon() == poisson_epsilon(1.0, 0.1, {1: 1, 3: 2}, DELTA)


@pytest.mark.parametrize(
    "ledger",
    [lambda: Sampled(1.25, 0.1, DELTA, "rdp"), lambda: Replaced(2.25, 3, 30, DELTA)],
    ids=["sampled", "replaced"],
)
def test_what_one_commit_costs_is_worked_out_once_however_many_there_are(ledger, monkeypatch):
    from dp_accounting import rdp

    worked_out = []
    compose = rdp.RdpAccountant.compose
    monkeypatch.setattr(rdp.RdpAccountant, "compose", lambda *args: worked_out.append(args) or compose(*args))
    of, spent = ledger(), []
    for _ in range(5):
        of.charge([1])
        spent.append(of.epsilon())
    assert spent == sorted(set(spent))  # every commit spends
    assert len(worked_out) == 1
