"""Download chains: clients train from what a compressor left of their part."""

import math
import re
import tracemalloc
from dataclasses import dataclass, field

import pytest
import torch

from partwise.algorithms import Downlink, FedAvg, FedSubAvg, Ferret, HeteroFL, Mixing, OneByte, Scaffold
from partwise.channels import Coded, LowRankSum, Masked
from partwise.core.algorithm import Algorithm
from partwise.core.around import Around
from partwise.core.codec import decode, encode
from partwise.core.errors import CompositionError, ProtocolError
from partwise.core.index import Grid, Rows, Whole
from partwise.core.joined import Joined
from partwise.core.population import Profile
from partwise.core.program import SERVER, Message, Record, Send, Wake
from partwise.core.schedule import Dispatch
from partwise.core.spool import halves
from partwise.core.transform import chain
from partwise.core.update import Update
from partwise.programs.download import opened
from partwise.programs.messages import Fetch, Reply
from partwise.runtimes import Processes, Simulate
from partwise.runtimes.rehearse import costs_of
from partwise.schedulers import Synchronous
from partwise.transforms import Clip, Eden, ErrorFeedback, Halved, LowRank, Quantize, RandomK, TopK
from partwise.transforms.lowrank import Factors
from partwise.transforms.rotation import Turned
from toy_federation import LOCAL, play, population, star
from toy_star import Log

EIGHT = Quantize(8, bucket=16, scale_by="max", rounding="nearest")


@dataclass(frozen=True)
class Watched(Around):
    """Notes the server's model of every version, and what clients got of it."""

    inner: Algorithm
    models: list = field(default_factory=list, compare=False)
    got: list = field(default_factory=list, compare=False)

    def init(self, params, census):
        state = self.inner.init(params, census)
        self.models.append({n: t.clone() for n, t in state["model"].items()})
        return state

    def commit(self, state, totals, replies):
        state = self.inner.commit(state, totals, replies)
        self.models.append({n: t.clone() for n, t in state["model"].items()})
        return state

    def receive(self, held, index, task, own, site):
        self.got.append((task.version, index, {n: t.clone() for n, t in held["model"].items()}))
        return self.inner.receive(held, index, task, own, site)


def nearest(values, bucket=16):
    """Each bucket's values as whole multiples of its largest over 127: a plain loop."""
    flat, out = values.reshape(-1).tolist(), []
    for at in range(0, len(flat), bucket):
        part = flat[at : at + bucket]
        top = max(map(abs, part)) / 127
        out += [math.floor(v / top + 0.5) * top if top else 0.0 for v in part]
    return torch.tensor(out, dtype=torch.float64).reshape(values.shape)


def widths():
    of = population()
    shares = {i: Profile(0.01, width=(1.0, 0.5)[i % 2]) for i in of.clients}
    return type(of)(of.columns, shares)


KINDS = {
    "whole": (Whole, {"algorithm": FedAvg(LOCAL)}),
    "rows": (Rows, {"algorithm": FedSubAvg("count", LOCAL)}),
    "widths": (Grid, {"algorithm": HeteroFL(LOCAL), "population": widths()}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_gets_its_part_to_the_nearest_level(kind):
    expected, parts = KINDS[kind]
    watched = Watched(parts["algorithm"])
    of = star("fedavg", **{**parts, "algorithm": watched, "download_chain": {"model": chain(EIGHT)}})
    _, reason = Simulate().run(of.programs(), of.population, Log())
    assert reason == "done"
    assert any(isinstance(index, expected) for _, index, _ in watched.got)
    apart = 0.0
    for version, index, held in watched.got:
        for name, exact in index.gather(watched.models[version]).items():
            # but for one that lies half-way between two levels, which float32 may round to the other one
            halves = (held[name].double() - nearest(exact)).abs() > 1e-6
            assert int(halves.sum()) <= 1
            apart = max(apart, float((held[name] - exact).abs().max()))
    assert apart > 1e-5


class Traffic(Log):
    def ended(self, world, reason):
        super().ended(world, reason)
        self.bytes = world.traffic.uplink, world.traffic.downlink


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_bytes_come_down_and_the_model_is_as_good(kind):
    found = []
    for chains in ({}, {"model": chain(EIGHT)}):
        of, log = star("fedavg", rounds=12, **KINDS[kind][1], download_chain=chains), Traffic()
        states, reason = Simulate().run(of.programs(), of.population, log)
        assert reason == "done"
        found.append((states[SERVER].streams["model"], log))
    (one, full), (other, less) = found
    # a quarter of the values' bytes; of these small parts headers and tasks are most
    assert less.bytes[1] < (0.85 if kind == "rows" else 0.75) * full.bytes[1]
    assert less.bytes[0] == full.bytes[0]
    assert 0 < max(float((one[n] - other[n]).abs().max()) for n in one) < 0.05
    losses = [log.of("commit")[-1]["loss"] for log in (full, less)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_all_clients_of_a_version_get_the_same_model_by_chance_too():
    watched = Watched(FedAvg(LOCAL))
    of = star("fedavg", algorithm=watched, download_chain={"model": chain(Quantize(4, bucket=16))})
    Simulate().run(of.programs(), of.population, Log())
    first = {}
    for version, _, held in watched.got:
        same = first.setdefault(version, held)
        assert all(torch.equal(t, same[n]) for n, t in held.items())
    assert len(watched.got) > len(first) > 1
    errors = [held["table.weight"] - watched.models[version]["table.weight"] for version, held in first.items()]
    assert len({tuple(e.flatten().tolist()) for e in errors}) == len(errors)  # another draw in every version


@pytest.mark.parametrize("parts", [EIGHT, Quantize(4, bucket=16), Halved(), Eden(4)], ids=repr)
def test_every_runtime_gives_the_same_bits(parts):
    more = {"algorithm": Scaffold(LOCAL), "download_chain": {"model": chain(parts), "control": chain(Halved())}}
    here, _ = play(Simulate(), star("fedavg", **more))
    there, _ = play(Processes(), star("fedavg", **more))
    assert here == there


def test_behind_masks_all_get_the_same_model():
    channel = Masked(limit=0.5, bits=20, max_weight=1, min_contributors=3, binds_model=False)
    more = {"channel": channel, "client_chain": {"model": chain(Clip(0.5))}}
    coarse = {"model": chain(Quantize(4, bucket=16))}
    of, log = star("fedavg", algorithm=FedAvg(LOCAL, "uniform"), **more, download_chain=coarse), Log()
    _, reason = Simulate().run(of.programs(), of.population, log)
    assert (reason, log.of("lost"), log.of("skipped")) == ("done", [], [])
    assert [e["replies"] for e in log.of("commit")] == [4] * 5


def test_masks_that_are_bound_to_another_model_are_refused():
    """Every round of these would be thrown away."""
    bound = Masked(limit=0.5, bits=20, max_weight=1, min_contributors=3)
    algorithm, clip = FedAvg(LOCAL, "uniform"), chain(Clip(0.5))
    more = {"download_chain": {"model": chain(EIGHT)}, "client_chain": {"model": clip}}
    for channel in (bound, LowRankSum(bound), Coded(limit=0.5, bits=20, max_weight=1, min_contributors=3)):
        with pytest.raises(CompositionError, match=r"got a download chain for \['model'\], with which clients have"):
            star("fedavg", algorithm=algorithm, channel=channel, **more)
    shadow, numbers = Downlink(algorithm, EIGHT), Ferret(64, local=LOCAL, weights="uniform")
    for part, stream in ((shadow, "model"), (numbers, "numbers"), (Mixing(shadow), "model")):
        with pytest.raises(CompositionError, match=r"with which clients have another one: no sum would ever be opened"):
            star("fedavg", algorithm=part, channel=bound, client_chain={stream: clip}, scheduler=Synchronous(4, 2))


def test_a_rehearsal_counts_what_comes_down():
    found = []
    for chains in ({}, {"model": chain(EIGHT)}):
        of = star("fedavg", algorithm=FedSubAvg("count", LOCAL), download_chain=chains, scheduler=Synchronous(7, 1))
        cost, log = costs_of(of), Traffic()
        Simulate().run(of.programs(), of.population, log)
        costs = [cost(Dispatch(client)) for client in of.population.clients]
        assert sum(c.task + c.held for c in costs) == pytest.approx(log.bytes[1], rel=0.01)
        found.append(costs)
    assert all(
        less.held < full.held and less._replace(held=full.held) == full for full, less in zip(*found, strict=True)
    )


def test_refusals():
    no_part = re.escape(
        "cannot be in a download chain, whose parts must send every value in fewer bits and keep nothing"
    )
    for part in (ErrorFeedback(EIGHT), TopK(k=3), RandomK(0.5), LowRank(1), Clip(1.0)):
        with pytest.raises(CompositionError, match=no_part):
            star("fedavg", download_chain={"model": chain(part)})
    of = star("fedavg", download_chain={"modell": chain(EIGHT)})
    with pytest.raises(CompositionError, match=r"server's streams \['model'\], got \['modell'\]\. Name one of them"):
        Simulate().run(of.programs(), of.population, Log())
    with pytest.raises(CompositionError, match="to the last bit, got a download chain, which loses some of it"):
        star("fedavg", algorithm=OneByte(7), download_chain={"model": chain(EIGHT)}, scheduler=Synchronous(3, 2))


def test_what_would_unpack_to_more_than_the_parameter_is_refused():
    """A few bytes may stand for a matrix of any size."""
    bomb = Factors(torch.ones(1000, 1), torch.ones(1000, 1), (1000, 1000), "float32")
    rule = re.escape(
        "Held.streams['model']['w']: must be a part of a parameter with 4 values, got 1000000. Use the same"
    )
    with pytest.raises(ProtocolError, match=rule):
        opened({"model": {"w": bomb}}, {"w": torch.zeros(4)})
    with pytest.raises(ProtocolError, match="with 0 values"):
        opened({"model": {"other": bomb}}, {"w": torch.zeros(4)})
    assert opened({"model": {"w": torch.ones(2)}}, {})["model"]["w"].tolist() == [1.0, 1.0]


def sent_to_the_server(value, checked):
    """What a server makes of one reply with this value of `table.weight`; and the memory that it took."""
    of = star("fedavg")
    server = of.programs()[SERVER]
    server.attach(halves(1 << 20, None)[1])
    node, effects = server.step(server.init(SERVER), Message(0.0, SERVER, SERVER, Wake()))
    client, task = next((e.to, e.body) for e in effects if isinstance(e, Send))
    shapes = {"table.weight": tuple(of.like["table.weight"].shape)}
    node, _ = server.step(node, Message(0.0, SERVER, client, Fetch(task.id, Whole(shapes), None)))
    reply = decode(encode(Reply(task.id, 1, 1, 0.0, {"model": Update(Whole(shapes), value)})))
    tracemalloc.start()
    if checked:
        server.check(reply)
    _, effects = server.step(node, Message(0.0, SERVER, client, reply))
    (_, peak), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
    return [e for e in effects if isinstance(e, Record) and e.kind == "refused"], peak


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("form", ["alone", "joined"])
def test_a_reply_that_would_unpack_to_more_than_the_parameter_is_refused_unopened(form, checked, monkeypatch):
    """Three hundred bytes may stand for any number of values: none of them is unpacked."""
    size = 1 << 24
    nothing, some = torch.empty(0, dtype=torch.uint8), torch.zeros(64, dtype=torch.uint8)
    bomb = Turned(nothing, some, torch.ones(1), (size,), size, 1e-6, 1, "float32")

    def unpack(self):
        raise AssertionError("it was unpacked")

    monkeypatch.setattr(Turned, "unpack", unpack)
    value = {"table.weight": bomb} if form == "alone" else Joined(bomb, {"table.weight": (size,)})
    (refused,), peak = sent_to_the_server(value, checked)
    assert f"must have the held shape (60, 5), got ({size},)" in refused.fields["reason"]
    assert peak < 1 << 20
    with pytest.raises(ProtocolError, match="must be a part of a parameter with 4 values"):
        opened({"model": value}, {"table.weight": torch.zeros(4)})
