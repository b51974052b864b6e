from __future__ import annotations

import math

import pytest

from partwise.core.schedule import Arrived, Commit, Dispatch, GiveUp, Lost
from partwise.schedulers import FedFix
from toy_clock import Clock, People, paced

# Every other window: right after one of them the average is 0.05 / (1 - 0.95²), and not a half.
SWUNG = 1 / (1 + (1 - 0.95**2) / 0.05 / 2)


def weights(clock: Clock, clients: int) -> list[dict[int, float]]:
    """D_i / p_i of every commit."""
    found = []
    for _, commit in clock.of(Commit):
        scales = commit.scales or (1.0,) * len(commit.replies)
        per_client = clients / len(commit.replies)
        found.append({r.client: s * per_client for r, s in zip(commit.replies, scales, strict=True)})
    return found


def test_what_has_come_is_committed_at_the_end_of_a_window_and_who_sent_it_begins_anew():
    """tau = (1, 0.4), dt = 0.5: D = (1, 0.5), p = 1/2; asynchrony.md, section 3."""
    clock = Clock(FedFix(0.5, versions=6), People(range(2)), paced([1.0, 0.4])).run()
    assert [when for when, _ in clock.of(Commit)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    assert weights(clock, 2) == [{1: 1}, {1: 1, 0: 2}] * 3
    asked = [(when, d.client) for when, d in clock.of(Dispatch)]
    assert [when for when, client in asked if client == 0] == pytest.approx([0, 1, 2])
    assert [when for when, client in asked if client == 1] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])


def test_a_period_as_long_as_the_slowest_client_is_federated_averaging():
    clock = Clock(FedFix(2.0, versions=4), People(range(3)), paced([2.0, 1.0, 1.5])).run()
    assert [{r.client for r in c.replies} for _, c in clock.of(Commit)] == [{0, 1, 2}] * 4
    assert {c.scales for _, c in clock.of(Commit)} == {()}
    assert [n - r.version for n, (_, c) in enumerate(clock.of(Commit)) for r in c.replies] == [0] * 12


@pytest.mark.parametrize(("weighting", "found"), [("identical", 2 / 3), ("measured", 0.5), ("estimated", SWUNG)])
def test_fixed_points(weighting, found):
    """f_i = (x - c_i)² / 2 with c = (0, 1), exact gradients, rate 1e-3; asynchrony.md, section 3, part 6."""
    values, lr = [0.6], 1e-3

    def committed(now, commit):
        step = 0.0
        for reply, scale in zip(commit.replies, commit.scales or (1.0,) * len(commit.replies), strict=True):
            step += scale * -lr * (values[reply.version] - reply.client) / len(commit.replies)
        values.append(values[-1] + step)

    Clock(FedFix(0.5, weighting, versions=6000), People(range(2)), paced([1.0, 0.4]), committed).run()
    assert values[-1] == pytest.approx(found, abs=2e-3)


def test_estimated_weights_come_near_the_windows_that_clients_take():
    clock = Clock(FedFix(1.0, "estimated", versions=400), People(range(3)), paced([0.5, 2.5, 6.5])).run()
    last = {client: d for commit in weights(clock, 3) for client, d in commit.items()}
    assert last == pytest.approx(
        {0: 1, 1: 3, 2: 7}, rel=0.2
    )  # the average swings by its rate of 0.05 times the windows


def test_estimated_weights_are_bounded():
    def seconds(client, steps, now):
        return 0.5 if client == 0 or now > 90 else 95.5

    clock = Clock(FedFix(1.0, "estimated", versions=300), People(range(2)), seconds).run()
    first = next(commit[1] for commit in weights(clock, 2) if 1 in commit)
    assert first == 20.0  # at most 10 N, not 96


def test_windows_without_replies_count_for_estimated_weights():
    """The first reply comes in the third window: r is 1/3."""
    clock = Clock(FedFix(1.0, "estimated", versions=1), People(range(1)), paced([2.5])).run()
    assert [action.scales for _, action in clock.of(Commit)] == [pytest.approx((3.0,))]


def test_a_window_without_replies_commits_nothing_and_costs_nothing():
    clock = Clock(FedFix(1.0, versions=3), People(range(1)), paced([1000.5])).run()
    assert [when for when, _ in clock.of(Commit)] == pytest.approx([1001, 2002, 3003])
    assert weights(clock, 1) == [{0: 1001}] * 3
    assert len(clock.log) < 20


def test_who_was_lost_is_asked_at_the_next_window_and_who_is_away_once_it_is_there():
    def there(client, now):
        return max(now, 3.3) if client == 1 else now

    def seconds(client, steps, now):
        return -0.2 if client == 0 and now == 0 else 0.9

    clock = Clock(FedFix(1.0, versions=5), People(range(2), there), seconds).run()
    assert clock.of(Lost)[0][0] == 0.2
    asked = [(when, d.client) for when, d in clock.of(Dispatch)]
    assert [when for when, client in asked if client == 0][:3] == pytest.approx([0, 1, 2])
    assert [when for when, client in asked if client == 1][:2] == pytest.approx([3.3, 5])


def test_who_is_away_whenever_a_window_ends_takes_part_all_the_same():
    """Client 1 is there for the third quarter of every window."""

    def there(client, now):
        begin = math.floor(now / 4) * 4 + 2
        return now if client == 0 or begin <= now < begin + 1 else begin if now < begin else begin + 4

    clock = Clock(FedFix(4.0, versions=5), People(range(2), there), paced([0.5, 0.5])).run()
    assert [sorted(r.client for r in commit.replies) for _, commit in clock.of(Commit)] == [[0, 1]] * 5
    assert [when for when, asked in clock.of(Dispatch) if asked.client == 1] == pytest.approx([2, 6, 10, 14, 18])


def test_who_does_not_answer_is_given_up_and_asked_again():
    scheduler = FedFix(1.0, versions=0, seconds=50.0, patience_seconds=10.0)
    clock = Clock(scheduler, People(range(2)), lambda c, s, now: math.inf if c and now < 20 else 0.5).run()
    assert [(when, g.clients) for when, g in clock.of(GiveUp)] == [(10, (1,)), (pytest.approx(20), (1,))]
    assert {a.reply.client for _, a in clock.of(Arrived)} == {0, 1}
    assert clock.stopped == "50 seconds are over"
    assert clock.most_timers <= 2  # the window's end and one alarm


def test_it_stops_when_nobody_will_ever_come():
    people = People(range(2), lambda client, now: now if now < 2.5 else math.inf)
    clock = Clock(FedFix(1.0), people, paced([0.5, 0.7])).run()
    assert clock.stopped == "no client is at work, and none will be available any more"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"period_seconds": 0.0},
            r"FedFix\(period_seconds=0\.0\): must be above 0 and finite, got 0\.0\. Half the slowest",
        ),
        ({"period_seconds": math.nan}, r"FedFix\(period_seconds=nan\): must be above 0 and finite"),
        ({"period_seconds": math.inf}, r"FedFix\(period_seconds=inf\): must be above 0 and finite"),
        ({"weighting": "fair"}, r"FedFix\(weighting='fair'\): must be one of measured, estimated, identical\."),
        ({"steps": -1}, r"FedFix\(steps=-1\): must be at least 0"),
    ],
)
def test_wrong_values_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        FedFix(**arguments)
