"""What each client sends by its measured link: the rule in plain numbers, and on the clock with links that change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest

from partwise.algorithms import FedAvg
from partwise.core.codec import decode
from partwise.core.population import Profile
from partwise.core.program import SERVER
from partwise.core.schedule import Arrived, Dispatch, ReplyInfo, Scheduler, Started
from partwise.core.transform import Identity, chain
from partwise.runtimes import Simulate
from partwise.schedulers import ByLink, Overlapped, Synchronous
from partwise.transforms import ErrorFeedback, Halved, Menu, Quantize, TopK
from toy_federation import LOCAL, model, outcome, population, star
from toy_roster import Roster
from toy_star import Clients, Log, Saving

MILLION = 1e6
# Bytes of a million values: as they are, halved, 8 bits and a scale for every 256, 4 bits turned, rank 4, 1 %.
SIZES = (4_000_000, 2_000_000, 1_015_625, 524_292, 32_000, 80_000)


@pytest.mark.parametrize(
    ("megabits", "expected"),
    [(1e9, (0, 10)), (32.0, (0, 10)), (16.0, (1, 10)), (8.0, (3, 10)), (0.64, (4, 10)), (0.1, (4, 26))],
)
def test_the_best_that_the_link_carries_in_time(megabits, expected):
    """communication.md §2 (6): ten steps of a second and a tenth of overhead leave one second.

    At 0.64 Mb/s the largest coordinates fit too, exactly; rank 4 comes first.
    """
    assert ByLink(Synchronous(), SIZES, steps=10).choice(8 / (megabits * MILLION), 1.0) == expected


def test_the_menu_is_asked_in_its_order():
    """With the last two the other way round: at 0.64 Mb/s the larger one fits and comes first, at 0.1 neither does."""
    part = ByLink(Synchronous(), (*SIZES[:4], SIZES[5], SIZES[4]), steps=10)
    assert part.choice(8 / (0.64 * MILLION), 1.0) == (4, 10)
    assert part.choice(8 / (0.1 * MILLION), 1.0) == (5, 26)


def test_it_changes_when_it_has_seen_it_often_enough():
    """Means by hand: seconds a byte, the newest with a share of 0.5; two measurements in a row must agree."""
    part = ByLink(Synchronous(1, rounds=50), (1000, 100, 10), steps=4, overhead=0.5, patience=2, smoothing=0.5)
    roster = Roster(1)
    state, (first, _) = part.step(part.init(roster), Started(0.0), roster)
    assert (first.group, first.steps) == (0, 4)
    mean, at, steps, differs, now = 0.0, 0, 4, 0, 0.0
    rates = [1e3, 1e3, 40.0, 1e3, 1e3, 1e3, 1e3, 30.0, 30.0, 30.0, 1.0, 1.0, 1.0, 1.0, 1e3, 1e3] + [1e3] * 8
    chosen = []
    for id, rate in enumerate(rates):
        size = (1000, 100, 10)[at]
        now += 1.0
        told = ReplyInfo(id, 0, id, steps, 7, uplink_bytes=size, upload_seconds=size / rate, train_seconds=2.0 * steps)
        state, actions = part.step(state, Arrived(now, told, now - 1.0), roster)
        (dispatch,) = [a for a in actions if isinstance(a, Dispatch)]
        mean = 1 / rate if not mean else (mean + 1 / rate) / 2
        fits = [i for i, size in enumerate((1000, 100, 10)) if size * mean <= 0.5 * 4 * 2.0 + 1e-9]
        best = (fits[0], 4) if fits else (2, -int(-10 * mean // (0.5 * 2.0)))
        differs = 0 if best == (at, steps) else differs + 1
        if differs == 2:
            (at, steps), differs = best, 0
        assert (dispatch.group, dispatch.steps) == (at, steps)
        chosen.append(at)
    assert set(chosen) == {0, 1, 2}
    assert chosen[2] == 0  # one bad measurement changes nothing
    assert steps == 4
    assert chosen[-1] == 0


def test_what_took_no_time_says_nothing():
    part, roster = ByLink(Synchronous(1, rounds=5), (1000, 10), steps=4, patience=1), Roster(1)
    state, _ = part.step(part.init(roster), Started(0.0), roster)
    for id in range(3):
        told = ReplyInfo(id, 0, id, 4, 7, uplink_bytes=500, upload_seconds=0.0, train_seconds=0.0)
        state, actions = part.step(state, Arrived(0.0, told, 0.0), roster)
        assert [a.group for a in actions if isinstance(a, Dispatch)] == [0]
    assert ByLink(Synchronous(), (1000, 10), steps=4, max_steps=9).choice(1e9, 1.0) == (1, 9)


# On the clock


@dataclass
class Changing(Clients):
    """Links that change: client, now -> bytes a second up."""

    uplink: Callable[[int, float], float] = lambda _client, _now: 1e9

    def profile(self, client, now=0.0):
        return Profile(0.2 + 0.1 * client, self.uplink(client, now), 1e8)


MENU = Menu((Identity(), Halved(), Quantize(8, scale_by="max", rounding="nearest"), TopK(ratio=0.02)))
SIZES_HERE = MENU.sizes(model().init(3))


def at_rates(uplink, scheduler, **more):
    """A star whose clients take 0.6 s and more for three steps."""
    people = Changing(population(3).columns, {}, uplink)
    adaptive = ByLink(scheduler, SIZES_HERE, steps=3, **more)
    return star(
        "fedavg",
        algorithm=FedAvg(LOCAL),
        scheduler=adaptive,
        population=people,
        client_chain={"model": chain(ErrorFeedback(MENU))},
    )


def played(of, log=None, **more):
    log = log or Log()
    states, reason = Simulate().run(of.programs(), of.population, log, **more)
    assert reason == "done"
    return states, log


def test_each_client_follows_its_own_link():
    """Client 0 has a good link, client 1 a bad one, that of client 2 goes bad after 15 s and gets better after 50."""

    def uplink(client, now):
        if client == 2:
            return 200.0 if 15 < now < 50 else 1e6
        return (1e6, fair)[client]

    budget = 0.1 * 3 * 0.3
    fair = SIZES_HERE[2] / (0.9 * budget)  # 8 bits, and nothing longer
    sent = {0: [], 1: [], 2: []}

    def look(world):
        return {client: world.traffic.clients[client][0] for client in range(3)}

    of = at_rates(uplink, Synchronous(3, rounds=60), overhead=0.1, patience=2)
    states, log = played(of, Log(look))
    for before, after in pairwise(log.seen):
        for client, counts in sent.items():
            counts.append(after[client] - before[client])
    times = [now for now, src, _ in log.rows if src == 2]
    links = states[SERVER].schedule.links
    assert links[0].seconds_per_byte == pytest.approx(1e-6)
    assert links[1].seconds_per_byte == pytest.approx(1 / fair)
    assert links[0].seconds_per_step == pytest.approx(0.2)
    assert links[1].seconds_per_step == pytest.approx(0.3)
    assert links[1].at == 2
    # Bytes of a round: the request, and a reply with what else is in it.
    rest = sent[0][10] - SIZES_HERE[0]
    assert 100 < rest < 400
    assert max(sent[0][1:]) - min(sent[0][1:]) <= 4  # numbers of tasks grow longer
    assert 350 < sent[1][10] - rest < SIZES_HERE[2]  # rows that nobody moved are zeros, which 8 bits say shorter
    assert sent[2][3] == pytest.approx(sent[0][3], abs=4)
    smallest = min(sent[2])
    assert smallest - SIZES_HERE[3] == pytest.approx(rest, abs=64)
    assert sent[2][-1] == pytest.approx(sent[0][-1], abs=4)  # it is as it was
    assert max(times) > 60
    most = max(record["steps"] for record in log.of("reply") if record["client"] == 2)
    assert most > 3  # nothing fits at 200 bytes a second
    assert {record["steps"] for record in log.of("reply") if record["client"] < 2} == {3}


def test_a_reply_that_waits_for_the_next_task_is_measured_from_when_it_left():
    """Transfers are hidden: what the link carries is seen none the less, and training counts for itself."""
    of = at_rates(lambda client, now: 4e3, Overlapped(12), overhead=1.0)
    states, _ = played(of)
    for client, link in states[SERVER].schedule.links.items():
        assert link.seconds_per_byte == pytest.approx(1 / 4e3)
        assert link.seconds_per_step == pytest.approx(0.2 + 0.1 * client)


def test_a_run_goes_on_from_any_moment():
    def uplink(client, now):
        return 3e2 if 6 < now < 20 else 1e5

    def made():
        return at_rates(uplink, Overlapped(14), overhead=0.2, patience=1)

    states, log = played(made(), Saving())
    first = outcome(states)
    assert len({record["steps"] for record in log.of("reply")}) > 1
    for moment in (1, len(log.saved) // 2, len(log.saved) - 3):
        entries = {name: decode(data) for name, data in log.saved[moment].items()}
        assert outcome(played(made(), entries=entries)[0]) == first


def test_it_refuses():
    for make, message in (
        (lambda: ByLink(Synchronous(), (), 3), r"ByLink\(sizes=\(\)\): needs bytes above 0, got others\. Ask Menu"),
        (lambda: ByLink(Synchronous(), (5,), 0), r"ByLink\(steps=0\): must be at least 1, got 0"),
        (lambda: ByLink(Synchronous(), (5,), 1, smoothing=0.0), r"needs a share above 0 and one in \(0, 1\], got othe"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    part, roster = ByLink(Grouped(), (5,), 1), Roster(4)
    with pytest.raises(ValueError, match="needs a scheduler that has no groups of its own, got group 2"):
        part.step(part.init(roster), Started(0.0), roster)


@dataclass(frozen=True)
class Grouped(Scheduler):
    """Asks a client in a group."""

    def init(self, roster):
        return ()

    def step(self, state, event, roster):
        return state, [Dispatch(0, group=2)]
