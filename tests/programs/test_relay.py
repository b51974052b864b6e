"""A relay in the clients' place: the same run, to the last bit where the executor adds in order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from partwise.aggregators import Krum
from partwise.algorithms import (
    FedAvg,
    FederatedDropout,
    FedHyper,
    FedProx,
    FedSubAvg,
    HeteroFL,
    Scaffold,
    Utility,
)
from partwise.core.errors import DataError
from partwise.core.index import Whole
from partwise.core.plan import LocalPlan
from partwise.core.program import RELAY, SERVER
from partwise.core.transform import chain
from partwise.local import SGD, LocalTraining
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Auto, Plain, Pool, Stacked
from partwise.schedulers import FedBuff, Synchronous
from partwise.transforms import Clip
from toy_federation import LOCAL, population, star
from toy_star import Log, Saving

RELAYED = {
    "FedAvg": FedAvg(LOCAL),
    "FedProx": FedProx(0.3, LOCAL),
    "FedSubAvg": FedSubAvg("count", LOCAL),
    "FedSubAvg capped": FedSubAvg("capped", LOCAL),
    "epochs": FedAvg(LocalTraining(SGD(0.2, momentum=0.5), batch_size=5, epochs=2)),
    "HeteroFL": HeteroFL(local=LOCAL),
    "FederatedDropout": FederatedDropout(0.5, LOCAL),
}


def instant() -> Any:
    people = population()
    people.profiles = {}
    return people


@dataclass
class Still(Log):
    """A log that also keeps the traffic at its end."""

    traffic: Any = None

    def ended(self, world: Any, reason: str) -> None:
        self.traffic = world.traffic


@dataclass(frozen=True)
class Bad(FedAvg):
    """Federated averaging at whose clients something goes wrong."""

    how: Mapping[int, str] = field(default_factory=dict)

    def select(self, task, own, site):
        if self.how.get(site.client) == "select":
            raise DataError("a client that cannot choose")
        if self.how.get(site.client) == "shape":
            return Whole({name: (*shape, 1) for name, shape in site.whole().shapes.items()})
        return site.whole()

    def plan(self, held, index, task, own, site) -> LocalPlan:
        if self.how.get(site.client) == "plan":
            raise ValueError("a client that cannot plan")
        lr = {"nan": math.nan, "train": 0.1}.get(self.how.get(site.client, ""), 0.2)
        loss = _raising if self.how.get(site.client) == "train" else None
        return LocalTraining(SGD(abs(lr) if lr == lr else 1e30), batch_size=4, steps=3).plan(site, task, loss=loss)


def _raising(params, batch, rng):
    raise RuntimeError("a client that cannot train")


def play(of: Any, *, relays: bool, executor: Any = None, log: Any = None, **more: Any) -> tuple[Any, Any, str]:
    log = Still() if log is None else log
    programs = of.programs(relays=relays)
    states, reason = Simulate(executor or Plain()).run(programs, of.population, log, **more)
    return states[SERVER], log, reason


def replies(log: Log) -> list[dict[str, Any]]:
    """The replies, one by one, however they were recorded."""
    names = ("client", "id", "steps", "examples", "loss", "began", "fetched", "trained", "staleness")
    found = []
    for record in log.records:
        if record.kind == "reply":
            found.append({name: record.fields[name] for name in names})
        elif record.kind == "replies":
            rows = zip(*(record.fields[name] for name in names), strict=True)
            found += [dict(zip(names, row, strict=True)) for row in rows]
    return found


def is_equal(one: Any, other: Any) -> bool:
    params = one.streams["model"]
    return all(torch.equal(params[name], other.streams["model"][name]) for name in params)


@pytest.mark.parametrize("name", RELAYED)
def test_the_run_is_the_same_to_the_last_bit(name):
    def make():
        return star("fedavg", algorithm=RELAYED[name], population=instant())

    assert make().is_relayable
    one, apart, _ = play(make(), relays=False)
    other, together, _ = play(make(), relays=True)
    assert is_equal(one, other)
    assert one.version == other.version == 5
    assert replies(apart) == replies(together)
    assert apart.of("commit") == together.of("commit")
    assert dict(apart.traffic.clients) == dict(together.traffic.clients)
    totals = [(t.uplink, t.downlink, t.messages) for t in (apart.traffic, together.traffic)]
    assert totals[0] == totals[1]
    assert {row[1] for row in together.rows} == {SERVER, RELAY}


@pytest.mark.parametrize("executor", [Stacked(), Pool(workers=2), Auto(candidates=[Plain(), Stacked()])])
@pytest.mark.parametrize("name", ["FedAvg", "FedSubAvg"])
def test_every_executor_comes_to_the_same(name, executor):
    runs = [
        play(star("fedavg", algorithm=RELAYED[name], population=instant()), relays=True, executor=e)[0]
        for e in (Plain(), executor)
    ]
    for key, value in runs[0].streams["model"].items():
        torch.testing.assert_close(runs[1].streams["model"][key], value, rtol=1e-4, atol=1e-5)
    if isinstance(executor, Pool):
        assert is_equal(*runs)


@pytest.mark.parametrize("how", ["select", "plan", "train", "nan"])
@pytest.mark.parametrize("executor", [Plain(), Stacked()])
def test_who_fails_is_named_and_the_others_count(how, executor):
    def make():
        return star("fedavg", algorithm=Bad(LOCAL, how={2: how, 5: how}), population=instant())

    one, apart, _ = play(make(), relays=False, executor=executor)
    other, together, _ = play(make(), relays=True, executor=executor)
    for key, value in one.streams["model"].items():
        torch.testing.assert_close(other.streams["model"][key], value, rtol=1e-5, atol=1e-6)
    kind = "refused" if how == "nan" else "lost"
    named = [[(f["client"], f.get("stage"), f["reason"]) for f in log.of(kind)] for log in (apart, together)]
    assert named[0] == named[1]
    assert {client for client, _, _ in named[0]} == {2, 5}
    assert [r["client"] for r in replies(apart)] == [r["client"] for r in replies(together)]
    assert dict(apart.traffic.clients) == dict(together.traffic.clients)
    assert apart.traffic.messages == together.traffic.messages


def test_an_index_of_another_model_is_not_committed():
    """Without a relay the server refuses what comes back; a relay does not have it trained."""
    of = star("fedavg", algorithm=Bad(LOCAL, how={2: "shape"}), population=instant())
    _, log, reason = play(of, relays=True)
    lost = log.of("lost")
    assert {(fields["client"], fields["stage"]) for fields in lost} == {(2, "select")}
    assert "the index is for shape" in lost[0]["reason"]
    assert reason == "done"


def test_the_record_has_the_order_of_the_clients():
    """Whoever counts how many were refused in a row counts the same."""

    def order(relays):
        some, scheduler = Bad(LOCAL, how={1: "nan", 4: "nan"}), Synchronous(cohort=7, rounds=2)
        of = star("fedavg", algorithm=some, population=instant(), scheduler=scheduler)
        log, found = play(of, relays=relays)[1], []
        for record in log.records:
            clients = record.fields.get("client", ())
            each = clients if isinstance(clients, list) else [clients]
            found += [(record.kind.replace("replies", "reply"), client) for client in each]
        return found

    assert order(relays=True) == order(relays=False)


def test_a_refused_client_stops_the_run_that_wants_it_so():
    everybody = Bad(LOCAL, how=dict.fromkeys(range(7), "nan"))
    of = star("fedavg", algorithm=everybody, population=instant(), on_refused="stop")
    server, log, reason = play(of, relays=True)
    assert reason.startswith("client ")
    assert "was refused: stream 'model' must be finite" in reason
    assert len(log.of("refused")) == 1
    assert server.version == 0


def test_a_round_with_too_few_replies_commits_nothing():
    scheduler = Synchronous(cohort=7, rounds=3, min_replies=6)
    of = star("fedavg", algorithm=Bad(LOCAL, how={2: "plan", 5: "train"}), population=instant(), scheduler=scheduler)
    server, log, reason = play(of, relays=True)
    assert server.version == 0
    assert not log.of("commit")
    assert not server.inbox
    assert not server.sums
    assert not server.added
    assert "3 rounds in a row committed nothing" in reason


OTHERWISE = {
    "takes time": {"population": population()},
    "keeps something": {"algorithm": Scaffold(LOCAL)},
    "tells something": {"algorithm": Utility(FedAvg(LOCAL))},
    "a client chain": {"client_chain": {"model": chain(Clip(0.5))}},
    "each update": {"aggregators": {"model": Krum(f=0)}},
    "over-selection": {"scheduler": Synchronous(cohort=4, rounds=5, extra=1)},
    "a buffer": {"scheduler": FedBuff(buffer=2, concurrency=4, versions=5)},
    "scaled updates": {"algorithm": FederatedDropout(0.5, LOCAL, estimator="heat")},
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_clients_speak_for_themselves(what):
    of = star("fedavg", **{"algorithm": FedAvg(LOCAL), "population": instant(), **OTHERWISE[what]})
    assert not of.is_relayable
    _, log, _ = play(of, relays=True)
    assert RELAY not in {row[1] for row in log.rows}


def test_a_wrapper_is_relayed_where_it_leaves_the_clients_alone():
    assert not star("fedavg", algorithm=FedHyper(FedAvg(LOCAL)), population=instant()).is_relayable
    assert star("fedavg", algorithm=FedAvg(LOCAL), population=instant()).is_relayable


def test_a_run_goes_on_from_every_moment_it_can_be_saved_at():
    from partwise.core.codec import decode

    def make():
        return star("fedavg", algorithm=FedSubAvg("count", LOCAL), population=instant())

    log = Saving()
    whole, _, _ = play(make(), relays=True, log=log)
    assert len(log.saved) >= 5
    for saved in log.saved:
        entries = {name: decode(data) for name, data in saved.items()}
        again, _, _ = play(make(), relays=True, entries=entries)
        assert is_equal(whole, again)
        assert again.version == 5
