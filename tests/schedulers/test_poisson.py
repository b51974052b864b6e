"""Poisson sampling: how many and who, and rounds that wait for all of them, also for none."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from partwise.core.schedule import After, Arrived, Commit, Deadline, Dispatch, ReplyInfo, Sampling, Started, Stop
from partwise.schedulers import FedAsync, FedBuff, FedCompass, FedFix, Synchronous, Tiered
from partwise.schedulers.choices import Oort, Poisson, Stalest, Uniform, Weighted
from partwise.testing import check_scheduler
from toy_roster import Play, Roster, asked

TURNS = 4000


def picks(count, roster, turns=TURNS, **more):
    return [Poisson().pick((), count, turn=t, now=0.0, roster=roster, **more)[0] for t in range(turns)]


def test_each_client_is_drawn_with_the_same_probability_and_independently():
    found = picks(3, Roster(10))
    sizes = Counter(map(len, found))
    for k in range(11):  # binomial(10, 0.3); within 4 standard deviations
        p = math.comb(10, k) * 0.3**k * 0.7 ** (10 - k)
        assert abs(sizes[k] / TURNS - p) < 4 * math.sqrt(p * (1 - p) / TURNS) + 1e-3
    for client in range(10):
        assert abs(sum(client in cohort for cohort in found) / TURNS - 0.3) < 4 * math.sqrt(0.21 / TURNS)
    for pair in ((0, 1), (3, 4), (2, 9)):
        assert abs(sum({*pair} <= {*c} for c in found) / TURNS - 0.09) < 4 * math.sqrt(0.09 * 0.91 / TURNS)
    assert all(list(cohort) == sorted(set(cohort)) for cohort in found)


def test_who_is_away_or_busy_changes_nothing_for_the_others():
    all_there = picks(6, Roster(20), 300)
    away = picks(6, Roster(20, away=lambda client, now: math.inf if client % 3 == 0 else now), 300, busy={1})
    assert away == [tuple(c for c in cohort if c % 3 and c != 1) for cohort in all_there]


def test_with_all_wanted_all_are_drawn_and_it_follows_from_seed_and_turn():
    assert picks(7, Roster(7), 3) == [tuple(range(7))] * 3
    assert picks(4, Roster(50), 20) == picks(4, Roster(50), 20) != picks(4, Roster(50, seed=4), 20)
    assert len(set(picks(25, Roster(50), 20))) == 20


def test_it_looks_at_few_of_a_large_population():
    roster = Roster(1_000_000)
    (cohort,) = picks(100, roster, 1)
    assert 60 < len(cohort) < 150
    assert roster.asked == len(cohort)


def test_a_round_waits_for_all_however_many_and_commits_the_empty_ones():
    play = Play(Synchronous(cohort=2, rounds=60, choice=Poisson(), patience=60), Roster(8), lambda c, _: 1.0 + c).run()
    assert play.reason == "done"
    sizes = [len(clients) for _, clients in play.commits]
    assert len(sizes) == 60
    assert min(sizes) == 0 < 4 <= max(sizes)
    assert sum(sizes) == sum(len(clients) for _, clients in play.cohorts)


def test_an_empty_round_is_a_commit_of_nothing_and_the_next_one_begins():
    scheduler, roster = Synchronous(cohort=1, rounds=2, choice=Poisson()), Roster(2)
    empty = next(t for t in range(99) if not Poisson().pick((), 1, turn=t, now=0.0, roster=roster)[0])
    state = scheduler.init(roster)._replace(turn=empty)
    state, actions = scheduler.step(state, Started(0.0), roster)
    assert actions == [Commit(()), After(0.0, 2)]
    state, actions = scheduler.step(state, Deadline(0.0, 2), roster)
    assert (state.round, state.turn) == (2, empty + 2)
    assert isinstance(actions[0], Dispatch | Commit)


def test_a_round_whose_clients_are_all_lost_is_committed_too_but_not_for_ever():
    scheduler = Synchronous(cohort=5, rounds=9, choice=Poisson(), patience=4)
    play = Play(scheduler, Roster(6), lambda client, _: -1.0).run()
    assert [clients for _, clients in play.commits] == [[]] * 4
    assert play.reason.startswith("4 rounds in a row committed nothing")


def test_replies_are_accepted_as_they_come():
    scheduler, roster = Synchronous(cohort=4, rounds=9, choice=Poisson()), Roster(8)
    state, actions = scheduler.step(scheduler.init(roster), Started(0.0), roster)
    first = asked(actions)
    assert len(first) > 1
    _, actions = scheduler.step(state, Arrived(1.0, ReplyInfo(0, first[0], 0, 1, 1), 0.0), roster)
    assert [list(map(int, (r.client for r in a.replies))) for a in actions] == [[first[0]]]


def test_it_passes_the_contract():
    check_scheduler(Synchronous(cohort=4, rounds=5, choice=Poisson()))


@pytest.mark.parametrize("scheduler", [FedAsync, FedBuff, Tiered])
def test_schedulers_that_count_on_a_number_refuse_it(scheduler):
    with pytest.raises(ValueError, match=r"\(choice=Poisson\(\)\): must pick as many clients as are wanted"):
        scheduler(choice=Poisson())


def test_it_cannot_be_asked_for_extra_clients():
    with pytest.raises(ValueError, match=r"Synchronous\(extra=0.5\): must be 0 with Poisson\(\)"):
        Synchronous(choice=Poisson(), extra=0.5)


def test_schedulers_say_how_they_sample():
    assert Synchronous(cohort=5, choice=Poisson()).sampling == Sampling("poisson", 5.0, 0)
    assert Synchronous(cohort=5, choice=Uniform(), min_replies=3).sampling == Sampling("fixed", 5.0, 3)
    assert Synchronous(cohort=5, choice=Uniform(), extra=2).sampling == Sampling("public", 5.0, 1)
    assert Synchronous(cohort=5, choice=Stalest()).sampling == Sampling("public", 5.0, 1)
    assert Synchronous(cohort=2, choice=Weighted((1.0, 2.0))).sampling == Sampling("public", 2.0, 1)
    assert Synchronous(cohort=5, choice=Weighted()).sampling is None  # by how many examples a client has
    assert Synchronous(cohort=5, choice=Oort()).sampling is None  # by its loss
    assert FedBuff(buffer=4, concurrency=8).sampling == Sampling("public", 4.0, 4)
    flushed = FedBuff(buffer=4, concurrency=8, flush=True)
    assert flushed.sampling == Sampling("public", 4.0, 1)  # of what is there at the end
    assert FedAsync().sampling == Sampling("public", 1.0, 1)
    assert FedCompass().sampling == FedFix().sampling == Sampling("public", 0.0)
    assert Tiered().sampling is None


def test_stops_like_any_other():
    play = Play(Synchronous(cohort=2, rounds=1, choice=Poisson()), Roster(3), lambda client, _: 1.0).run()
    assert play.reason == Stop().reason
