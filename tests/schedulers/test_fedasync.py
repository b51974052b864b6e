from __future__ import annotations

import math

import pytest

from partwise.core.schedule import Arrived, Commit, Discard, Dispatch, Lost, ReplyInfo
from partwise.schedulers import FedAsync
from partwise.schedulers.fedasync import Async
from partwise.schedulers.flights import Flights
from partwise.schedulers.staleness import Constant, Hinge, Polynomial
from toy_clock import Clock, People, paced


def mixed(scheduler: FedAsync, staleness: int, version: int = 20) -> float:
    """What a reply of that staleness is scaled by."""
    state = Async(Flights(flying={0: 1.0}), version=version)
    reply = ReplyInfo(0, 0, version - staleness, 5, 7)
    (commit,) = [
        a for a in scheduler.step(state, Arrived(2.0, reply, 1.0), People(range(20)))[1] if isinstance(a, Commit)
    ]
    return commit.scales[0] if commit.scales else 1.0


def test_example_a():
    """Arrivals 1, 2, -1 of staleness 0, 3, 8 from w = 0; asynchrony.md, section 1, part 6."""
    for staleness, alphas, values in (
        (Polynomial(0.5), [0.6, 0.3, 0.2], [0.6, 1.02, 0.616]),
        (Hinge(10, 4), [0.6, 0.6, 0.6 / 41], [0.6, 1.44, 1.4042927]),
    ):
        scheduler = FedAsync(alpha=0.6, staleness=staleness)
        found = [mixed(scheduler, u) for u in (0, 3, 8)]
        assert found == pytest.approx(alphas, rel=1e-12)
        w, seen = 0.0, []
        for alpha, x in zip(found, (1.0, 2.0, -1.0), strict=True):
            w = (1 - alpha) * w + alpha * x
            seen.append(w)
        assert seen == pytest.approx(values, abs=1e-7)


def test_every_reply_is_a_commit_and_another_client_is_asked():
    clock = Clock(FedAsync(concurrency=3, versions=7), People(range(10)), paced([1.0 + c % 4 for c in range(10)])).run()
    assert clock.stopped == "done"
    assert [len(commit.replies) for _, commit in clock.of(Commit)] == [1] * 7
    assert len(clock.of(Dispatch)) == 3 + 6


def test_the_kth_of_replies_from_one_version_counts_one_over_k():
    """So that mixing them gives their mean."""
    scheduler = FedAsync(alpha=1.0, staleness=Polynomial(1.0), concurrency=5, versions=5)
    clock = Clock(scheduler, People(range(5)), paced([1.0] * 5)).run()
    scales = [commit.scales or (1.0,) for _, commit in clock.of(Commit)]
    assert [s[0] for s in scales] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])


def test_alpha_is_halved_at_the_versions_named():
    scheduler = FedAsync(alpha=0.8, staleness=Constant(), halve_at=(3, 5))
    assert [mixed(scheduler, 0, version) for version in (2, 3, 4, 5, 9)] == [0.8, 0.4, 0.4, 0.2, 0.2]


def test_what_is_too_stale_is_discarded():
    scheduler = FedAsync(max_staleness=4, concurrency=1)
    reply = ReplyInfo(0, 0, 5, 5, 7)
    state, actions = scheduler.step(
        Async(Flights(flying={0: 1.0}, alarms={1: 9.0}), version=10), Arrived(2.0, reply, 1.0), People(range(1))
    )
    assert actions == [Discard((reply,)), Dispatch(0)]
    assert state.version == 10
    just = reply._replace(version=6)
    _, actions = scheduler.step(
        Async(Flights(flying={0: 1.0}, alarms={1: 9.0}), version=10), Arrived(2.0, just, 1.0), People(range(1))
    )
    assert [type(action) for action in actions] == [Commit, Dispatch]  # as stale as may be


def test_unbiased_weights_make_up_for_how_often_clients_answer():
    """tau = (1, 0.4), p = 1/2: D = (1.75, 0.7); asynchrony.md, section 3."""
    scheduler = FedAsync(1.0, Constant(), concurrency=2, weighting="unbiased", versions=0, seconds=1000.0)
    clock = Clock(scheduler, People(range(2)), paced([1.0, 0.4])).run()
    commits = [(c.replies[0].client, c.scales[0]) for _, c in clock.of(Commit)[10:]]
    assert dict(commits) == pytest.approx({0: 1.75, 1: 0.7})
    rates = [sum(client == i for client, _ in commits) / len(commits) for i in (0, 1)]
    assert rates == pytest.approx([2 / 7, 5 / 7], abs=1e-3)
    assert [r * d for r, d in zip(rates, (1.75, 0.7), strict=True)] == pytest.approx([0.5, 0.5], abs=1e-3)


@pytest.mark.parametrize(("weighting", "found"), [("identical", 5 / 7), ("unbiased", 0.5)])
def test_fixed_points(weighting, found):
    """f_i = (x - c_i)² / 2 with c = (0, 1), exact gradients, rate 1e-3; asynchrony.md, section 3, part 6."""
    values, lr = [0.6], 1e-3

    def committed(now, commit):
        (reply,) = commit.replies
        change = -lr * (values[reply.version] - reply.client)
        values.append(values[-1] + (commit.scales[0] if commit.scales else 1.0) * change)

    scheduler = FedAsync(1.0, Constant(), concurrency=2, weighting=weighting, versions=6000)
    clock = Clock(scheduler, People(range(2)), paced([1.0, 0.4]), committed)
    clock.run()
    assert values[-1] == pytest.approx(found, abs=2e-3)


def test_a_lost_client_is_replaced():
    clock = Clock(
        FedAsync(concurrency=2, versions=5), People(range(2)), lambda c, s, now: -1.0 if now == 0 else 2.0
    ).run()
    assert len(clock.of(Lost)) == 2
    assert clock.stopped == "done"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"alpha": 0.0}, r"FedAsync\(alpha=0\.0\): must be above 0, got 0\.0\. 0\.6 is usual\."),
        ({"alpha": math.nan}, r"FedAsync\(alpha=nan\): must be above 0"),
        ({"concurrency": 0}, r"FedAsync\(concurrency=0\): must be at least 1"),
        ({"max_staleness": -2}, r"FedAsync\(max_staleness=-2\): must be at least 0"),
        ({"halve_at": (5, 3)}, r"FedAsync\(halve_at=\(5, 3\)\): versions must ascend, got others\. Sort them\."),
        ({"weighting": "fair"}, r"FedAsync\(weighting='fair'\): must be 'identical' or 'unbiased'\."),
        ({"versions": 0}, r"FedAsync\(versions=0, seconds=inf\): must end some time"),
    ],
)
def test_wrong_values_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        FedAsync(**arguments)


def test_a_population_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"FedAsync\(concurrency=10\): must be at most the population, got .* of 9\."):
        FedAsync().init(People(range(9)))
    said = r"FedAsync\(weighting='unbiased', concurrency=3\): weighs clients by how often .* got 9 clients\. Ask all"
    with pytest.raises(ValueError, match=said):
        FedAsync(concurrency=3, weighting="unbiased").init(People(range(9)))
