from __future__ import annotations

import math

import pytest

from partwise.core.schedule import Arrived, Commit, Discard, Dispatch, GiveUp, Lost, ReplyInfo, Started, Stop
from partwise.schedulers import FedAsync, FedBuff
from partwise.schedulers.choices import Weighted
from partwise.schedulers.staleness import Constant, Polynomial
from toy_clock import Clock, People, paced


def staleness(clock: Clock) -> list[list[int]]:
    """Of every commit."""
    return [[number - r.version for r in commit.replies] for number, (_, commit) in enumerate(clock.of(Commit))]


def test_every_so_many_replies_are_a_commit_and_others_are_asked_meanwhile():
    clock = Clock(
        FedBuff(buffer=2, concurrency=3, versions=4), People(range(9)), paced([1.0 + c for c in range(9)])
    ).run()
    assert clock.stopped == "done"
    assert [len(c.replies) for _, c in clock.of(Commit)] == [2] * 4
    assert len(clock.of(Dispatch)) == 3 + 7  # the last commit asks nobody
    assert len({a.client for _, a in clock.of(Dispatch)[:3]}) == 3


def test_as_many_as_are_asked_replaced_after_the_commit_are_never_stale():
    scheduler = FedBuff(buffer=4, concurrency=4, replace="commit", versions=5)
    clock = Clock(scheduler, People(range(4)), paced([2.0] * 4)).run()
    assert staleness(clock) == [[0] * 4] * 5
    assert [when for when, _ in clock.of(Commit)] == [2, 4, 6, 8, 10]
    assert all(commit.scales == () for _, commit in clock.of(Commit))  # nothing is scaled


def test_replaced_when_they_answer_all_but_the_last_are_a_version_behind():
    clock = Clock(FedBuff(buffer=4, concurrency=4, versions=5), People(range(4)), paced([2.0] * 4)).run()
    assert staleness(clock) == [[0] * 4] + [[1, 1, 1, 0]] * 4
    scales = [commit.scales for _, commit in clock.of(Commit)]
    assert scales == [()] + [pytest.approx((math.sqrt(0.5),) * 3 + (1,))] * 4


def reply(id, client, version):
    return ReplyInfo(id, client, version, 5, 7)


def test_a_client_may_be_in_the_buffer_twice():
    scheduler = FedBuff(buffer=3, concurrency=3, staleness=Constant(), versions=2)
    clock = Clock(scheduler, People(range(3)), paced([1.0, 10.0, 10.0])).run()
    assert [r.client for r in clock.of(Commit)[0][1].replies] == [0, 0, 0]


def test_replaced_after_the_commit_nobody_is_in_it_twice_also_where_clients_are_lost():
    def seconds(client, steps, now):
        return -0.5 if (client + int(now)) % 3 == 0 else 1.0 + client / 8

    for concurrency in (4, 5, 6):
        scheduler = FedBuff(buffer=4, concurrency=concurrency, replace="commit", versions=40)
        clock = Clock(scheduler, People(range(6)), seconds).run()
        assert clock.stopped == "done"
        for _, commit in clock.of(Commit):
            assert len({r.client for r in commit.replies}) == 4


def test_what_is_too_stale_is_discarded_and_its_client_replaced():
    people = People(range(2))
    scheduler = FedBuff(buffer=1, concurrency=2, max_staleness=1, versions=9)
    state, _ = scheduler.step(scheduler.init(people), Started(0.0), people)
    for id in range(2):
        state, _ = scheduler.step(state, Arrived(1.0 + id, reply(id, 0, id), 0.0 + id), people)
    state, actions = scheduler.step(state, Arrived(5.0, reply(9, 1, 0), 0.0), people)
    assert actions == [Discard((reply(9, 1, 0),)), Dispatch(1)]
    assert state.version == 2


@pytest.mark.parametrize("flush", [False, True])
def test_what_is_in_the_buffer_at_the_end_is_committed_if_wanted(flush):
    scheduler = FedBuff(buffer=4, concurrency=5, versions=0, seconds=5.5, flush=flush)
    clock = Clock(scheduler, People(range(5)), paced([1.0] * 5)).run()
    assert clock.stopped == "5.5 seconds are over"
    assert clock.now == 5.5
    assert [len(c.replies) for _, c in clock.of(Commit)] == [4] * 6 + [1] * flush
    assert len(clock.known) == 1 - flush


def test_a_lost_client_is_replaced_also_where_others_wait_for_the_commit():
    def seconds(client, steps, now):
        return -0.5 if client == 1 and now == 0 else 1.0

    clock = Clock(FedBuff(buffer=2, concurrency=2, replace="commit", versions=3), People(range(2)), seconds).run()
    assert [when for when, _ in clock.of(Lost)] == [0.5]
    assert [(when, d.client) for when, d in clock.of(Dispatch)][2] == (0.5, 1)
    assert clock.stopped == "done"


def test_who_does_not_answer_is_given_up_by_one_timer_for_all():
    def seconds(client, steps, now):
        return math.inf if client % 2 else 3.0

    scheduler = FedBuff(buffer=2, concurrency=6, versions=30, patience_seconds=20.0)
    clock = Clock(scheduler, People(range(40)), seconds).run()
    assert clock.stopped == "done"
    assert clock.most_timers == 1
    asked = {}
    for when, entry in clock.log:
        if isinstance(entry, Dispatch):
            asked[entry.client] = when
        if isinstance(entry, GiveUp):
            assert all(when == pytest.approx(asked[client] + 20) for client in entry.clients)
    assert clock.of(GiveUp)
    assert all(client % 2 for _, g in clock.of(GiveUp) for client in g.clients)


def test_the_state_does_not_grow_with_the_population():
    people = People(range(10**9))
    scheduler = FedBuff(buffer=3, concurrency=5, versions=50)
    clock = Clock(scheduler, people, lambda client, steps, now: 1.0 + client % 7).run()
    assert clock.stopped == "done"
    assert len(clock.state.flights.flying) <= 5


# Availability


def nights(client: int, now: float) -> float:
    """Client c is there in the first second of its period of 7 + c, from c on."""
    period = 7.0 + client
    since = (now - client) % period
    return now if since < 1.0 else now + period - since


def test_when_nobody_is_there_the_next_to_come_is_asked_when_it_comes():
    people = People(range(5), nights)
    clock = Clock(FedBuff(buffer=2, concurrency=3, versions=12), people, lambda c, s, now: 0.25).run()
    assert clock.stopped == "done"
    assert all(nights(d.client, when) == when for when, d in clock.of(Dispatch))
    assert clock.of(Dispatch)[0] == (0.0, Dispatch(0))
    assert {d.client for _, d in clock.of(Dispatch)} == set(range(5))
    assert max(b - a for (a, _), (b, _) in zip(clock.of(Dispatch), clock.of(Dispatch)[1:], strict=False)) < 7


def test_nobody_who_is_there_is_left_alone_while_somebody_is_wanted():
    """At every moment as many are at work as are wanted, or all who are there."""
    people = People(range(6), nights)
    clock = Clock(FedBuff(buffer=3, concurrency=4, versions=20), people, lambda c, s, now: 0.4 + c * 0.3)
    while not clock.stopped:
        clock.run(events=1)
        idle = [c for c in range(6) if c not in clock.state.flights.flying and nights(c, clock.now) <= clock.now]
        is_later = not clock.stopped and clock.queue[0][0] > clock.now  # all of this moment has happened
        assert not is_later or len(clock.state.flights.flying) == 4 or not idle


@pytest.mark.parametrize("make", [FedAsync, lambda **parts: FedBuff(buffer=2, **parts)], ids=["FedAsync", "FedBuff"])
def test_who_has_no_weight_is_not_asked_where_too_few_are_there_either(make):
    """Three are wanted and two have a weight; the third comes at 5 seconds, when somebody is wanted."""
    people = People(range(3), lambda client, now: now if client else max(now, 5.0))
    scheduler = make(concurrency=3, versions=20, choice=Weighted((0.0, 1.0, 2.0)))
    clock = Clock(scheduler, people, paced([1.0, 1.3, 1.7])).run()
    assert clock.now > 10
    assert {a.client for _, a in clock.of(Dispatch)} == {1, 2}


def test_where_few_are_there_nobody_looks_at_all_the_others_for_each_reply():
    looks = [0]

    def there(client, now):
        looks[0] += 1
        return now if client < 10 else max(now, 1e6)

    clock = Clock(
        FedBuff(buffer=5, concurrency=20, versions=100), People(range(5000), there), lambda c, s, now: 1.0 + c
    )
    clock.run()
    assert clock.stopped == "done"
    assert looks[0] < 4 * 5000 + 10 * 500  # twice at the beginning, and a few for every reply


def test_of_many_of_whom_few_are_there_enough_are_found():
    """One in two hundred is there at a time, of twenty thousand, for ten seconds."""

    def there(client, now):
        since = (now - client) % 2000
        return now if since < 10 else now + 2000 - since

    clock = Clock(FedBuff(buffer=20, concurrency=40, versions=30), People(range(20_000), there), lambda c, s, now: 3.0)
    clock.run()
    assert clock.stopped == "done"
    assert clock.now < 90  # 60 with all of them at work at any time


def test_it_stops_when_nobody_will_ever_come():
    people = People(range(4), lambda client, now: now if now < 3 else math.inf)
    clock = Clock(FedBuff(buffer=2, concurrency=2, versions=99), people, paced([1.0] * 4)).run()
    assert clock.stopped == "no client is at work, and none will be available any more"
    nowhere = People(range(4), lambda client, now: math.inf)
    assert Clock(FedBuff(buffer=2, concurrency=2), nowhere, paced([1.0] * 4)).run().stopped == clock.stopped


def test_it_stops_when_every_task_is_lost():
    clock = Clock(FedBuff(buffer=2, concurrency=2), People(range(4)), lambda c, s, now: -1e-9).run()
    assert clock.stopped.endswith("tasks in a row were lost, without a reply")


def test_few_who_are_left_fill_the_buffer_by_themselves():
    people = People(range(3), lambda client, now: math.inf if client == 2 and now > 0 else now)
    scheduler = FedBuff(buffer=3, concurrency=3, replace="commit", versions=3)
    clock = Clock(scheduler, people, lambda c, s, now: -1.0 if c == 2 else 1.0 + c).run()
    assert clock.stopped == "done"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"buffer": 5, "concurrency": 4},
            r"FedBuff\(buffer=5, concurrency=4\): a buffer must be at most the clients at work, got 5 for 4\. Lower it",
        ),
        ({"buffer": 0}, r"FedBuff\(buffer=0\): must be at least 1, got 0\. Raise it\."),
        ({"steps": -1}, r"FedBuff\(steps=-1\): must be at least 0"),
        ({"max_staleness": -1}, r"FedBuff\(max_staleness=-1\): must be at least 0"),
        ({"replace": "never"}, r"FedBuff\(replace='never'\): must be 'arrival' or 'commit'\."),
        ({"versions": -1}, r"FedBuff\(versions=-1\): must be at least 0"),
        ({"versions": 0}, r"FedBuff\(versions=0, seconds=inf\): must end some time, got no limit\. Set one of them\."),
        ({"seconds": math.nan}, r"FedBuff\(seconds=nan\): must be above 0, got nan\. Give seconds; inf for no limit\."),
        ({"patience_seconds": 0.0}, r"FedBuff\(patience_seconds=0\.0\): must be above 0, got 0\.0\."),
        ({"patience_seconds": math.inf}, r"FedBuff\(patience_seconds=inf\): must be finite, got inf\."),
    ],
)
def test_wrong_values_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        FedBuff(**arguments)


def test_more_at_work_than_there_are_is_refused():
    said = (
        r"FedBuff\(concurrency=20\): must be at most the population, got a population of 7\. Lower it or add clients\."
    )
    with pytest.raises(ValueError, match=said):
        FedBuff().init(People(range(7)))


def test_the_same_run_twice_is_the_same():
    def story():
        scheduler = FedBuff(buffer=3, concurrency=8, staleness=Polynomial(1.5), versions=40)
        return (
            Clock(scheduler, People(range(50), nights), lambda c, s, now: 0.1 + c % 5 * (-1 if c == 3 else 1)).run().log
        )

    assert story() == story()
    assert isinstance(story()[-1][1], Stop)


def test_all_are_chosen_as_often():
    scheduler = FedBuff(buffer=5, concurrency=6, versions=4000)
    clock = Clock(scheduler, People(range(200)), lambda c, s, now: 1.0 + c % 3).run()
    assert clock.stopped == "done"
    asked = [d.client for _, d in clock.of(Dispatch)]
    counts = [asked.count(c) for c in range(200)]
    mean = len(asked) / 200
    spread = sum((n - mean) ** 2 for n in counts) / 200 / mean  # 1 for independent draws
    assert 0.5 < spread < 1.3
    assert [abs(asked[:3000].count(c) - 15) < 16 for c in range(200)] == [True] * 200  # four deviations
