"""Schedulers that do not wait, in a star on the simulator: what asynchrony.md, section 14, asks of all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch

from partwise.aggregators import Mean
from partwise.algorithms import CrossTier, FedAvg, FedSubAvg, Mixing
from partwise.core.aggregate import sum_updates
from partwise.core.algorithm import Algorithm, Task
from partwise.core.codec import decode, encode
from partwise.core.errors import CompositionError, ProtocolError
from partwise.core.index import Coords
from partwise.core.population import Fate, Profile
from partwise.core.program import SERVER
from partwise.core.schedule import Arrived, Commit, Event, ReplyInfo, Roster, Scheduler
from partwise.core.update import Update
from partwise.local import SGD, LocalTraining
from partwise.programs.star import Star
from partwise.runtimes import Simulate
from partwise.schedulers import FedAsync, FedBuff, FedCompass, FedFix, Overlapped, Synchronous, Tiered
from partwise.schedulers.fedbuff import Buffered
from partwise.schedulers.flights import Flights
from partwise.schedulers.staleness import Constant, Polynomial
from partwise.transforms import ServerSGD
from toy_federation import outcome, population, star
from toy_star import Clients, Log, Saving, full_batch, number_model, parabolas, run, server, star_of

A, B, STEPS, LR = (1.0, 3.0, 0.5, 2.0), (0.0, 4.0, -7.0, 1.5), 3, 0.1
N = len(A)


def one_round(w: float) -> float:
    """Federated averaging with weights 1/N, in plain numbers."""
    ends = []
    for a, b in zip(A, B, strict=True):
        x = w
        for _ in range(STEPS):
            x -= LR * a * (x - b)
        ends.append(x)
    return sum(ends) / N


def rounds(w: float, count: int) -> list[float]:
    found = [w]
    for _ in range(count):
        found.append(one_round(found[-1]))
    return found


def trajectory(scheduler: Scheduler, wrap: Any = lambda inner: inner) -> list[float]:
    """The number after every commit, with four clients of one pace, from 2."""
    people = parabolas(A, B, sizes=(3, 1, 2, 5))
    people.profiles = dict.fromkeys(range(N), Profile(0.7))
    algorithm = wrap(FedAvg(full_batch(STEPS, LR), weights="uniform"))
    _, log = run(
        star_of(algorithm, number_model(2.0), people, scheduler),
        lambda world: float(server(world).streams["model"]["w"]),
    )
    return [2.0, *log.seen]


# 1: equal paces and no losses


def test_synchronous_is_the_oracle():
    assert trajectory(Synchronous(cohort=N, rounds=3)) == pytest.approx(rounds(2.0, 3), abs=1e-9)


def test_fedasync_mixing_the_kth_of_one_version_by_one_over_k_is_a_round():
    scheduler = FedAsync(1.0, Polynomial(1.0), concurrency=N, versions=N)
    assert trajectory(scheduler, Mixing)[-1] == pytest.approx(one_round(2.0), abs=1e-9)


def test_fedbuff_with_all_clients_in_the_buffer_is_federated_averaging():
    scheduler = FedBuff(buffer=N, concurrency=N, staleness=Constant(), replace="commit", versions=3)
    assert trajectory(scheduler) == pytest.approx(rounds(2.0, 3), abs=1e-9)


def test_fedfix_with_the_period_of_the_slowest_is_federated_averaging():
    for weighting in ("measured", "estimated", "identical"):
        scheduler = FedFix(STEPS * 0.7, weighting, versions=3)
        assert trajectory(scheduler) == pytest.approx(rounds(2.0, 3), abs=1e-9)


def test_fedcompass_with_one_group_is_federated_averaging():
    scheduler = FedCompass(1, STEPS, alpha=1.0, staleness=Constant(), versions=N + 4)
    found = trajectory(scheduler)
    assert found[N] == pytest.approx(one_round(2.0), abs=1e-9)  # the first tasks, one commit each
    assert found[N + 1 :] == pytest.approx([found[N + 1], *rounds(found[N + 1], 3)[1:]], abs=1e-9)


def test_one_tier_is_federated_averaging():
    for wrap in (lambda inner: inner, lambda inner: CrossTier(inner, tiers=1)):
        assert trajectory(Tiered(tiers=1, cohort=N, versions=3), wrap) == pytest.approx(rounds(2.0, 3), abs=1e-9)


# On clients that differ, are lost, and hold parts


@dataclass
class Losing(Clients):
    """A task in five is lost, in any stage; of some the server is never told."""

    def fate(self, client: int, task: int) -> Fate:
        stages = ("download", "train", "upload")
        if task % 5 != 3:
            return Fate()
        return Fate(stages[task % 3], 0.5, float("inf") if task % 2 else 0.25)


@dataclass(frozen=True)
class Heard(Scheduler):
    """A scheduler, and the commits that it made."""

    inner: Scheduler
    commits: list[Commit] = field(default_factory=list)

    @property
    def state_types(self) -> tuple[type, ...]:
        return self.inner.state_types

    def init(self, roster: Roster) -> Any:
        return self.inner.init(roster)

    def step(self, state: Any, event: Event, roster: Roster) -> Any:
        state, actions = self.inner.step(state, event, roster)
        self.commits.extend(action for action in actions if isinstance(action, Commit))
        return state, actions


@dataclass(frozen=True)
class Noted(FedSubAvg):
    """Keeps every update, by task."""

    updates: dict[int, Update] = field(default_factory=dict)

    def finish(self, held: Any, trained: Any, index: Any, task: Task, own: Any, site: Any) -> Any:
        updates, own = super().finish(held, trained, index, task, own, site)
        value = {name: t.clone() for name, t in updates["model"].values().items()}
        self.updates[task.id] = Update(index, value, updates["model"].weight)
        return updates, own


SUBMODELS = FedSubAvg("count", LocalTraining(SGD(0.2), batch_size=4, steps=3))
SCHEDULERS: Mapping[str, Scheduler] = {
    "FedAsync": FedAsync(0.6, concurrency=3, versions=20, patience_seconds=3.0),
    "unbiased": FedAsync(0.6, concurrency=7, weighting="unbiased", versions=20, patience_seconds=3.0),
    "FedBuff": FedBuff(buffer=3, concurrency=5, versions=8, patience_seconds=3.0),
    "at the commit": FedBuff(buffer=3, concurrency=5, replace="commit", versions=8, patience_seconds=3.0),
    "FedFix": FedFix(0.4, versions=8, patience_seconds=3.0),
    "estimated": FedFix(0.4, "estimated", versions=8, patience_seconds=3.0),
    "FedCompass": FedCompass(2, 8, versions=15, patience_seconds=3.0),
    "normalized": FedCompass(2, 8, normalize=True, versions=15, patience_seconds=3.0),
    "Tiered": Tiered(tiers=3, cohort=2, versions=12, patience_seconds=3.0),
    "Overlapped": Overlapped(8, deadline_seconds=3.0),
}


def people() -> Clients:
    """Seven clients with tables, up to four times as slow as one another."""
    plain = population()
    return Losing(plain.columns, plain.profiles)


def federation(scheduler: Scheduler, by: str = "holders", algorithm: Algorithm = SUBMODELS) -> Star:
    parts = {"algorithm": algorithm, "scheduler": scheduler, "aggregators": {"model": Mean(by)}}
    return star("fedavg", **parts, population=people())


def played(of: Star, log: Log | None = None, **more: Any) -> tuple[dict[int, bytes], Log]:
    log = Log() if log is None else log
    states, reason = Simulate().run(of.programs(), of.population, log, **more)
    assert reason == "done"
    return outcome(states), log


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_run_replays_to_the_bit_and_goes_on_from_any_moment(name):
    of = federation(SCHEDULERS[name])
    first, log = played(of, Saving())
    second, again = played(federation(SCHEDULERS[name]))
    assert first == second
    assert log.records == again.records
    assert log.of("lost")
    for moment in (len(log.saved) // 3, len(log.saved) - 4):
        entries = {entry: decode(data) for entry, data in log.saved[moment].items()}
        assert played(federation(SCHEDULERS[name]), entries=entries)[0] == first


@pytest.mark.parametrize("name", SCHEDULERS)
def test_staleness_is_the_versions_between_and_scales_follow_it(name):
    heard = Heard(SCHEDULERS[name])
    _, log = played(federation(heard))
    sent = {fields["id"]: fields for fields in log.of("reply")}
    assert len(heard.commits) == len(log.of("commit")) == SCHEDULERS[name].versions
    seen = set()
    for number, (commit, record) in enumerate(zip(heard.commits, log.of("commit"), strict=True)):
        in_order = sorted(commit.replies, key=lambda reply: (reply.client, reply.id))
        stale = [number - sent[reply.id]["version"] for reply in in_order]
        assert record["staleness"] == stale
        assert min(stale) >= 0
        seen |= {reply.id for reply in commit.replies}
        if name == "FedBuff":
            found = [number - reply.version for reply in commit.replies]
            assert commit.scales in ((), pytest.approx([(1 + u) ** -0.5 for u in found]))
    assert len(seen) == sum(len(commit.replies) for commit in heard.commits)  # nobody twice
    assert max(number for record in log.of("commit") for number in record["staleness"]) > 0 or name == "Tiered"


def rows_of(update: Update, name: str) -> list[int]:
    """The rows that an update holds of a parameter."""
    at = update.index.rows[name] if hasattr(update.index, "rows") else None
    return list(range(update.values()[name].shape[0])) if at is None else at.tolist()


def replayed(start: Any, commits: Sequence[Commit], updates: Mapping[int, Update], by: str) -> dict[str, torch.Tensor]:
    """The end of a run, row by row and in plain loops, from its updates and their scales."""
    params = {name: t.double() for name, t in start.items()}
    for commit in commits:
        scales = commit.scales or (1.0,) * len(commit.replies)
        total = {name: torch.zeros_like(t) for name, t in params.items()}
        held = {name: [0.0] * t.shape[0] for name, t in params.items()}
        for reply, scale in zip(commit.replies, scales, strict=True):
            for name, value in updates[reply.id].values().items():
                for at, row in zip(rows_of(updates[reply.id], name), value.double(), strict=True):
                    total[name][at] += scale * row
                    held[name][at] += scale
        mean = sum(scales) / len(scales)
        for name, sums in total.items():
            for at, weight in enumerate(held[name]):
                if weight:
                    params[name][at] += sums[at] / len(scales) if by == "cohort" else sums[at] / weight * mean
    return params


@pytest.mark.parametrize("by", ["cohort", "holders"])
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_what_was_applied_is_the_sum_of_what_was_sent_with_submodels_and_both_normalisers(name, by):
    heard, noted = Heard(SCHEDULERS[name]), Noted("count", SUBMODELS.local)
    of = federation(heard, by, algorithm=noted)
    states, _ = run(of)
    assert len({len(rows_of(u, "table.weight")) for u in noted.updates.values()}) > 3  # parts that differ
    expected = replayed(of.initial(), heard.commits, noted.updates, by)
    for key, found in states[SERVER].streams["model"].items():
        torch.testing.assert_close(found.double(), expected[key], atol=2e-6, rtol=2e-6)


# The worked examples of FedBuff, from the scheduler's scales through the server's reduce


def flushed(arrivals: Sequence[tuple[int, Update]], by: str, params: Mapping[str, torch.Tensor]) -> Update:
    """The step of a buffer of updates of the given staleness."""
    clients = range(len(arrivals))
    scheduler = FedBuff(buffer=len(arrivals), concurrency=len(arrivals), versions=99)

    class Everybody:
        clients, seed = range(len(arrivals)), 0

        def next_available(self, client: int, now: float) -> float:
            return now

    state, actions = Buffered(Flights(flying=dict.fromkeys(clients, 0.0)), version=7), []
    for client, (staleness, _) in enumerate(arrivals):
        info = ReplyInfo(client, client, 7 - staleness, 5, 1)
        state, actions = scheduler.step(state, Arrived(1.0, info, 0.0), Everybody())
    (commit,) = [action for action in actions if isinstance(action, Commit)]
    got = sum_updates([update for _, update in arrivals], params, commit.scales)
    return Mean(by).reduce(got, (), params)[0]


def coords(at: Sequence[int], values: Sequence[float]) -> Update:
    return Update(Coords({"w": (4,)}, {"w": torch.tensor(at)}), {"w": torch.tensor(values, dtype=torch.float64)})


@pytest.mark.parametrize("by", ["cohort", "holders"])
def test_worked_example_of_whole_models(by):
    """(1, 0) fresh and (0, 2) three versions old, K = 2 -> (1/2, 1/2), with either normaliser."""
    params = {"w": torch.zeros(4, dtype=torch.float64)}
    step = flushed([(0, coords(range(4), [1, 0, 0, 0])), (3, coords(range(4), [0, 2, 0, 0]))], by, params)
    assert step.values()["w"].tolist() == [0.5, 0.5, 0, 0]


def test_worked_example_of_server_momentum():
    """Rate 0.7, momentum 0.9, two flushes of (1/2, 1/2) from 0 -> 0.7 (0.5 + 0.95) = 1.015."""
    params = {"w": torch.zeros(4, dtype=torch.float64)}
    step = flushed([(0, coords(range(4), [1, 0, 0, 0])), (3, coords(range(4), [0, 2, 0, 0]))], "cohort", params)
    optimizer = ServerSGD(lr=0.7, momentum=0.9)
    state, w = optimizer.init(params), torch.zeros(4, dtype=torch.float64)
    for _ in range(2):
        moved, state = optimizer.apply(step, state, torch.Generator())
        moved.index.scatter_add_({"w": w}, moved.values())
    assert w.tolist() == pytest.approx([1.015, 1.015, 0, 0])


@pytest.mark.parametrize(("by", "found"), [("cohort", [2, 1, 1.5]), ("holders", [2, 1.5, 4.5])])
def test_worked_example_of_submodels(by, found):
    """Weights 1 and 1/2, sums (4, 2, 3, 0): divided by K = 2, or by (1.5, 1, 0.5) and times the mean of 0.75."""
    params = {"w": torch.zeros(4, dtype=torch.float64)}
    step = flushed([(0, coords([0, 1], [1, 2])), (3, coords([0, 2], [6, 6]))], by, params)
    dense = torch.zeros(4, dtype=torch.float64)
    step.index.scatter_add_({"w": dense}, step.values())
    assert dense.tolist() == pytest.approx([*found, 0])


# Channels that exchange messages


@dataclass(frozen=True)
class OneMessage:
    """The updates are sent when the server asks for them; it sees their sum alone."""

    patience_seconds: float = 50.0
    reveals: ClassVar[str] = "sum"
    limit: ClassVar[float | None] = None
    exchanges: ClassVar[bool] = True

    def server(self, cohort: Sequence[int], params: Any, session: int) -> Any:
        sent = yield dict.fromkeys(cohort, "yours")
        return sum_updates((sent[client] for client in sorted(sent)), params)

    def client(self, update: Update, params: Any, seat: Any) -> Any:
        yield
        yield update


def masked(scheduler: Scheduler, rate: float = math.inf) -> Log:
    clients = parabolas(A, B)
    clients.profiles = {i: Profile(1.0 + 0.1 * i, rate, rate) for i in range(N)}
    algorithm = FedAvg(full_batch(STEPS, LR), weights="uniform")
    of = Star(algorithm=algorithm, scheduler=scheduler, model=number_model(), population=clients, channel=OneMessage())
    return run(of, lambda world: float(server(world).streams["model"]["w"]))[1]


def test_updates_that_are_masked_cannot_be_scaled(monkeypatch):
    """Refused when it is built; and when they come from a scheduler that had said that it scales nothing."""
    said = (
        r"FedBuff\(.*\): scales updates, which OneMessage\(.*\) keeps the server from doing\. Use a scheduler without"
    )
    clients = parabolas(A, B)
    with pytest.raises(CompositionError, match=said):
        Star(FedAvg(), FedBuff(buffer=2, concurrency=4), number_model(), clients, OneMessage())
    for scheduler in (FedAsync(concurrency=4), FedFix(9.0), FedCompass(2, 6)):
        with pytest.raises(CompositionError, match=r"scales updates, which OneMessage"):
            Star(FedAvg(), scheduler, number_model(), clients, OneMessage())
    monkeypatch.setattr(FedBuff, "may_scale", False)
    with pytest.raises(CompositionError, match=said):
        masked(FedBuff(buffer=2, concurrency=4, versions=9))


def test_a_buffer_without_staleness_weights_is_summed_behind_a_mask():
    log = masked(FedBuff(buffer=2, concurrency=4, staleness=Constant(), replace="commit", versions=5))
    assert [fields["replies"] for fields in log.of("commit")] == [2] * 5


@pytest.mark.parametrize("rate", [math.inf, 1e4, 300.0])
def test_rounds_that_overlap_are_those_of_the_rule_however_long_their_exchange_takes(rate):
    """Round t adds to w_t what all make of w_(t - 1), the first two of w_0; no reply is lost over the exchange."""
    log, expected = masked(Overlapped(6, deadline_seconds=200.0), rate), [0.0, one_round(0.0)]
    for start in range(5):
        expected.append(expected[-1] + one_round(expected[start]) - expected[start])
    assert not log.of("lost")
    assert [fields["replies"] for fields in log.of("commit")] == [N] * 6
    assert log.seen == pytest.approx(expected[1:], abs=1e-9)


def test_a_small_federation_runs_with_tiers_and_with_mixing():
    for scheduler, wrap in ((Tiered(tiers=2, cohort=2, versions=6), CrossTier(SUBMODELS, 2)),
                            (FedAsync(concurrency=3, versions=9), Mixing(SUBMODELS))):  # fmt: skip
        of = star("fedavg", algorithm=wrap, scheduler=scheduler, population=people())
        first, log = played(of)
        assert first[SERVER] != encode(None)
        assert len(log.of("commit")) == scheduler.versions


# A commit that comes to nothing is no version


@dataclass(frozen=True)
class Picky:
    """A mean that refuses some of the commits, by their number."""

    refuses: tuple[int, ...]
    inner: Mean = field(default_factory=lambda: Mean("cohort"))
    needs: ClassVar[str] = "sum"

    def init(self, params, census):
        return [0]

    def reduce(self, got, state, params, replies=()):
        state[0] += 1
        if state[0] in self.refuses:
            raise ValueError("Picky(): must like what comes, got something else. Send other updates.")
        return self.inner.reduce(got, (), params, replies)[0], state


@pytest.mark.parametrize(
    "scheduler",
    [
        FedBuff(buffer=2, concurrency=3, versions=9),
        FedBuff(buffer=N, concurrency=N, replace="commit", max_staleness=0, versions=9, seconds=99.0),
        FedAsync(alpha=1.0, concurrency=3, versions=9),
        FedFix(1.1, versions=9),
        FedCompass(1, STEPS, versions=9),
        Tiered(tiers=2, cohort=2, versions=9),
    ],
    ids=repr,
)
def test_a_scheduler_counts_no_version_for_a_commit_that_came_to_nothing(scheduler):
    people = parabolas(A, B, sizes=(3, 1, 2, 5))
    people.profiles = {i: Profile(0.3 + 0.2 * i) for i in range(N)}
    algorithm, picky = FedAvg(full_batch(STEPS, LR), weights="uniform"), {"model": Picky((2, 5, 11, 12))}
    of = star_of(algorithm, number_model(2.0), people, scheduler, aggregators=picky)
    _, log = run(of)
    assert len(log.of("skipped")) == 4  # of which the last two would have been the ninth version
    assert [c["version"] for c in log.of("commit")] == list(range(1, 10))
    if isinstance(scheduler, FedFix | Tiered):
        return  # whose scales do not depend on the version
    for commit in log.of("commit"):
        late = commit["staleness"]
        share = scheduler.alpha * len(late) / N if isinstance(scheduler, FedCompass) else 1.0
        expected = [share * (1 + u) ** -0.5 for u in late]
        assert commit.get("scales", [1.0] * len(late)) == pytest.approx(expected)


@dataclass(frozen=True)
class Breaking(OneMessage):
    """Some exchanges, by how many came before, come to nothing once all have answered."""

    breaks: tuple[int, ...] = ()
    before: list[int] = field(default_factory=lambda: [0])

    def server(self, cohort: Sequence[int], params: Any, session: int) -> Any:
        self.before[0] += 1
        total = yield from OneMessage.server(self, cohort, params, session)
        if self.before[0] - 1 in self.breaks:
            raise ProtocolError("too few are left")
        return total


@pytest.mark.parametrize(
    "scheduler",
    [
        FedBuff(buffer=2, concurrency=4, staleness=Constant(), replace="commit", versions=4),
        FedBuff(buffer=1, concurrency=4, staleness=Constant(), versions=4),
        Tiered(tiers=2, cohort=2, versions=4),
    ],
    ids=repr,
)
def test_a_run_ends_with_its_last_version_where_exchanges_come_to_nothing(scheduler):
    """While one exchange is under way, replies for others come: the last two break, and one while others wait."""
    clients = parabolas(A, B)
    clients.profiles = {i: Profile(1.0 + 0.1 * i, 100.0, 100.0) for i in range(N)}
    algorithm, channel = FedAvg(full_batch(STEPS, LR), weights="uniform"), Breaking(breaks=(2, 4, 5))
    log = Log()
    of = Star(algorithm, scheduler, number_model(), clients, channel)
    _, reason = Simulate().run(of.programs(), clients, log)
    assert [record.kind for record in log.records if record.kind in ("commit", "skipped")] == [
        *("commit", "commit", "skipped", "commit", "skipped", "skipped", "commit")
    ]
    assert [c["version"] for c in log.of("commit")] == [1, 2, 3, 4]
    assert (reason, log.records[-1].kind) == ("done", "commit")


# What an exchange takes is no part of the next round


@dataclass(frozen=True)
class Left(OneMessage):
    """The last client does not answer in the exchange, which is waited for."""

    def client(self, update: Update, params: Any, seat: Any) -> Any:
        yield
        if seat.client < N - 1:
            yield update


def test_an_exchange_takes_nothing_off_the_next_rounds_time():
    """Tasks take 3.9 s at most and 20 are given; every exchange takes 50."""
    clients = parabolas(A, B)
    clients.profiles = {i: Profile(1.0 + 0.1 * i) for i in range(N)}
    algorithm, scheduler = FedAvg(full_batch(STEPS, LR), weights="uniform"), Synchronous(N, 5, deadline_seconds=20.0)
    _, log = run(Star(algorithm, scheduler, number_model(), clients, Left()), lambda world: world.now)
    assert {lost["stage"] for lost in log.of("lost")} == {"exchange"}
    assert log.seen == pytest.approx([53.9 * (t + 1) for t in range(5)])
