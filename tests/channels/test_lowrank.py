"""PowerSGD over sums: by hand, as one worker, under masks, and with clients that are lost."""

import math

import pytest
import torch

from partwise.algorithms import FedAvg, FedSubAvg
from partwise.channels import LowRankSum, Masked, Plain
from partwise.channels.lowrank import _drawn
from partwise.core.channel import Opened
from partwise.core.codec import decode, encode
from partwise.core.errors import CompositionError
from partwise.core.index import Rows, Whole, shapes_of
from partwise.core.program import SERVER
from partwise.core.transform import chain
from partwise.core.update import Update
from partwise.experiment.spec import dump, loads
from partwise.runtimes import Processes, Simulate
from partwise.schedulers import Synchronous
from partwise.transforms import Clip, ErrorFeedback, GaussianNoise, TopK
from toy_exchange import play, seat_of
from toy_federation import LOCAL, star
from toy_star import Log

SHAPES = {"w": (12, 3, 3), "b": (5,), "small": (2, 2)}
PARAMS = {n: torch.zeros(s, dtype=torch.float64) for n, s in SHAPES.items()}
MASKED = Masked(limit=100.0, bits=32, max_weight=4, min_contributors=3)


def updates_of(round_, clients=4, weights=(1.0, 2.0, 1.0, 3.0), params=PARAMS):
    draw = torch.Generator().manual_seed(100 + round_)
    return {
        3 * c + 1: Update(
            Whole(shapes_of(params)),
            {n: torch.randn(t.shape, generator=draw, dtype=t.dtype) for n, t in params.items()},
            weights[c],
        )
        for c in range(clients)
    }


def rounds(channel, by_round, params=PARAMS, lost=None):
    """Exchanges one after another, with what clients remember; the sums, and the memories at the end."""
    memories, found = {}, []
    for number, updates in enumerate(by_round, 1):
        memories = {c: decode(bytearray(encode(memories.get(c, {})))) for c in updates}
        seats = {c: seat_of(c, number, params, reply=100 * number, memory=memories[c]) for c in updates}
        it = play(channel, updates, params=params, seats=seats, session=number, lost=(lost or {}).get(number))
        assert not it.refusals, it.refusals
        assert not it.failure, it.failure
        found.append(it)
    return found, memories


def mean(it, name):
    return it.sum.value[name] / it.sum.weight[name]


def matmul(a, b):
    return [
        [math.fsum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a
    ]


def turned(a):
    return [list(column) for column in zip(*a, strict=True)]


def orthonormal(a):
    """Gram-Schmidt, column after column."""
    columns = []
    for column in turned(a):
        for other in columns:
            along = math.fsum(x * y for x, y in zip(column, other, strict=True))
            column = [x - along * y for x, y in zip(column, other, strict=True)]
        length = math.sqrt(math.fsum(x * x for x in column))
        columns.append([x / length for x in column])
    return turned(columns)


def test_as_by_hand():
    """communication.md §15.4, in plain loops: weighted means, what is left over, the base that goes on."""
    by_round = [updates_of(r) for r in range(4)]
    found, memories = rounds(LowRankSum(rank=2), by_round)

    base = _drawn("w", 9, 2, 1).tolist()
    owed = {c: [[0.0] * 9 for _ in range(12)] for c in by_round[0]}
    for updates, it in zip(by_round, found, strict=True):
        total = sum(u.weight for u in updates.values())
        whole = {
            c: [[x + e for x, e in zip(row, left, strict=True)] for row, left in zip(rows, owed[c], strict=True)]
            for c, rows in ((c, u.value["w"].reshape(12, 9).tolist()) for c, u in updates.items())
        }
        average = [
            [math.fsum(updates[c].weight * whole[c][i][j] for c in whole) / total for j in range(9)] for i in range(12)
        ]
        span = orthonormal(matmul(average, base))
        base = matmul(turned(average), span)
        common = matmul(span, turned(base))
        owed = {c: [[x - y for x, y in zip(row, other, strict=True)] for row, other in zip(w, common, strict=True)]
                for c, w in whole.items()}  # fmt: skip
        assert torch.allclose(
            mean(it, "w").reshape(12, 9), torch.tensor(common, dtype=torch.float64), rtol=0, atol=1e-9
        )
        for name in ("b", "small"):
            expected = sum(u.weight * u.value[name] for u in updates.values()) / total
            assert torch.allclose(mean(it, name), expected)
        assert (it.sum.total, it.sum.count) == (total, 4)
    for client, memory in memories.items():
        assert torch.allclose(
            memory["owed"]["w"].reshape(12, 9), torch.tensor(owed[client], dtype=torch.float64), atol=1e-9
        )
        assert memory["owed"].keys() == {"w"}


def test_many_clients_are_one_with_the_mean():
    """communication.md §15.4: linear."""
    by_round = [updates_of(r, weights=(1.0,) * 4) for r in range(3)]
    single = [
        {1: Update(Whole(SHAPES), {n: sum(u.value[n] for u in us.values()) / 4 for n in SHAPES})} for us in by_round
    ]
    (many, memories), (one, memory) = rounds(LowRankSum(), by_round), rounds(LowRankSum(), single)
    for a, b in zip(many, one, strict=True):
        assert all(torch.allclose(mean(a, n), mean(b, n), rtol=0, atol=1e-10) for n in SHAPES)
    left = sum(m["owed"]["w"] for m in memories.values()) / 4
    assert torch.allclose(left, memory[1]["owed"]["w"], rtol=0, atol=1e-10)


def test_everything_arrives():
    """Sums of what came, and what is left over on average, are all that was to be sent."""
    by_round = [updates_of(r, weights=(1.0,) * 4) for r in range(12)]
    found, memories = rounds(LowRankSum(rank=1), by_round)
    wanted = sum(u.value["w"] for us in by_round for u in us.values()) / 4
    came = sum(mean(it, "w") for it in found) + sum(m["owed"]["w"] for m in memories.values()) / 4
    assert torch.allclose(came, wanted, rtol=0, atol=1e-9)


def test_a_mean_of_that_rank_is_sent_exactly():
    draw = torch.Generator().manual_seed(1)
    common = torch.randn(12, 2, generator=draw).double() @ torch.randn(2, 9, generator=draw).double()
    noise = torch.randn(12, 9, generator=draw).double()
    params = {"w": torch.zeros(12, 9, dtype=torch.float64)}
    updates = {c: Update(Whole({"w": (12, 9)}), {"w": common + sign * noise}) for c, sign in ((1, 1), (4, -1))}
    (it,), _ = rounds(LowRankSum(rank=2), [updates], params)
    assert torch.allclose(mean(it, "w"), common, rtol=0, atol=1e-10)


def test_under_masks_it_is_that_in_the_clear():
    by_round = [updates_of(r) for r in range(3)]
    (plain, _), (masked, _) = rounds(LowRankSum(Plain()), by_round), rounds(LowRankSum(MASKED), by_round)
    for a, b in zip(plain, masked, strict=True):
        assert all(torch.allclose(mean(a, n), mean(b, n), rtol=0, atol=1e-5) for n in SHAPES)
        assert isinstance(b.opened, Opened)
        assert b.opened.told["examples"] == sum(10 + c for c in by_round[0])


@pytest.mark.parametrize("inner", [Plain(), MASKED], ids=["plain", "masked"])
@pytest.mark.parametrize("step", range(11))
def test_whoever_is_lost_the_rest_is_a_mean(inner, step):
    """A rank that leaves nothing out: what comes is the mean of those that are in it."""
    params = {"w": torch.zeros(9, 7, dtype=torch.float64)}
    draw = torch.Generator().manual_seed(5)
    common = torch.randn(9, 2, generator=draw).double() @ torch.randn(2, 7, generator=draw).double()
    updates = {c: Update(Whole({"w": (9, 7)}), {"w": common * 0.1 * c}) for c in range(1, 6)}
    it = play(LowRankSum(inner), updates, params=params, lost={2: step})
    assert not it.failure
    clients = sorted(it.opened.clients)
    assert {1, 3, 4, 5} <= set(clients)
    expected = sum(updates[c].value["w"] for c in clients) / len(clients)
    assert torch.allclose(mean(it, "w"), expected, rtol=0, atol=1e-5)
    assert it.sum.count == len(clients)
    last = len(it.asked) - 1
    if step == last:  # it sent its factor, and never heard of Q
        assert 2 in clients
        assert (it.memories[2]["number"], it.memories[2]["owed"]) == (0, {})
    else:
        assert (it.memories[1]["number"], "base" in it.memories[1]) == (7, True)


def test_bytes_of_both_factors():
    """communication.md §15.4: r (n + m) numbers up, and as many down, of 4 bytes; the rest is the channel's own."""
    params = {"w": torch.zeros(300, 200)}
    updates = updates_of(0, params=params, weights=(1.0,) * 4)
    masked = Masked(limit=500.0, bits=30, max_weight=1, min_contributors=3)  # words of 32 bits for four clients
    sizes = []
    for channel in (masked, LowRankSum(masked, rank=2)):
        it = play(channel, updates, params=params, seats={c: seat_of(c, 7, params) for c in updates})
        sizes.append([sum(len(encode(said[1])) for said in side) for side in (it.answers, it.asked)])
    numbers = 4 * 2 * (300 + 200)
    assert sizes[0][0] > 4 * 300 * 200
    assert numbers < sizes[1][0] < numbers + 3000
    assert numbers < sizes[1][1] < numbers + 5000


def test_in_a_specification():
    experiment = loads("""
[workload]
name = "LeafSynthetic"
[algorithm]
name = "FedAvg"
[[client]]
name = "Clip"
max_norm = 0.5
[channel]
name = "LowRankSum"
rank = 3
inner = {name = "Masked", limit = 0.5}
""")
    assert experiment.channel == LowRankSum(Masked(0.5), rank=3)
    assert loads(dump(experiment)).channel == experiment.channel
    assert "2 x 2 numbers of it for each matrix" in LowRankSum().discloses()[-1]


def test_those_who_do_not_all_have_a_base_begin_anew():
    by_round = [updates_of(r) for r in range(2)]
    some = {c: u for c, u in by_round[0].items() if c != 4}
    found, _ = rounds(LowRankSum(), [some, by_round[1]])
    assert [it.asked[1][1].of for it in found] == [0, 0]
    found, _ = rounds(LowRankSum(), by_round)
    assert [it.asked[1][1].of for it in found] == [0, 1]


def test_weights_of_nothing_have_no_sum():
    it = play(LowRankSum(), updates_of(0, weights=(0.0,) * 4), params=PARAMS)
    assert it.failure == "span: somebody of a weight above 0 must answer, got nobody. Nothing was opened."
    assert all("owed" not in memory for memory in it.memories.values())


def test_what_is_too_long_is_left_over():
    """The limit bounds update and what is owed together."""
    inner = Masked(limit=1.0, bits=32, max_weight=1, min_contributors=3)
    updates = {c: Update(u.index, {n: 3 * v for n, v in u.value.items()}) for c, u in updates_of(0).items()}
    (it,), memories = rounds(LowRankSum(inner), [updates])
    assert all(float(mean(it, n).norm()) <= 1.0 for n in SHAPES)
    for name in SHAPES:
        came = mean(it, name) + sum(m["owed"][name] for m in memories.values()) / 4
        assert torch.allclose(came, sum(u.value[name] for u in updates.values()) / 4, rtol=0, atol=1e-5)


def test_a_server_that_shows_others_another_model_gets_no_sum():
    updates = updates_of(0)
    seats = {c: seat_of(c, 7, PARAMS) for c in updates}
    seats[1] = seat_of(1, 7, {n: t + 1 for n, t in PARAMS.items()})
    assert play(LowRankSum(MASKED), updates, params=PARAMS, seats=seats).failure.endswith("nothing was opened.")
    again = play(LowRankSum(MASKED), updates, params=PARAMS, seats={c: seat_of(c, 7, PARAMS) for c in updates})
    assert isinstance(again.opened, Opened)


def test_clients_refuse():
    def tampered(**changes):
        def ask(step, client, message):
            return message._replace(**changes) if client == 4 and step in (at, -1) else message

        return play(LowRankSum(), updates_of(0), params=PARAMS, ask=ask).refusals[4]

    at = 0
    assert "client 4 refuses: 'base' comes next, got factor. Follow the protocol." in tampered(stage="factor")
    at = 1
    assert "the base is a new one, or the one it has, got 3" in tampered(of=3)
    at = 2
    for wrong in ({"w": torch.zeros(12, 3)}, {"v": torch.zeros(12, 2)}, {"w": torch.full((12, 2), math.nan)}, None):
        assert "factors are finite and as wide as the parameters, got others" in tampered(of=wrong)
    assert "the columns of a basis have length 1, got 3.4641" in tampered(of={"w": torch.ones(12, 2)})
    assert "'factor' comes next, got end" in tampered(stage="end")
    at = 3
    assert "factor is over, got another message of it" in tampered(stage="factor")


@pytest.mark.parametrize("channel", [LowRankSum(rank=1), LowRankSum(Masked(0.5, 24, 40, min_contributors=3), rank=1)])
def test_in_the_star(channel):
    """In the simulator as between processes, to the last bit."""
    chains = {"model": chain(Clip(0.5))}
    parts = {"channel": channel, "client_chain": chains, "scheduler": Synchronous(cohort=7, rounds=3)}
    found = []
    for runtime in (Simulate(), Processes()):
        of, log = star("fedavg", algorithm=FedAvg(LOCAL), **parts), Log()
        states, reason = runtime.run(of.programs(), of.population, log)
        assert (reason, log.of("lost"), log.of("skipped")) == ("done", [], [])
        found.append(states[SERVER].streams["model"])
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    start = star("fedavg").initial()
    assert all(not torch.equal(found[0][n], start[n]) for n in start)


def test_it_refuses():
    with pytest.raises(ValueError, match=r"LowRankSum\(rank=0, inner=Plain\(\)\): needs a rank of at least 1 and"):
        LowRankSum(rank=0)
    with pytest.raises(ValueError, match=r"LowRankSum\(rank=2, inner=LowRankSum\(.*a channel that sums as it is told"):
        LowRankSum(LowRankSum())
    part = Rows({**SHAPES, "w": (12, 9)}, {"w": torch.tensor([3]), "b": None, "small": None})
    held = Update(part, part.gather({**PARAMS, "w": torch.zeros(12, 9)}))
    with pytest.raises(ValueError, match=r"LowRankSum\(\): its clients hold all of the model, and weigh it as a whole"):
        next(LowRankSum().client(held, PARAMS, seat_of(1)))
    rows, log = star("fedavg", algorithm=FedSubAvg("count", LOCAL), channel=LowRankSum(), rounds=1), Log()
    Simulate().run(rows.programs(), rows.population, log)
    assert all("got a part of it or several weights. Use Masked, with RandomK" in r["reason"] for r in log.of("lost"))
    assert len(log.of("lost")) == 4
    with pytest.raises(CompositionError, match=r"TopK\(.*cannot be summed as it is sent, got LowRankSum\("):
        star("fedavg", channel=LowRankSum(), client_chain={"model": chain(ErrorFeedback(TopK(3)))})
    noisy = {"server_chain": {"model": chain(GaussianNoise(1.0, 0.1))}, "client_chain": {"model": chain(Clip(0.5))}}
    with pytest.raises(CompositionError, match=r"GaussianNoise\("):
        star("fedavg", channel=LowRankSum(), **noisy)
    with pytest.raises(CompositionError, match=r"needs a bound of at most 100"):
        star("fedavg", channel=LowRankSum(MASKED))
