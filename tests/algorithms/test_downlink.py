from dataclasses import dataclass, field

import pytest
import torch

from partwise.aggregators import MajorityVote
from partwise.algorithms import (
    Downlink,
    FedAvg,
    FedRank,
    FedSubAvg,
    Ferret,
    HeteroFL,
    Mirrored,
    SignMomentum,
    Utility,
)
from partwise.core.algorithm import Algorithm, Task
from partwise.core.around import Around
from partwise.core.codec import encode
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.population import Census
from partwise.core.program import SERVER
from partwise.core.transform import Identity, chain
from partwise.core.update import Update
from partwise.runtimes import Processes, Simulate
from partwise.schedulers import Synchronous
from partwise.transforms import ErrorFeedback, Menu, Quantize, RandomK, Scale, Sign, Threshold, TopK
from toy_downloads import EIGHT, INSIDE, SCHEDULERS, Traffic, trained
from toy_federation import LOCAL, play, star
from toy_slopes import linear, states_after, steps
from toy_star import Log


def test_it_is_two_way_error_feedback():
    """communication.md §5: what the server sends, and what it owes, of the means of two workers' scaled signs."""
    part, params = Downlink(FedAvg(), Sign()), {"w": torch.zeros(2)}
    state = part.init(params, Census(0))
    expected = [((1.5, -0.5), (1.0, -1.0), (0.5, 0.5)), ((1.5, 1.5), (3.0, 1.0), (0.0, 0.0))]
    for delta, shadow, owed in expected:
        total = Update(Whole({"w": (2,)}), {"w": torch.tensor(delta)}, 2.0)
        state = part.commit(state, {"model": total}, ())
        assert state["shadow"]["w"].tolist() == list(shadow)
        assert (state["model"]["w"] - state["shadow"]["w"]).tolist() == list(owed)
    assert int(state["steps"]["version"]) == 2


def test_a_tied_vote_is_more_than_a_bit():
    """Of two clients, (+, -) and (+, +), one coordinate stays: signs down get it wrong by what is then in the next."""
    of = linear([[(-1.0, 1.0)], [(-1.0, -1.0)]], (0.0, 0.0))
    part = Downlink(FedAvg(steps(0.1), "uniform"), Sign())
    chains = {"client_chain": {"model": Sign(scaled=False)}, "server_chain": {"model": Scale(0.5)}}
    streams = states_after(of, part, 1, aggregators={"model": MajorityVote()}, **chains)[SERVER].streams
    assert streams["model"]["theta"].tolist() == [0.5, 0.0]
    assert streams["shadow"]["theta"].tolist() == [0.25, 0.25]
    streams = states_after(of, part, 2, aggregators={"model": MajorityVote()}, **chains)[SERVER].streams
    assert streams["model"]["theta"].tolist() == [1.0, 0.0]
    assert streams["shadow"]["theta"].tolist() == [0.75, -0.25]  # 0.25 + 0.5 and 0.25 - 0.5, the mean of 0.75 and 0.25


@pytest.mark.parametrize("name", ["vote", "sign momentum"])
def test_what_moves_all_coordinates_alike_comes_down_in_one_bit_without_loss(name):
    """communication.md §7 and §15.3: the sign of each coordinate, and once how far all move, is the whole step."""
    rng, like = torch.Generator().manual_seed(5), {"w": torch.zeros(1000)}
    inside = FedAvg() if name == "vote" else SignMomentum(FedAvg(), gamma=0.5, lr=0.25, decay=0.0)
    part = Downlink(inside, Sign())
    state = part.init({"w": torch.randn(1000, generator=rng).mul_(8).round_().div_(8)}, Census(0))
    for _ in range(5):
        sent = [Update(Whole({"w": (1000,)}), {"w": torch.randn(1000, generator=rng)}) for _ in range(3)]
        total = MajorityVote().reduce(sent, (), like)[0]
        if name == "vote":
            total = Scale(0.125).apply(total, (), rng)[0]
        before = state["model"]["w"].clone()
        state = part.commit(state, {"model": total}, ())
        assert (state["model"]["w"] - before).abs().unique().tolist() == [0.125]
        assert torch.equal(state["shadow"]["w"], state["model"]["w"])
    row = sum(t[0].nbytes for n, t in state["steps"].items() if n != "version")
    assert row == 1000 // 8 + 4


@dataclass(frozen=True)
class Watched(Around):
    """Notes every shadow."""

    inner: Algorithm
    seen: list = field(default_factory=list, compare=False)

    def init(self, params, census):
        state = self.inner.init(params, census)
        self.seen.append({n: t.clone() for n, t in state["shadow"].items()})
        return state

    def commit(self, state, totals, replies):
        state = self.inner.commit(state, totals, replies)
        self.seen.append({n: t.clone() for n, t in state["shadow"].items()})
        return state


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("keep", [1, 4, 16])
def test_every_client_holds_the_shadow_of_its_version(scheduler, keep):
    watched = Watched(Downlink(FedAvg(LOCAL), EIGHT, keep))
    of, log = star("fedavg", algorithm=watched, scheduler=scheduler), Log()
    states, reason = Simulate().run(of.programs(), of.population, log)
    assert (reason, log.of("lost")) == ("done", [])
    versions = set()
    for client in of.population.clients:
        own = states[client].own if client in states else None
        if own is not None and own.value:
            versions.add(own.version)
            assert all(torch.equal(t, watched.seen[own.version][n]) for n, t in own.value.items())
    assert len(versions) > 1
    server = states[SERVER].streams
    assert max(float((server["model"][n] - t).abs().max()) for n, t in server["shadow"].items()) > 0


def test_fewer_bytes_come_down_and_the_model_is_as_good():
    found = {}
    for name, algorithm in (("full", FedAvg(LOCAL)), ("less", Downlink(FedAvg(LOCAL), EIGHT))):
        of, log = star("fedavg", algorithm=algorithm, scheduler=Synchronous(cohort=7, rounds=12)), Traffic()
        states, _ = Simulate().run(of.programs(), of.population, log)
        found[name] = states[SERVER].streams["model"], log
    (one, full), (other, less) = found["full"], found["less"]
    assert less.bytes[1] < 0.75 * full.bytes[1]
    apart = max(float((one[n] - other[n]).abs().max()) for n in one)
    assert 0 < apart < 0.05
    losses = [log.of("commit")[-1]["loss"] for log in (full, less)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("name", INSIDE)
def test_without_loss_it_is_the_algorithm_inside(name):
    """communication.md §16.3: to the bit, since the server makes w of x by one addition."""
    one, other = trained(INSIDE[name]), trained(Downlink(INSIDE[name], Identity()))
    assert all(torch.equal(t, other["model"][n]) for n, t in one["model"].items())
    assert all(torch.equal(t, other["shadow"][n]) for n, t in one["model"].items())


def test_a_difference_without_loss_is_made_up_for_to_the_bit():
    """x + (w - x) is w where w is x + c, rounded: of c from 2^-40 to 2^40 times x, both ways."""
    rng, size = torch.Generator().manual_seed(1), 400_000
    x, c = torch.randn(size, generator=rng), torch.randn(size, generator=rng)
    c *= torch.randint(-40, 41, (size,), generator=rng).float().exp2()
    part = Downlink(FedAvg(), Identity())
    state = part.init({"w": x}, Census(0))
    state = part.commit(state, {"model": Update(Whole({"w": (size,)}), {"w": c})}, ())
    assert torch.equal(state["model"]["w"], x + c)
    assert torch.equal(state["shadow"]["w"], x + c)


@pytest.mark.parametrize("part", [Identity(), TopK(ratio=1.0), RandomK(1.0), Menu((Identity(), Sign()))], ids=repr)
@pytest.mark.parametrize("name", INSIDE)
def test_compressors_that_lose_nothing_change_nothing(name, part):
    """communication.md §16.3: the bits of training without, with error feedback too."""
    plain = trained(INSIDE[name])
    parts = [part] if isinstance(part, Identity) else [part, ErrorFeedback(part)]
    for chained in parts:
        found = trained(INSIDE[name], client_chain={"model": chain(chained)})
        assert encode(found) == encode(plain)


def test_processes_end_with_the_same_bits():
    algorithm = Downlink(FedAvg(LOCAL), EIGHT, keep=4)
    here, _ = play(Simulate(), star("fedavg", algorithm=algorithm))
    there, _ = play(Processes(), star("fedavg", algorithm=algorithm))
    assert here == there


def test_submodels_fetch_their_rows_in_full_and_keep_nothing():
    of = star("fedsubavg capped", algorithm=Downlink(FedSubAvg("count", LOCAL), EIGHT))
    states, reason = Simulate().run(of.programs(), of.population, Log())
    assert reason == "done"
    assert all(not states[client].own.value for client in of.population.clients)
    assert all(states[client].own.inner is None for client in of.population.clients)


def test_who_held_the_model_and_is_now_to_hold_a_part_fetches_it_in_full():
    """With widths that are drawn anew for every task no update is refused, and only who held all keeps the shadow."""
    inside = HeteroFL(LOCAL, redraw=(0.5, 1.0))
    of = star("fedavg", algorithm=Downlink(inside, EIGHT), scheduler=Synchronous(cohort=7, rounds=6))
    log = Log()
    states, reason = Simulate().run(of.programs(), of.population, log)
    assert (reason, log.of("lost"), log.of("refused")) == ("done", [], [])
    ratios = [inside.ratio(Task(0, 5, 0, 0), of.site(client)) for client in of.population.clients]
    assert set(ratios) == {0.5, 1.0}
    assert [bool(states[client].own.value) for client in of.population.clients] == [ratio == 1.0 for ratio in ratios]


def test_downlink_refuses():
    params = {"w": torch.zeros(40)}
    with pytest.raises(ValueError, match=r"Downlink\(keep=0\): must be at least 1, got 0\. 16 is usual\."):
        Downlink(FedAvg(), Sign(), keep=0)
    with pytest.raises(CompositionError, match=r"needs a transform that keeps nothing, got one with memory\."):
        Downlink(FedAvg(), ErrorFeedback(Sign())).init(params, Census(0))
    with pytest.raises(CompositionError, match=r"needs a transform whose messages differ in their tensors only"):
        Downlink(FedAvg(), Threshold(0.5)).init(params, Census(0))
    for inner in (Utility(Downlink(FedAvg(), Sign())), Mirrored(FedAvg(), Sign()), FedRank(), Utility(Ferret())):
        with pytest.raises(CompositionError, match=r"Downlink\(\w+\): brings the model to clients in fewer bytes, got"):
            Downlink(inner, Sign())
    with pytest.raises(CompositionError, match=r"messages differ in their tensors only, got two of other forms"):
        Downlink(FedAvg(), RandomK(0.5)).init(params, Census(0))


@pytest.mark.parametrize("part", [Quantize(4), Quantize(2)], ids=repr)
def test_what_would_grow_from_message_to_message_is_refused(part):
    """√512 / 7 = 3.23 and √512 = 22.6: the variance of levels of a bucket's norm, over the square of what goes in."""
    with pytest.raises(CompositionError, match=r"Downlink\(compress=Quantize\(.*got up to (3\.23|22\.6) times as much"):
        Downlink(FedAvg(), part).init({"w": torch.zeros(4096)}, Census(0))


@pytest.mark.parametrize("part", [Quantize(8), Quantize(4, bucket=16), Quantize(4, 128, scale_by="max")], ids=repr)
def test_at_random_the_shadow_stays_near_the_model(part):
    """512 / 127² = .03, 16 / 7² = .33, 128 / (4 7²) = .65 of the square of what is apart, and of a step of length 1."""
    rng, bound = torch.Generator().manual_seed(3), {8: 0.2, 4: 2.0}[part.bits]
    of = Downlink(FedAvg(), part)
    state = of.init({"w": torch.zeros(4096)}, Census(0))
    for _ in range(30):
        step = torch.randn(4096, generator=rng) / 64
        state = of.commit(state, {"model": Update(Whole({"w": (4096,)}), {"w": step})}, ())
        assert float((state["model"]["w"] - state["shadow"]["w"]).norm()) < bound
