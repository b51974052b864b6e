"""The traces of the released scheduler, row by row, and what holds for every population."""

from __future__ import annotations

import heapq
import math
import random

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from partwise.core.schedule import Arrived, Commit, Deadline, Dispatch, GiveUp, Lost
from partwise.populations import ArrayPopulation
from partwise.populations import Constant as Profiles
from partwise.runtimes.rehearse import Cost, rehearse
from partwise.schedulers import FedCompass
from partwise.schedulers.staleness import Constant, Polynomial
from toy_clock import Clock, People, paced

GOLDEN = FedCompass(min_steps=20, max_steps=100, latest_time_factor=1.2, pace_momentum=0.9, versions=0, seconds=1e4)


class Traced(Clock):
    """Notes every commit as {client: staleness}, and every group as it is made."""

    def __post_init__(self):
        super().__post_init__()
        self.commits, self.made = [], []

    def act(self, action):
        if isinstance(action, Commit):
            stale = {reply.client: self.version - reply.version for reply in action.replies}
            super().act(action)
            self.commits.append((self.now, self.version, stale))
            return
        super().act(action)
        if isinstance(action, Dispatch) and action.group:
            group = self.state.groups[action.group]
            times = group.expected, group.latest
            self.made.append((self.now, action.client, f"g{action.group - 1}", action.steps, times))


def played(scheduler, seconds, clients, until):
    clock = Traced(scheduler, People(range(clients)), seconds)
    clock.run(until)
    return clock


def test_golden_trace():
    """Three participants of 1, 2 and 5 seconds a step; asynchrony.md, section 4, part 6."""
    clock = played(GOLDEN, paced([1.0, 2.0, 5.0]), 3, until=945.0)
    assert clock.commits == [
        (100, 1, {0: 0}),
        (200, 2, {1: 1}),
        (200, 3, {0: 1}),
        (300, 4, {0: 0}),
        (320, 5, {1: 2, 0: 0}),
        (420, 6, {0: 0, 1: 0}),
        (500, 7, {2: 6}),
        (520, 8, {0: 1, 1: 1}),
        (620, 9, {0: 0}),
        (640, 10, {0: 0, 1: 1, 2: 2}),
        (740, 11, {0: 0, 1: 0, 2: 0}),
        (840, 12, {0: 0, 1: 0, 2: 0}),
        (940, 13, {0: 0, 1: 0, 2: 0}),
    ]
    assert [row[:4] for row in clock.made] == [
        (100, 0, "g0", 100),
        (200, 1, "g1", 60),
        (200, 0, "g2", 100),
        (300, 0, "g1", 20),
        (320, 0, "g3", 100),
        (320, 1, "g3", 50),
        (420, 0, "g4", 100),
        (420, 1, "g4", 50),
        (500, 2, "g5", 28),
        (520, 0, "g6", 100),
        (520, 1, "g5", 60),
        (620, 0, "g5", 20),
        (640, 0, "g7", 100),
        (640, 1, "g7", 50),
        (640, 2, "g7", 20),
        (740, 0, "g8", 100),
        (740, 1, "g8", 50),
        (740, 2, "g8", 20),
        (840, 0, "g9", 100),
        (840, 1, "g9", 50),
        (840, 2, "g9", 20),
        (940, 0, "g10", 100),
        (940, 1, "g10", 50),
        (940, 2, "g10", 20),
    ]

    times = {name: times for _, _, name, _, times in clock.made}
    assert {name: times[name] for name in list(times)[:8]} == {
        "g0": (200, 220),
        "g1": (320, 344),
        "g2": (300, 320),
        "g3": (420, 440),
        "g4": (520, 540),
        "g5": (640, 668),
        "g6": (620, 640),
        "g7": (740, 760),
    }


def test_late_trace():
    """The second of two participants halves its speed with the task that was sent at 320."""

    def seconds(client, steps, now):
        return steps * (1.0 if client == 0 else 4.0 if now >= 320 else 2.0)

    clock = played(GOLDEN, seconds, 2, until=545.0)
    assert clock.commits == [
        (100, 1, {0: 0}),
        (200, 2, {1: 1}),
        (200, 3, {0: 1}),
        (300, 4, {0: 0}),
        (320, 5, {1: 2, 0: 0}),
        (pytest.approx(440), 6, {0: 0}),
        (pytest.approx(540), 7, {1: 1, 0: 0}),
    ]
    assert [row[:4] for row in clock.made[4:]] == [
        (320, 0, "g3", 100),
        (320, 1, "g3", 50),
        (pytest.approx(440), 0, "g4", 100),
        (520, 1, "g5", 36),
        (pytest.approx(540), 0, "g6", 100),
    ]
    assert clock.state.pace[1] == pytest.approx(3.8)
    assert clock.made[-2][4] == pytest.approx((656.8, 684.16))


def test_a_group_that_is_waited_for_without_end():
    """With fixed steps, of 20, 40 and 100 seconds, only those are in a group that end together: two of them at 80."""
    scheduler = FedCompass(min_steps=20, max_steps=20, latest_time_factor=math.inf, versions=0, seconds=1e4)
    clock = played(scheduler, paced([1.0, 2.0, 5.0]), 3, until=105.0)
    found = sorted((now, *sorted(stale)) for now, _, stale in clock.commits)
    assert found == [(20, 0), (40, 0), (40, 1), (60, 0), (80, 0, 1), (100, 0), (100, 2)]


def test_scales_are_alpha_s_over_n_under_a_mean_of_the_commit():
    scales = {}
    scheduler = FedCompass(20, 100, 1.2, alpha=0.7, staleness=Polynomial(0.5), versions=0, seconds=1e4)
    clock = Traced(scheduler, People(range(3)), paced([1.0, 2.0, 5.0]))
    clock.committed = lambda now, commit: scales.setdefault(
        clock.version + 1,
        {r.client: s / len(commit.replies) for r, s in zip(commit.replies, commit.scales, strict=True)},
    )
    clock.run(645.0)
    assert scales[10] == pytest.approx({0: 0.7 / 3, 1: 0.7 / 3 / math.sqrt(2), 2: 0.7 / 3 / math.sqrt(3)})
    assert scales[2] == pytest.approx({1: 0.7 / 3 / math.sqrt(2)})


def test_normalized_updates_are_divided_by_their_steps():
    found = []
    scheduler = FedCompass(20, 100, 1.2, alpha=1.0, staleness=Constant(), normalize=True, versions=12)
    played = Clock(scheduler, People(range(3)), paced([1.0, 2.0, 5.0]), lambda now, commit: found.append(commit))
    played.run()
    assert played.stopped == "done"
    assert len(found) == 12
    mean = (100 + 50 + 20) / 3
    by_client = {r.client: s for r, s in zip(found[-1].replies, found[-1].scales, strict=True)}
    assert by_client == pytest.approx({0: mean / 100, 1: mean / 50, 2: mean / 20})


def test_clients_of_one_pace_are_one_group_after_their_first_tasks():
    clock = played(FedCompass(versions=9, latest_time_factor=1.2), paced([0.3] * 5), 5, math.inf)
    assert [set(stale) for _, _, stale in clock.commits[5:]] == [set(range(5))] * 4
    assert [set(stale.values()) for _, _, stale in clock.commits[6:]] == [{0}] * 3
    assert {row[3] for row in clock.made} == {100}


def test_equal_numbers_of_steps_and_endless_patience_make_groups_of_equal_finish():
    scheduler = FedCompass(30, 30, 1e9, versions=40)
    clock = played(scheduler, paced([1.0, 1.0, 3.0, 7.0]), 4, math.inf)
    assert {row[3] for row in clock.made} == {30}
    paces = [1.0, 1.0, 3.0, 7.0]
    assert all(expected == when + 30 * paces[client] for when, client, _, _, (expected, _) in clock.made)
    assert max(len(stale) for _, _, stale in clock.commits) > 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.05, 20), min_size=1, max_size=8),
    st.integers(1, 30),
    st.integers(0, 100),
    st.floats(1, 3),
    st.floats(0.1, 1),
)
def test_exact_paces_arrive_in_time_and_every_task_is_committed_once(paces, least, more, factor, momentum):
    scheduler = FedCompass(least, least + more, factor, momentum, versions=50)
    clock = _watched(scheduler, paced(paces), len(paces))
    assert clock.stopped == "done"
    for when, client, _, steps, (expected, _) in clock.made:
        arrival = when + steps * paces[client]
        slack = 1e-6 * max(1.0, arrival)
        assert least <= steps <= least + more
        assert expected - paces[client] - slack < arrival <= expected + slack


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.floats(1, 2))
def test_whatever_happens_to_clients_the_rules_hold(seed, clients, factor):
    """Paces that drift, tasks that are lost or never heard of again."""
    chance = random.Random(seed)

    def seconds(client, steps, now):
        fate = chance.random()
        if fate < 0.05:
            return math.inf
        return steps * chance.lognormvariate(client % 3, 0.5) * (-1 if fate < 0.15 else 1)

    scheduler = FedCompass(5, 25, factor, versions=40, patience_seconds=5000.0)
    clock = _watched(scheduler, seconds, clients)
    assert clock.stopped == "done"
    assert clock.version == 40


class Watched(Traced):
    """Looks after every event whether each client is in one place, and each task comes to one end."""

    def run(self, until=math.inf):
        while self.queue and not self.stopped:
            Clock.run(self, until, events=1)
            state, members = self.state, []
            for number, group in state.groups.items():
                members += [*group.waiting, *(r.client for r in group.got)]
                assert all(state.group_of[c] == number for c in group.waiting)
                assert group.waiting or group.got
            assert len(members) == len(set(members))
            if not self.stopped:
                waiting = {r.id for g in state.groups.values() for r in g.got} | {r.id for r in state.late}
                assert self.known.keys() == waiting  # nothing is forgotten
                assert set(state.flights.flying) == {client for client, _ in self.in_flight.values()}
        return self


def _watched(scheduler, seconds, clients):
    clock = Watched(scheduler, People(range(clients)), seconds)
    clock.run()
    return clock


def test_a_lost_client_leaves_its_group_and_is_placed_anew():
    times = iter([1.0])

    def seconds(client, steps, now):
        return -7.0 if client == 1 and now == 200.0 and next(times, 0) else steps * (client + 1.0)

    clock = _watched(FedCompass(20, 100, 1.2, versions=8), seconds, 2)
    lost = clock.of(Lost)
    assert [when for when, _ in lost] == [207.0]
    again = [(when, d) for when, d in clock.of(Dispatch) if when == 207.0]
    assert [d.client for _, d in again] == [1]
    assert clock.stopped == "done"


def test_who_does_not_answer_is_given_up_and_asked_again():
    def seconds(client, steps, now):
        return math.inf if client == 1 and now < 900 else steps * 1.0

    clock = _watched(FedCompass(20, 100, versions=20, patience_seconds=450.0), seconds, 2)
    assert [(when, g.clients) for when, g in clock.of(GiveUp)] == [(450.0, (1,)), (900.0, (1,))]
    assert {a.reply.client for _, a in clock.of(Arrived)} == {0, 1}
    assert clock.stopped == "done"


def test_a_group_whose_timer_rings_first_at_the_moment_of_its_replies_is_not_waited_for():
    """With a factor of one the timer and those who are in time come at the same moment, in either order."""

    class TimersFirst(Watched):
        def push(self, when, event):
            self.number += 1
            at = self.number - 10**6 if isinstance(event, Deadline) else self.number
            heapq.heappush(self.queue, (when, at, event))

    for kind in (Watched, TimersFirst):
        clock = kind(FedCompass(10, 10, 1.0, versions=12), People(range(3)), paced([1.0, 1.0, 1.0]))
        clock.run()
        assert clock.stopped == "done"


@pytest.mark.parametrize("pace", [0.125, 0.1])
def test_with_a_factor_of_one_clients_of_one_pace_are_one_group(pace):
    """All are expected at T_max, and who answers then is in time: after their first tasks nothing is stale."""
    population = ArrayPopulation({"x": torch.zeros(4)}, torch.arange(5), profiles=Profiles(seconds_per_step=pace))
    scheduler = FedCompass(min_steps=2, max_steps=8, latest_time_factor=1.0, versions=20)
    found = rehearse(scheduler, population, lambda task: Cost(steps=task.steps))
    # Four first replies, each alone, and a group of those: stale by 0, 1, 2, 3, and by 3, 2, 1, 0. Then 15 groups.
    assert found.staleness == {0: 2 + 15 * 4, 1: 2, 2: 2, 3: 2}
    assert found.committed == dict.fromkeys(range(4), 17)
    assert list(found.commits) == pytest.approx([8 * pace] * 4 + [8 * pace * n for n in range(2, 18)])


def test_who_answers_at_the_latest_moment_is_in_time():
    """The second needs half as long again as was expected of it: 30 seconds, from 20 on, of which T_max is the end."""

    class TimersFirst(Traced):
        def push(self, when, event):
            self.number += 1
            at = self.number - 10**6 if isinstance(event, Deadline) else self.number
            heapq.heappush(self.queue, (when, at, event))

    def seconds(client, steps, now):
        return steps * (1.5 if client == 1 and now >= 19 else 1.0)

    for kind in (Traced, TimersFirst):
        clock = kind(FedCompass(10, 20, 1.5, versions=4), People(range(2)), seconds)
        clock.run()
        assert [(when, stale) for when, _, stale in clock.commits] == [
            (20, {0: 0}),
            (20, {1: 1}),
            (50, {0: 1, 1: 0}),
            (70, {0: 0, 1: 0}),
        ]


def test_a_group_at_its_latest_moment_is_no_measure_for_a_new_one():
    """asynchrony.md, section 4, "Create": of groups with t < T_max. The first group's is 100 + 1.2 x 100 = 220 s, when
    the second client's first task is over, 2.2 s a step: by it the new group would have 45 steps, 100 / 2.2.
    """

    def seconds(client, steps, now):
        return 220.0 if client == 1 else steps * (1.0 if now < 100 else 3.0)

    clock = played(FedCompass(20, 100, 1.2, versions=0, seconds=1e4), seconds, 2, until=230.0)
    assert clock.made == [(100, 0, "g0", 100, (200, 220)), (220, 1, "g1", 100, pytest.approx((440, 484)))]


def test_the_fastest_of_a_group_may_have_answered_already():
    """asynchrony.md, section 4, "Create": f is the smallest pace of those who are waited for and those who are there.

    At 220 s the first is there, 1 s a step, and the second is waited for until 250, 1.5 s a step. The third, 2.2 s a
    step, cannot join them: (250 + 1 x 100 - 220) / 2.2 are 59 steps.
    """

    def seconds(client, steps, now):
        return 100.0 if client == 0 else 220.0 if client == 2 else 90.0 if now else 150.0

    clock = played(FedCompass(20, 100, 1.5, versions=0, seconds=1e4), seconds, 3, until=230.0)
    assert [(when, client, group, steps) for when, client, group, steps, _ in clock.made] == [
        (100, 0, "g0", 100),
        (150, 1, "g0", 33),
        (220, 2, "g1", 59),
    ]


def test_who_is_first_after_the_timer_does_not_wait_for_who_is_silent():
    """The timer rings first at T_max, nobody is there; then one client is, and the other never will be."""

    class TimersFirst(Watched):
        def push(self, when, event):
            self.number += 1
            at = self.number - 10**6 if isinstance(event, Deadline) else self.number
            heapq.heappush(self.queue, (when, at, event))

    def seconds(client, steps, now):
        return math.inf if client == 1 and now >= 20 else steps * 1.0

    clock = TimersFirst(FedCompass(10, 10, 1.0, versions=4, staleness=Constant()), People(range(2)), seconds)
    clock.run()
    assert clock.commits[-1][0] <= 50
    assert clock.stopped == "done"


def test_who_is_late_before_a_timer_that_is_late_too_leaves_the_others_in_their_group():
    """A server with much to do hears of the end of a group's time after the last reply, which came after it.

    Three clients take 10 s for a task, and the last one 13 s for those it is asked from 30 s on. T_max is 42 s then, of
    which the scheduler hears at 47 s. At 43 s a late reply is the last of a group in which two others wait.
    """

    class TimersLate(Watched):
        def push(self, when, event):
            late = 5.0 if isinstance(event, Deadline) else 0.0
            super().push(when + late, event._replace(now=when + late))

    def seconds(client, steps, now):
        return steps * 1.0 + (3.0 if client == 2 and now >= 30 else 0.0)

    clock = TimersLate(FedCompass(10, 10, 1.2, versions=12, staleness=Constant()), People(range(3)), seconds)
    clock.run()
    assert clock.stopped == "done"
    assert clock.commits[4] == (30.0, 5, {0: 0, 1: 0, 2: 0})
    assert clock.commits[5] == (pytest.approx(47.0), 6, {0: 0, 1: 0, 2: 0})
    assert all(any(client in stale for _, _, stale in clock.commits[6:]) for client in range(3))


def test_clients_that_are_always_late_are_committed_all_the_same():
    """Each task takes twice as long per step as the last one did."""
    tasks = {}

    def seconds(client, steps, now):
        tasks[client] = tasks.get(client, 0) + 1
        return steps * 0.01 * 2.0 ** tasks[client]

    clock = _watched(FedCompass(5, 10, 1.5, versions=9, patience_seconds=1e9), seconds, 3)
    assert clock.stopped == "done"
    assert [len(stale) for _, _, stale in clock.commits[3:]] == [3] * 6


def test_as_many_late_replies_as_there_are_clients_are_a_commit():
    """The only one: each task takes twice as long per step as the last one did, 10 steps of 0.01 s at first."""
    number = iter(range(9))
    clock = _watched(FedCompass(10, 10, 1.5, versions=4), lambda client, steps, now: 0.1 * 2.0 ** next(number), 1)
    assert [(when, stale) for when, _, stale in clock.commits] == [
        *((pytest.approx(0.1 * sum(2.0**m for m in range(n))), {0: 0}) for n in range(1, 5))
    ]


@pytest.mark.parametrize("pace", [0.1, 0.3, 0.7, 1 / 3])
def test_paces_that_are_no_binary_numbers_give_whole_steps(pace):
    clock = _watched(FedCompass(1, 29, versions=200), paced([pace] * 2), 2)
    assert {row[3] for row in clock.made} == {29}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: FedCompass(min_steps=30, max_steps=20),
            r"FedCompass\(min_steps=30, max_steps=20\): min_steps must be at most max_steps, got 30 and 20\.",
        ),
        (
            lambda: FedCompass(latest_time_factor=0.9),
            r"FedCompass\(latest_time_factor=0\.9\): must be at least 1, got 0\.9\. Raise it\.",
        ),
        (lambda: FedCompass(latest_time_factor=math.nan), r"FedCompass\(latest_time_factor=nan\): must be at least 1"),
        (lambda: FedCompass(min_steps=0), r"FedCompass\(min_steps=0\): must be at least 1, got 0\."),
        (lambda: FedCompass(pace_momentum=0.0), r"FedCompass\(pace_momentum=0\.0\): must lie in \(0, 1\], got 0\.0\."),
        (lambda: FedCompass(alpha=-1.0), r"FedCompass\(alpha=-1\.0\): must be above 0, got -1\.0\. 0\.9 is usual\."),
    ],
)
def test_wrong_values_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
