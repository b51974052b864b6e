"""Masked sums through the real server and clients, in the simulator and between processes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from partwise.algorithms import Deniable, FedAvg, FedSubAvg, Scaffold, Utility
from partwise.channels import Masked, Plain
from partwise.channels.identities import SimulatedIdentities
from partwise.core.errors import CompositionError
from partwise.core.index import Coords
from partwise.core.program import SERVER
from partwise.core.transform import chain
from partwise.core.update import Update
from partwise.experiment.spec import dump, loads
from partwise.runtimes import Processes, Simulate
from partwise.schedulers import FedBuff, Synchronous
from partwise.schedulers.staleness import Constant
from partwise.transforms import (
    Clip,
    Eden,
    ErrorFeedback,
    FedZip,
    Halved,
    LowRank,
    Quantize,
    RandomK,
    Sign,
    Threshold,
    TopK,
)
from toy_federation import LOCAL, star
from toy_star import Log

BOUND = {"model": chain(Clip(0.5))}
COHORT = 6


def run(channel: Any, runtime: Any = None, rounds: int = 3, **more: Any) -> Any:
    parts: dict[str, Any] = {"algorithm": FedSubAvg("count", LOCAL), "client_chain": BOUND}
    parts |= {"scheduler": Synchronous(cohort=COHORT, rounds=rounds)}
    of, log = star("fedavg", channel=channel, **{**parts, **more}), Log()
    states, reason = (runtime or Simulate()).run(of.programs(), of.population, log)
    return states, log, reason


def gap(one: Any, other: Any) -> float:
    a, b = one[SERVER].streams["model"], other[SERVER].streams["model"]
    return max(float((a[n] - b[n]).abs().max()) for n in a)


MASKED = Masked(limit=0.5, bits=20, max_weight=1, min_contributors=3)


@dataclass(frozen=True)
class HeldByThree:
    """In the clear, of each update the coordinates that three of the cohort send."""

    reveals = "each"
    exchanges = True
    limit = None
    patience_seconds = 9.0

    def server(self, cohort: Any, params: Any, session: int) -> Any:
        updates = yield dict.fromkeys(cohort)
        counts = {n: torch.zeros_like(t) for n, t in params.items()}
        for update in updates.values():
            update.index.cover_(counts, 1.0)
        found = []
        for client in sorted(updates):
            index, value = updates[client].index, updates[client].values()
            at = {n: index.coords(n) for n in index.shapes}
            kept = {n: counts[n].reshape(-1)[a] >= 3 for n, a in at.items()}
            index = Coords(index.shapes, {n: a[kept[n]] for n, a in at.items()})
            found.append(Update(index, {n: v.reshape(-1)[kept[n]] for n, v in value.items()}, updates[client].weight))
        return found

    def client(self, update: Any, params: Any, seat: Any) -> Any:
        yield
        yield update


@pytest.mark.parametrize("layout", ["union", "sparse"])
def test_masked_run_is_the_plain_one_but_for_rounding(layout):
    plain, _, _ = run(HeldByThree())
    masked, log, reason = run(Masked(limit=0.5, bits=20, max_weight=1, min_contributors=3, layout=layout))
    assert reason == "done"
    assert log.of("lost") == log.of("skipped") == []
    assert (
        0 < gap(masked, plain) < 3 * 3 * MASKED.step
    )  # three rounds of less than a step, and what training makes of it


def test_numbers_of_clients_do_not_travel():
    _, log, _ = run(MASKED)
    assert {(r["examples"], r["loss"]) for r in log.of("reply")} == {(0, 0.0)}
    _, open_log, _ = run(HeldByThree())
    for commit, other in zip(log.of("commit"), open_log.of("commit"), strict=True):
        assert commit["loss"] == pytest.approx(other["loss"], abs=2e-3)
        assert commit["examples"] > COHORT
        assert commit["withheld"] > 0


def test_result_depends_on_no_key():
    """Keys are drawn anew; rounding is derived: two runs are equal to the last bit, and so are both runtimes."""
    one, _, _ = run(MASKED)
    other, _, _ = run(MASKED)
    there, log, reason = run(MASKED, Processes())
    assert reason == "done"
    assert gap(one, other) == gap(one, there) == 0
    assert log.of("lost") == []


@pytest.mark.parametrize("layout", ["union", "sparse"])
def test_signed_and_sparse_between_processes(layout):
    identities = SimulatedIdentities(1) if layout == "union" else None
    channel = Masked(0.5, 20, 1, layout, 3, identities=identities)
    here, _, _ = run(channel, rounds=2)
    there, log, reason = run(channel, Processes(), rounds=2)
    assert reason == "done"
    assert gap(here, there) == 0
    assert log.of("lost") == log.of("skipped") == []


@dataclass(frozen=True)
class Mute:
    """A masked channel whose clients fall silent: client -> the step from which on, in one session of two."""

    inner: Masked
    steps: tuple[tuple[int, int], ...]
    reveals = "sum"
    exchanges = True

    @property
    def limit(self) -> float:
        return self.inner.limit

    @property
    def patience_seconds(self) -> float:
        return self.inner.patience_seconds

    def server(self, cohort: Any, params: Any, session: int) -> Any:
        return self.inner.server(cohort, params, session)

    def client(self, update: Any, params: Any, seat: Any) -> Any:
        side = self.inner.client(update, params, seat)
        next(side)
        is_mute = "session" not in seat.memory  # in its first exchange
        message = yield
        step = 0
        while True:
            if is_mute and dict(self.steps).get(seat.client, 99) <= step:
                return
            message = yield side.send(message)
            step += 1


@pytest.mark.parametrize("step", range(5))
def test_losses_in_the_star(step):
    """Two of six are lost in the first round; with them four are left, which is enough."""
    _, log, reason = run(Mute(MASKED, ((1, step), (4, step))), scheduler=Synchronous(cohort=7, rounds=2))
    assert reason == "done"
    assert log.of("skipped") == []
    first, second = log.of("commit")
    # Whose words have come is in the sum, whether or not they answer once more.
    assert first["clients"] == ([0, 2, 3, 5, 6] if step < 3 else list(range(7)))
    assert second["clients"] == (list(range(7)) if step else first["clients"])  # who never heard of it is mute again
    assert {(r["client"], r["stage"]) for r in log.of("lost")} == (
        {(1, "exchange"), (4, "exchange")} if step < 4 else set()
    )


def test_a_round_that_fails_is_followed_by_the_next():
    silent = tuple((c, 2) for c in (0, 1, 4, 5))
    states, log, reason = run(Mute(MASKED, silent), scheduler=Synchronous(cohort=7, rounds=3))
    assert reason == "done"
    (skipped,) = log.of("skipped")
    assert "needs 4 clients that sent masked words, got 3. Nothing was opened" in skipped["reason"]
    assert len(log.of("commit")) == 2  # of three rounds
    assert {r["client"]: r["reason"] for r in log.of("lost")} == dict.fromkeys(
        (0, 1, 4, 5), "did not answer, or too late"
    )
    assert all(len(node.kept) <= 1 for client, node in states.items() if client != SERVER)  # the last round's


def test_too_few_for_the_rule():
    """What too few clients are left for is said in the record."""
    _, log, reason = run(
        Mute(Masked(0.5, 20, 1, min_contributors=6), ((2, 0),)), scheduler=Synchronous(cohort=6, rounds=1)
    )
    assert reason == "done"
    assert "needs 6 clients that sent keys, got 5" in log.of("skipped")[0]["reason"]


def test_a_client_remembers_which_rounds_it_was_in():
    states, _, _ = run(MASKED, rounds=2)
    memories = [node.memory["model"] for client, node in states.items() if client != SERVER and node.memory]
    assert memories
    assert all(memory.keys() == {"session", "sealed"} for memory in memories)


def test_two_streams():
    both = {"model": chain(Clip(0.5)), "control": chain(Clip(0.5))}
    channel = Masked(limit=0.5, bits=24, max_weight=100, min_contributors=3)
    plain, _, _ = run(Plain(), algorithm=Scaffold(LOCAL), client_chain=both)
    masked, log, _ = run(channel, algorithm=Scaffold(LOCAL), client_chain=both)
    assert log.of("skipped") == []
    assert gap(masked, plain) < 1e-4


def test_a_buffer_of_several_versions():
    channel = Masked(0.5, 20, 1, min_contributors=3, binds_model=False)
    scheduler = FedBuff(buffer=3, versions=2, staleness=Constant(), replace="commit", concurrency=5)
    _, log, _ = run(channel, scheduler=scheduler)
    assert len(log.of("commit")) == 2


@pytest.mark.parametrize(
    ("chains", "got"),
    [({}, "none"), ({"model": chain(Clip(0.6))}, "0.6"), ({"model": chain(Clip(0.5), Quantize())}, "none")],
    ids=["none", "too large", "not at the end"],
)
def test_a_masked_sum_needs_a_bound(chains, got):
    with pytest.raises(CompositionError, match=rf"Masked\(.*needs a bound of at most 0.5 .*'model', got {got}\. End"):
        run(MASKED, client_chain=chains)


NEAREST = {"scale_by": "max", "rounding": "nearest"}
NOT_LINEAR = [
    Quantize(),
    Eden(1),
    Halved(),
    Threshold(0.01),
    ErrorFeedback(TopK(9)),
    ErrorFeedback(Quantize(4, 128, smooth=5, **NEAREST)),
    ErrorFeedback(Sign()),
    ErrorFeedback(LowRank(1)),
    ErrorFeedback(FedZip(0.1)),
]


@pytest.mark.parametrize("part", NOT_LINEAR, ids=repr)
def test_what_cannot_be_summed_as_it_is_sent_is_refused(part):
    inner = getattr(part, "inner", part)
    rule = rf"{re.escape(repr(inner))}: cannot be summed as it is sent, got Masked\(.*stream 'model'.*Use RandomK"
    with pytest.raises(CompositionError, match=rule):
        run(MASKED, client_chain={"model": chain(part, Clip(0.5))})
    states, log, _ = run(Plain(), rounds=1, client_chain={"model": chain(part, Clip(0.5))})  # rows, compressed
    assert log.of("lost") == []
    start = star("fedavg").initial()
    assert any(not torch.equal(states[SERVER].streams["model"][n], t) for n, t in start.items())


@pytest.mark.parametrize("algorithm", [FedAvg(LOCAL, "uniform"), FedSubAvg("count", LOCAL)], ids=["whole", "rows"])
def test_a_linear_compressor_under_masks_is_the_one_in_the_clear(algorithm):
    """All clients draw the same coordinates, anew in every version."""
    parts = {"client_chain": {"model": chain(RandomK(0.25), Clip(0.5))}, "algorithm": algorithm}
    plain, _, _ = run(HeldByThree(), **parts)
    got, log, reason = run(MASKED, **parts)
    assert (reason, log.of("lost"), log.of("skipped")) == ("done", [], [])
    assert 0 < gap(got, plain) < 3 * 3 * MASKED.step
    one, _, _ = run(MASKED, rounds=1, **parts)
    start = star("fedavg").initial()
    moved = {n: (one[SERVER].streams["model"][n] != t).flatten().tolist() for n, t in start.items()}
    later = {n: (got[SERVER].streams["model"][n] != t).flatten().tolist() for n, t in start.items()}
    assert 0 < sum(moved["out.weight"]) < sum(later["out.weight"]) <= 15


@pytest.mark.parametrize("layout", ["union", "sparse"])
def test_rows_drawn_alike_under_masks_are_those_in_the_clear(layout):
    """One weight a row is masked with it, where single values have one each: the message is shorter."""
    masked = Masked(limit=0.5, bits=20, max_weight=1, min_contributors=3, layout=layout)
    parts = {"client_chain": {"model": chain(RandomK(0.5, by_row=True), Clip(0.5))}}
    plain, _, _ = run(HeldByThree(), **parts)
    got, log, reason = run(masked, **parts)
    assert (reason, log.of("lost"), log.of("skipped")) == ("done", [], [])
    assert 0 < gap(got, plain) < 3 * 3 * masked.step


def test_single_values_are_refused_where_each_sends_its_own_rows():
    """Which row a value is of is seen when it is drawn: every client says so, and the round is without a sum."""
    masked = Masked(limit=0.5, bits=20, max_weight=1, min_contributors=3, layout="sparse")
    _, log, _ = run(masked, rounds=1, client_chain={"model": chain(RandomK(0.5), Clip(0.5))})
    assert len(log.of("lost")) == COHORT
    rule = (
        r"Masked\(layout='sparse'\): sums whole parameters and rows, got single coordinates of \[.*Use layout='union'"
    )
    assert all(
        re.search(rule + r", or draw whole rows: RandomK\(by_row=True\)\.", lost["reason"]) for lost in log.of("lost")
    )


def test_what_clients_report_is_not_for_the_server():
    with pytest.raises(
        CompositionError, match=r"has clients report numbers of their own, which Masked\(.* must not tell"
    ):
        run(MASKED, algorithm=Utility(FedSubAvg("count", LOCAL)))
    run(MASKED, algorithm=Deniable(FedSubAvg("count", LOCAL), randomness="simulated"), rounds=1)


def test_in_a_specification():
    text = """
[workload]
name = "LeafSynthetic"
[algorithm]
name = "FedAvg"
[[client]]
name = "Clip"
max_norm = 0.5
[channel]
name = "Masked"
limit = 0.5
graph = {name = "RandomRegular", lost = 0.2}
"""
    experiment = loads(text)
    assert experiment.channel.graph.lost == 0.2
    assert loads(dump(experiment)).channel == experiment.channel
    signed = loads(
        text.replace(
            'graph = {name = "RandomRegular", lost = 0.2}', 'identities = {name = "KeyFolder", folder = "keys"}'
        )
    )
    assert signed.channel.identities.folder == "keys"


def test_a_refusal_is_recorded_and_does_not_tell_what_is_hidden():
    """Weights by examples, of which one client has more than may be: it is lost, and how many is not said."""
    algorithm = FedSubAvg("count", LOCAL, weighting="size_fixed")
    _, log, reason = run(
        Masked(0.5, 20, 29, min_contributors=3), algorithm=algorithm, scheduler=Synchronous(7, rounds=1)
    )
    assert reason == "done"
    (lost,) = log.of("lost")
    assert (lost["client"], lost["stage"]) == (6, "exchange")
    assert "weights are whole numbers in 0..29, got another" in lost["reason"]
    assert "33" not in lost["reason"]
    assert len(log.of("commit")) == 1
