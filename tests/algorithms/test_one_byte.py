import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from partwise.algorithms import Downlink, FedAvg, Ferret, OneByte
from partwise.algorithms.one_byte import Slopes, from_bytes, to_bytes
from partwise.algorithms.replica import Replica
from partwise.channels import Masked, Plain
from partwise.core import seeded
from partwise.core.algorithm import Task
from partwise.core.codec import encode
from partwise.core.errors import CompositionError
from partwise.core.index import Rows, Whole
from partwise.core.model import MeanSquaredError, Model
from partwise.core.population import Census
from partwise.core.program import SERVER
from partwise.core.schedule import ReplyInfo
from partwise.core.transform import chain
from partwise.core.update import Update
from partwise.programs.star import Star
from partwise.runtimes import Processes, Simulate
from partwise.schedulers import FedBuff, Synchronous
from partwise.schedulers.staleness import Constant
from partwise.transforms import Clip, Halved
from toy_federation import LOCAL, model, play, population, star
from toy_star import Clients, Log


def test_bytes():
    """communication.md §9: the codec."""
    slopes = torch.tensor([1.0, -0.37, 250.0, 3e-4, 0.0, 1e9, -1e9, -5.5])
    codes = to_bytes(slopes)
    assert codes.tolist() == [64, 184, 108, 1, 0, 127, 255, 206]
    expected = [1.0, -0.367879, 244.692, 3.801e-4, 0.0, 2630.69, -2630.69, -5.754603]
    assert from_bytes(codes).tolist() == pytest.approx(expected, rel=1e-4)
    every = torch.arange(256, dtype=torch.uint8)
    kept = [c for c in range(256) if c & 127]
    assert to_bytes(from_bytes(every))[kept].tolist() == kept
    inside = torch.logspace(math.log10(3.9e-4), 3.4, 4001, dtype=torch.float64)
    worst = float(((from_bytes(to_bytes(inside)).double() - inside).abs() / inside).max())
    assert 0.06 < worst <= math.exp(1 / 16) - 1 + 1e-6
    with pytest.raises(ValueError, match=r"Slopes\(\): needs bytes, got torch\.int64\."):
        Slopes(torch.tensor([1]))


class Bowl(nn.Module):
    """Outputs x_j theta_j, so that half the mean squared error to 0 is a quadratic form."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta * x  # (n, 2)


class Overwriting(Bowl):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.theta)


@pytest.mark.parametrize("bowl", [Bowl, Overwriting])
@pytest.mark.parametrize("eps", [1e-2, 0.5, 3.0])
@pytest.mark.parametrize(
    ("is_coded", "expected"), [(False, [1.275, 0.1]), (True, [1.287730, 0.150921])], ids=["float", "one byte"]
)
def test_worked_example(monkeypatch, is_coded, expected, eps, bowl):
    """communication.md §9: A = diag(1, 3), theta = (1, -1), z = (0.5, 2): g = -5.5 for any eps, as a byte -5.754603.

    The loss is (1/4) sum of (x_j theta_j)², so that A is x_j² / 2.
    """
    z = torch.tensor([0.5, 2.0])
    monkeypatch.setattr(seeded, "_drawn", lambda law, size, keys, at: z[at].expand(len(keys), -1))
    of = Model(bowl, MeanSquaredError(), inputs=("x",))
    clients = Clients([{"x": torch.tensor([[2.0, 6.0]]).sqrt(), "y": torch.zeros(1, 2)}])
    run = Star(OneByte(1, lr=0.1, eps=eps, is_coded=is_coded), Synchronous(1, rounds=1), of, clients, Plain(), seed=3)
    states, _ = Simulate().run(run.programs(), clients, Log())
    assert states[SERVER].streams["model"]["theta"].tolist() == pytest.approx(expected, abs=5e-5 if eps < 0.1 else 2e-6)


@pytest.mark.parametrize(("normaliser", "divisor"), [("sqrt", math.sqrt(6)), ("mean", 6.0)])
def test_every_sample_of_every_client_counts(monkeypatch, normaliser, divisor):
    """Two clients with three samples each, all along z = (1,): w = -0.6 (1 + ... + 6) / √6, or / 6."""
    monkeypatch.setattr(seeded, "_drawn", lambda law, size, keys, at: torch.ones(1)[at].expand(len(keys), -1))
    part, found = OneByte(2, samples=3, lr=0.6, normaliser=normaliser, is_coded=False), {"w": torch.zeros(1)}
    slopes = torch.arange(1.0, 7.0).reshape(2, 3)
    part._step_(found, 0, {"slopes": slopes, "count": torch.tensor([2.0])})
    assert found["w"].tolist() == pytest.approx([-0.6 * 21 / divisor])


class Dropping(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.drop, self.out = nn.Dropout(share), nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.drop(x)).squeeze(1)


def test_a_slope_is_measured_without_dropout():
    """communication.md §9: two passes with masks of their own would measure noise."""
    clients = Clients([{"x": torch.ones(6, 4), "y": torch.zeros(6)}])
    part, found = OneByte(1, batch_size=0), []
    for share in (0.0, 0.5):
        of = Model(partial(Dropping, share), MeanSquaredError(), inputs=("x",))
        site = Star(part, Synchronous(1, rounds=1), of, clients, Plain(), seed=3).site(0, 0)
        found.append(part._slope(of.init(3), 0, 0, site, torch.Generator()))
    assert found[0] == found[1] != 0


PARTS = {
    "one byte": OneByte(7, samples=3, lr=0.02),
    "float": OneByte(7, samples=3, lr=0.02, is_coded=False, normaliser="mean"),
    "ferret": Ferret(60, lr=0.3, local=LOCAL),
    "short log": Ferret(60, lr=0.3, local=LOCAL, keep=2),
}


@pytest.mark.parametrize("name", PARTS)
def test_every_replica_is_the_server_s_model_of_its_version(name):
    """Also of those who were away, who made the same steps from the same numbers, to the last bit."""
    of, log = star("fedavg", algorithm=PARTS[name], scheduler=Synchronous(cohort=3, rounds=8)), Log()
    states, reason = Simulate().run(of.programs(), of.population, log)
    assert (reason, log.of("lost")) == ("done", [])
    by_version = {}
    for client in of.population.clients:
        own = states[client].own
        if own.value:
            by_version.setdefault(own.version, []).append(own.value)
    assert max(map(len, by_version.values())) == 3
    for copies in by_version.values():
        assert all(torch.equal(copy[n], copies[0][n]) for copy in copies for n in copy)
    again = star("fedavg", algorithm=PARTS[name], scheduler=Synchronous(cohort=3, rounds=max(by_version)))
    server = Simulate().run(again.programs(), of.population, Log())[0][SERVER].streams["model"]
    assert all(torch.equal(t, by_version[max(by_version)][0][n]) for n, t in server.items())


def late(keep, versions, missed=None):
    """A client that was never asked: what it fetches after so many versions, and its model and the server's."""
    part = OneByte(7, samples=3, lr=0.02, keep=keep)
    of = star("fedavg", algorithm=part, scheduler=Synchronous(cohort=3, rounds=versions))
    streams = Simulate().run(of.programs(), of.population, Log())[0][SERVER].streams
    site, task = of.site(6), Task(900, versions if missed is None else missed, 0, 0, (), 0)
    asked = part.fetch(part.select(task, Replica(), site), task, Replica(), site)
    if missed is not None:
        return asked
    held = {stream: index.gather(streams[stream]) for stream, index in asked.items()}
    values = part.receive(held, site.whole(), task, Replica(), site)["model"]
    return len(encode(held)), len(encode(streams["model"])), values, streams["model"]


def test_a_late_client_makes_the_steps_that_it_missed_instead_of_fetching_the_model():
    told, model_, values, right = late(keep=64, versions=20)
    assert told < 0.7 * model_  # 20 versions of 21 slopes and a count
    assert all(torch.equal(values[n], t) for n, t in right.items())
    told, model_, values, right = late(keep=32, versions=20)  # more than half of what is kept
    assert told > model_
    assert all(torch.equal(values[n], t) for n, t in right.items())


def test_it_fetches_the_model_where_that_is_shorter():
    size = sum(t.nbytes for t in star("fedavg").initial().values())
    row = 7 * 3 + 4
    for missed, shapes in ((-(-size // row) - 1, 0), (-(-size // row), len(star("fedavg").initial()))):
        assert len(late(keep=4096, versions=1, missed=missed)["model"].shapes) == shapes


@pytest.mark.parametrize("name", ["one byte", "ferret"])
def test_processes_end_with_the_same_bits(name):
    here, _ = play(Simulate(), star("fedavg", algorithm=PARTS[name], rounds=3))
    there, _ = play(Processes(), star("fedavg", algorithm=PARTS[name], rounds=3))
    assert here == there


class Traffic(Log):
    def ended(self, world, reason):
        super().ended(world, reason)
        self.bytes = world.traffic.uplink, world.traffic.downlink


def cost(algorithm, rounds=8):
    of, log = star("fedavg", algorithm=algorithm, scheduler=Synchronous(cohort=7, rounds=rounds)), Traffic()
    Simulate().run(of.programs(), of.population, log)
    return log.of("commit")[0]["loss"], log.of("commit")[-1]["loss"], log.bytes


def test_ferret_learns_as_federated_averaging_does():
    start, plain, _ = cost(FedAvg(LOCAL))
    _, many, _ = cost(Ferret(1000, local=LOCAL))
    assert many == pytest.approx(plain, rel=0.1)
    assert plain < 0.97 * start


def test_one_byte_a_sample_crosses_the_link():
    """Uplink: 20 samples instead of one are 19 bytes more a round and client; downlink, seven clients' of them."""
    one, many = (cost(OneByte(7, samples=s, lr=1e-3), rounds=2)[2] for s in (1, 20))
    assert many[0] - one[0] == pytest.approx(2 * 7 * 19, abs=2 * 7 * 8)
    assert many[1] - one[1] <= 7 * 7 * 19 + 2 * 7 * 8


def test_bytes_are_as_good_as_floats():
    losses = []
    for is_coded in (True, False):
        part = OneByte(7, samples=4, lr=0.05, is_coded=is_coded)
        of = star("fedavg", algorithm=part, scheduler=Synchronous(cohort=7, rounds=6))
        states, _ = Simulate().run(of.programs(), of.population, Log())
        losses.append(_loss(of, states[SERVER].streams["model"]))
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] < 0.97 * _loss(of, of.initial())


def _loss(of, params):
    total = [of.model.losses(params, d.batch(torch.arange(len(d)))) for d in map(of.population.data, range(7))]
    return float(torch.cat(total).mean())


def test_ferret_under_masks_is_ferret_in_the_clear():
    part = Ferret(60, lr=0.3, local=LOCAL, weights="uniform")
    chains = {"numbers": chain(Clip(0.5))}
    masked = Masked(limit=0.5, bits=24, max_weight=1, min_contributors=3, binds_model=False)
    found = []
    for channel in (Plain(), masked):
        of, log = star("fedavg", algorithm=part, channel=channel, client_chain=chains, rounds=3), Log()
        states, reason = Simulate().run(of.programs(), of.population, log)
        assert (reason, log.of("lost"), log.of("skipped")) == ("done", [], [])
        found.append(states[SERVER].streams["model"])
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-3) for n in found[0])


def test_the_scale_of_the_release_is_a_third():
    start = star("fedavg").initial()
    moved = []
    for scale in ("unbiased", "release"):
        of = star("fedavg", algorithm=Ferret(60, local=LOCAL, scale=scale), rounds=1)
        model_ = Simulate().run(of.programs(), of.population, Log())[0][SERVER].streams["model"]
        moved.append({n: t - start[n] for n, t in model_.items()})
    assert all(torch.allclose(moved[0][n], 3 * moved[1][n], atol=1e-5) for n in start)


def test_they_refuse(monkeypatch):
    with pytest.raises(
        ValueError, match=r"OneByte\(num_clients=0, .*needs clients, samples, a rate and an eps above 0"
    ):
        OneByte(0)
    with pytest.raises(ValueError, match=r"OneByte\(normaliser='n'\): must be 'sqrt' or 'mean'\."):
        OneByte(1, normaliser="n")
    with pytest.raises(ValueError, match=r"OneByte\(batch_size=-1\): must be at least 0, got -1\. 0 takes all"):
        OneByte(1, batch_size=-1)  # all but one
    with pytest.raises(ValueError, match=r"Ferret\(directions=0, .*needs directions, a rate above 0 and two versions"):
        Ferret(0)
    with pytest.raises(ValueError, match=r"Ferret\(scale='third'\): must be 'unbiased' or 'release'\."):
        Ferret(scale="third")
    few = star("fedavg", algorithm=OneByte(2), rounds=1)
    log = Log()
    Simulate().run(few.programs(), few.population, log)
    assert "must be at least the number of clients, got client" in log.of("lost")[0]["reason"]
    buffer = FedBuff(buffer=2, versions=3, staleness=Constant(), replace="commit", concurrency=4)
    for part in (PARTS["ferret"], OneByte(9)):
        with pytest.raises(CompositionError, match=r"can only add what was begun from the version .*, got FedBuff"):
            Star(part, buffer, model(), population(), Plain(), seed=3)
    with pytest.raises(CompositionError, match=r"Downlink\(OneByte\): brings the model to clients in fewer bytes, got"):
        Downlink(OneByte(9), Halved())
    monkeypatch.setattr(FedBuff, "is_fresh", True)
    late = Star(PARTS["ferret"], buffer, model(), population(), Plain(), seed=3)
    with pytest.raises(CompositionError, match=r"adds numbers of one version's directions, got replies of versions"):
        Simulate().run(late.programs(), late.population, Log())


@pytest.mark.parametrize(("normaliser", "ratio"), [("mean", 4.0), ("sqrt", 2.0)])
def test_a_step_is_divided_by_the_slopes_that_came_not_by_the_population(normaliser, ratio):
    """The same slope, when one client answers and when four do, the others with slopes of zero; of eight."""
    part = OneByte(8, lr=1.0, normaliser=normaliser, is_coded=False)
    moved = []
    for count in (1, 4):
        state = part.init({"w": torch.zeros(5)}, Census(8))
        total = Update(Rows({"slopes": (8, 1)}, {"slopes": torch.tensor([2])}), {"slopes": torch.tensor([[3.0]])})
        replies = [ReplyInfo(i, i, 0, 0, 1) for i in range(count)]
        moved.append(part.commit(state, {"numbers": total}, replies)["model"]["w"])
    assert moved[1].all()
    torch.testing.assert_close(moved[0], ratio * moved[1])


def test_ferret_has_new_directions_in_every_version():
    """The same numbers twice: the second step is another one."""
    part, numbers = Ferret(directions=4), {"w": torch.ones(4)}
    state, at = part.init({"w": torch.zeros(6)}, Census(1)), [torch.zeros(6)]
    for version in (0, 1):
        total = Update(Whole({"w": (4,)}), numbers)
        state = part.commit(state, {"numbers": total}, [ReplyInfo(version, 0, version, 0, 1)])
        at.append(state["model"]["w"].clone())
    assert (at[1] - at[0]).abs().min() > 0
    assert not torch.allclose(at[2] - at[1], at[1] - at[0])
