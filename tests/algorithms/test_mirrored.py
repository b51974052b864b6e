"""Two-way compression before the server's optimiser: communication.md §5."""

from dataclasses import dataclass, field
from functools import partial

import pytest
import torch

from partwise.algorithms import LANS, MMPSGD, AdaptiveClip, Downlink, FedAvg, FedHyper, FedSubAvg, Mirrored, Scaffold
from partwise.core.algorithm import Algorithm
from partwise.core.around import Around
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.population import Census, Profile
from partwise.core.program import SERVER
from partwise.core.transform import Identity, chain
from partwise.core.update import Update
from partwise.runtimes import Processes, Simulate
from partwise.schedulers import Synchronous
from partwise.transforms import ErrorFeedback, Quantize, Sign, TopK
from toy_downloads import EIGHT, INSIDE, SCHEDULERS, Traffic, trained
from toy_federation import LOCAL, play, population, star
from toy_slopes import linear, states_after, steps
from toy_star import Clients, Log


def test_worked_example_and_conservation():
    """Changes (3, -1) and (1, 1): p is (1, -1), then (2, 2); sums of p, and of what all owe, are those of changes.

    A 0 counts as positive, so that the example's gradients stand here for changes.
    """
    of = linear([[(-3.0, 1.0)], [(-1.0, -1.0)]], (0.0, 0.0))
    part, sent = Mirrored(FedAvg(steps(1.0), "uniform"), Sign()), {"model": chain(ErrorFeedback(Sign()))}
    found = [states_after(of, part, n, client_chain=sent) for n in (1, 2, 7)]
    models, owed = ([states[SERVER].streams[s]["theta"].tolist() for states in found] for s in ("model", "owed"))
    assert models[:2] == [[1.0, -1.0], [3.0, 1.0]]
    assert owed[:2] == [[0.5, 0.5], [0.0, 0.0]]
    kept = [found[2][i].chains["model"][0].value.get("theta", torch.zeros(2)) for i in (0, 1)]
    total = torch.tensor(models[2]) + torch.tensor(owed[2]) + sum(kept) / 2
    assert total.tolist() == pytest.approx([14.0, 0.0], abs=1e-12)


def test_the_optimiser_sees_what_was_sent():
    """By hand: p of x = (3, 4) and D = (-2, 2) is D; of D = (-4, 2) it is (-3, 3), whatever LANS makes of that."""
    for d, p in (((-2.0, 2.0), (-2.0, 2.0)), ((-4.0, 2.0), (-3.0, 3.0))):
        part, inner = Mirrored(LANS(FedAvg(), lr=0.1), Sign()), LANS(FedAvg(), lr=0.1)
        x = {"w": torch.tensor([3.0, 4.0])}
        state = part.commit(part.init(x, Census(0)), {"model": Update(Whole({"w": (2,)}), {"w": torch.tensor(d)})}, ())
        other = inner.commit(
            inner.init(x, Census(0)), {"model": Update(Whole({"w": (2,)}), {"w": torch.tensor(p)})}, ()
        )
        assert all(torch.equal(state[s]["w"], other[s]["w"]) for s in ("model", "momentum", "squares"))
        assert state["owed"]["w"].tolist() == [a - b for a, b in zip(d, p, strict=True)]


def test_of_what_is_right_on_average_nothing_is_owed():
    part = Mirrored(FedAvg(), Quantize(4, bucket=4))
    state = part.init({"w": torch.zeros(8)}, Census(0))
    total = Update(Whole({"w": (8,)}), {"w": torch.randn(8, generator=torch.Generator().manual_seed(1))})
    state = part.commit(state, {"model": total}, ())
    assert not state["owed"]["w"].any()
    assert not torch.equal(state["model"]["w"], total.values()["w"])


@pytest.mark.parametrize("k", [1, 3])
def test_coordinates_that_a_message_leaves_out_are_owed(k):
    """Of changes (3, -1, 0.5, 2) and (0, -2, 0, 0.5): the k largest of what is owed, in both parameters."""
    part = Mirrored(FedAvg(), TopK(k=k, scope="layer"))
    state = part.init({"a": torch.zeros(2, 2), "b": torch.zeros(4)}, Census(0))
    expected = {
        1: [((3.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.5, 2.0)), ((3.0, -3.0, 0.0, 0.0), (0.0, 0.0, 0.5, 2.5))],
        3: [((3.0, -1.0, 0.0, 2.0), (0.0, 0.0, 0.5, 0.0)), ((3.0, -3.0, 0.5, 2.5), (0.0, 0.0, 0.0, 0.0))],
    }
    for change, (model, owed) in zip(((3.0, -1.0, 0.5, 2.0), (0.0, -2.0, 0.0, 0.5)), expected[k], strict=True):
        value = {"a": torch.tensor(change).reshape(2, 2), "b": torch.tensor(change)}
        state = part.commit(state, {"model": Update(Whole({"a": (2, 2), "b": (4,)}), value)}, ())
        for name in ("a", "b"):
            assert state["model"][name].flatten().tolist() == list(model)
            assert state["owed"][name].flatten().tolist() == list(owed)


def test_little_by_little_is_owed_in_half_precision_too():
    """One number of two is sent: the first, ±1/2, until the second, of 1/1024 a round, owes more after 512 rounds."""
    dtype = torch.bfloat16
    part, index = Mirrored(FedAvg(), TopK(k=1)), Whole({"w": (2,)})
    state = part.init({"w": torch.zeros(2, dtype=dtype)}, Census(0))
    for at in range(520):
        change = torch.tensor([0.5 * (-1) ** at, 2.0**-10], dtype=dtype)
        state = part.commit(state, {"model": Update(index, {"w": change})}, ())
    assert float(state["model"]["w"][1]) >= 0.5
    assert float(state["model"]["w"][1] + state["owed"]["w"][1]) == pytest.approx(520 / 1024, abs=1e-3)


@dataclass(frozen=True)
class Watched(Around):
    """Notes the server's streams of every version."""

    inner: Algorithm
    seen: list = field(default_factory=list, compare=False)

    def _noted(self, state):
        self.seen.append({s: {n: t.clone() for n, t in values.items()} for s, values in state.items()})
        return state

    def init(self, params, census):
        return self._noted(self.inner.init(params, census))

    def commit(self, state, totals, replies):
        return self._noted(self.inner.commit(state, totals, replies))


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("keep", [2, 4, 16])
def test_every_client_holds_what_the_server_had_at_its_version(name, scheduler, keep):
    watched = Watched(Mirrored(INSIDE[name], EIGHT, keep))
    of, log = star("fedavg", algorithm=watched, scheduler=scheduler), Log()
    states, reason = Simulate().run(of.programs(), of.population, log)
    assert (reason, log.of("lost")) == ("done", [])
    versions = set()
    for client in of.population.clients:
        own = states[client].own if client in states else None
        if own is not None and own.streams:
            versions.add(own.version)
            then = watched.seen[own.version]
            assert own.streams.keys() == then.keys() - {"owed", "log"}
            assert all(torch.equal(t, then[s][n]) for s, values in own.streams.items() for n, t in values.items())
    assert len(versions) > 1
    assert any(t.any() for t in states[SERVER].streams["owed"].values())


@pytest.mark.parametrize("name", INSIDE)
def test_without_loss_it_is_the_algorithm_inside(name):
    one, other = trained(INSIDE[name]), trained(Mirrored(INSIDE[name], Identity()))
    assert all(torch.equal(t, other[s][n]) for s, values in one.items() for n, t in values.items())


@pytest.mark.parametrize("around", [partial(FedHyper, gamma=1.0), partial(AdaptiveClip, clip_norm=64.0)])
def test_others_around_it_bring_their_own_streams_to_clients(around):
    """A bound of 1 leaves the rate alone, and no update is longer than 64: a power of two, which rounds nothing."""
    inner = FedAvg(LOCAL, weights="uniform")
    one, other = trained(Mirrored(inner, Identity())), trained(around(Mirrored(inner, Identity())))
    assert all(torch.allclose(t, other["model"][n], atol=1e-5) for n, t in one["model"].items())


@pytest.mark.parametrize("inner", [MMPSGD(1, LOCAL), FedHyper(FedAvg(LOCAL), client_rate=True)])
def test_a_commit_that_looks_at_the_replies_is_refused(inner):
    """Clients make it too, and do not know them: the predictors of `MMPSGD` would never move, and K would be 0."""
    one_block = {"population": Clients(population().columns, {i: Profile(0.1, block=0) for i in range(7)})}
    of = star("fedavg", algorithm=Mirrored(inner, Sign()), **one_block)
    with pytest.raises(CompositionError, match=r"Mirrored\(.*: commits are made of what was summed alone, got an"):
        Simulate().run(of.programs(), of.population, Log())


@pytest.mark.parametrize("settings", [{}, {"client_rate": True, "divide_by": "steps"}])
def test_rates_that_need_no_replies_are_mirrored(settings):
    trained(Mirrored(FedHyper(FedAvg(LOCAL), **settings), Sign()))


def test_fewer_bytes_come_down():
    found = []
    for algorithm in (INSIDE["lans"], Mirrored(INSIDE["lans"], Sign())):
        of, log = star("fedavg", algorithm=algorithm, scheduler=Synchronous(cohort=7, rounds=12)), Traffic()
        Simulate().run(of.programs(), of.population, log)
        found.append(log.bytes)
    assert found[1][1] < 0.5 * found[0][1]


@pytest.mark.parametrize("name", INSIDE)
def test_every_runtime_gives_the_same_bits(name):
    more = {"algorithm": Mirrored(INSIDE[name], Sign()), "client_chain": {"model": chain(ErrorFeedback(Sign()))}}
    here, _ = play(Simulate(), star("fedavg", **more))
    there, _ = play(Processes(), star("fedavg", **more))
    assert here == there


def test_refusals():
    with pytest.raises(ValueError, match=r"Mirrored\(keep=1\): must be at least 2, got 1\. 16 is usual\."):
        Mirrored(FedAvg(), Sign(), keep=1)
    with pytest.raises(CompositionError, match=r"must sum the stream 'model' alone, got \['control', 'model'\]"):
        Mirrored(Scaffold(), Sign())
    for part in (ErrorFeedback(Sign()), TopK(k=3)):
        with pytest.raises(CompositionError, match="Mirrored"):
            trained(Mirrored(FedAvg(LOCAL), part))
    for wrapper in (Mirrored, Downlink):
        with pytest.raises(
            CompositionError, match=rf"Mirrored\({wrapper.__name__}\): brings the model to clients in few"
        ):
            Mirrored(wrapper(FedAvg(LOCAL), Sign()), Sign())
    of, log = star("fedavg", algorithm=Mirrored(FedSubAvg("count", LOCAL), Sign())), Log()
    Simulate().run(of.programs(), of.population, log)
    assert all("all clients must hold the whole model" in e["reason"] for e in log.of("lost"))
    assert log.of("lost")
    with pytest.raises(CompositionError, match="to the last bit, got a download chain"):
        star("fedavg", algorithm=Mirrored(FedAvg(LOCAL), Sign()), download_chain={"model": chain(EIGHT)})
