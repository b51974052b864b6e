"""MM-PSGD and MC-PSGD against printed numbers and plain loops."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import toy_federation
from partwise.algorithms import MCPSGD, MMPSGD, FedAvg, LocalOnly
from partwise.core.algorithm import Algorithm, Site, Task
from partwise.core.around import Around
from partwise.core.index import Rows, Whole
from partwise.core.model import CrossEntropy, Model, like
from partwise.core.plan import Trained
from partwise.core.population import Census, Examples, Profile
from partwise.core.program import SERVER
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update
from partwise.local import SGD, AdamW, LocalTraining
from partwise.testing import check_algorithm
from toy_star import Cohorts, everybody, full_batch, number_model, parabolas, run, server, star_of


def cyclic(a, b, blocks, sizes=()):
    population = parabolas(a, b, sizes)
    population.profiles = {i: Profile(block=m) for i, m in enumerate(blocks)}
    return population


def looked(algorithm, population, cohorts, at=0.0):
    """x, predictors and separate chains after each version."""

    def look(world):
        streams = server(world).streams
        found = [float(streams["model"]["w"])]
        found += [t["w"].flatten().tolist() for name in ("predictors", "separate") if (t := streams.get(name))]
        return found

    star = star_of(algorithm, number_model(at), population, Cohorts(tuple(cohorts)))
    _, log = run(star, look)
    assert not log.of("lost")
    return log.seen


# Printed numbers: one client a block, curvature 1, optima 0 and 10

TWO = ((1.0, 1.0), (0.0, 10.0), (0, 1))


def test_printed_numbers_of_mm():
    seen = looked(MMPSGD(2, full_batch(1, 0.5)), cyclic(*TWO), [(0,), (1,)] * 6)
    printed = {2: (5, (0, 5)), 4: (6.25, (1.25, 5.625)), 12: (6.6650390625, (2.592773438, 6.296386719))}
    for rounds, (x, predictors) in printed.items():
        assert seen[rounds - 1][0] == pytest.approx(x, abs=1e-12)
        assert seen[rounds - 1][1] == pytest.approx(predictors, abs=6e-10)  # nine decimals


def test_printed_numbers_of_mc():
    seen = looked(MCPSGD(2, full_batch(1, 0.5)), cyclic(*TWO), [(0,), (0,), (1,), (1,)] * 6)
    printed = {
        4: (5, (0, 5), (0, 5)),
        8: (6.25, (0, 6.25), (0, 7.5)),
        24: (6.6650390625, (0, 8.359375), (0, 9.84375)),
    }
    for versions, (x, predictors, separate) in printed.items():
        assert seen[versions - 1][0] == pytest.approx(x, abs=1e-12)
        assert seen[versions - 1][1] == pytest.approx(predictors, abs=1e-12)
        assert seen[versions - 1][2] == pytest.approx(separate, abs=1e-12)


# One block

MANY = ((1.0, 3.0, 0.5), (0.0, 4.0, -3.0), (0, 0, 0), (1, 4, 2))
COHORTS = ((0, 1), (2,), (1, 2), (0, 1, 2), (1,), (0,))


@pytest.mark.parametrize("weights", ["uniform", "samples", "unbiased"])
def test_one_block_is_federated_averaging_and_its_running_mean(weights):
    population = cyclic(*MANY)
    seen = looked(MMPSGD(1, full_batch(3, 0.1), weights), population, COHORTS)
    star = star_of(FedAvg(full_batch(3, 0.1), weights), number_model(), population, Cohorts(COHORTS))
    _, log = run(star, lambda world: float(server(world).streams["model"]["w"]))
    assert [x for x, _ in seen] == log.seen
    for rounds, (_, (predictor,)) in enumerate(seen, 1):
        assert predictor == pytest.approx(sum(log.seen[:rounds]) / rounds, abs=1e-12)


def test_one_block_with_equal_rates_is_mm():
    """Every training round is followed by a round that compares: both chains are equal, so the first is taken."""
    population = cyclic(*MANY)
    mixed = looked(MMPSGD(1, full_batch(3, 0.1)), population, COHORTS)
    twice = [cohort for cohort in COHORTS for _ in range(2)]
    both = looked(MCPSGD(1, full_batch(3, 0.1)), population, twice)
    assert [(x, p) for x, p, _ in both[1::2]] == [(x, p) for x, p in mixed]
    assert all(y == [x] for x, _, y in both)


# Plain loops


def oracle(a, b, blocks, sizes, cohorts, *, lr, separate, steps, begin, resume=True, by_size=False, skip=0):
    """MC-PSGD in plain floats: x, predictors and chains after each round of training and comparing."""
    num = max(blocks) + 1
    x, y, p, r, last, found = begin, [begin] * num, [begin] * num, [0] * num, None, []
    for cohort in cohorts:
        m = blocks[cohort[0]]
        if not resume and m != last:
            y[m] = x
        last, shares = m, [float(sizes[i]) if by_size else 1.0 for i in cohort]
        ends = []
        for i in cohort:
            v, u = x, y[m]
            for _ in range(steps):
                v, u = v - lr * a[i] * (v - b[i]), u - separate * a[i] * (u - b[i])
            ends.append((v, u))
        x = sum(s * v for s, (v, _) in zip(shares, ends, strict=True)) / sum(shares)
        y[m] = sum(s * u for s, (_, u) in zip(shares, ends, strict=True)) / sum(shares)
        loss = [sum(s * a[i] * (z - b[i]) ** 2 for s, i in zip(shares, cohort, strict=True)) for z in (x, y[m])]
        best = y[m] if loss[1] < loss[0] else x
        k = max(0, r[m] - skip)
        p[m], r[m] = (k * p[m] + best) / (k + 1), r[m] + 1
        found.append((x, list(p), list(y)))
    return found


A, B, BLOCKS, SIZES = (1.0, 3.0, 0.5, 2.0), (0.0, 4.0, -3.0, 9.0), (0, 1, 0, 1), (1, 4, 2, 3)
VISITS = ((0, 2), (2,), (1, 3), (3,), (0,), (1,), (1, 3), (0, 2))


@pytest.mark.parametrize("case", ["resume", "restart", "by size", "skip"])
def test_mc_equals_the_plain_loop(case):
    more = {"restart": {"resume": False}, "by size": {"weights": "samples"}, "skip": {"avg_from_round": 2}}.get(
        case, {}
    )
    algorithm = MCPSGD(2, full_batch(2, 0.1), separate_lr=0.17, **more)
    twice = [cohort for cohort in VISITS for _ in range(2)]
    seen = looked(algorithm, cyclic(A, B, BLOCKS, SIZES), twice, at=1.5)[1::2]
    settings = {"resume": case != "restart", "by_size": case == "by size", "skip": 2 * (case == "skip")}
    for ours, theirs in zip(
        seen,
        oracle(A, B, BLOCKS, SIZES, VISITS, lr=0.1, separate=0.17, steps=2, begin=1.5, **settings),
        strict=True,
    ):
        for one, other in zip(ours, theirs, strict=True):
            assert one == pytest.approx(other, abs=1e-12)


def test_rounds_that_are_left_out():
    """Until the block's third round the predictor is the newest iterate."""
    seen = looked(MMPSGD(2, full_batch(1, 0.1), avg_from_round=2), cyclic(*TWO), [(0,), (1,)] + [(1,)] * 3, at=4.0)
    x = [x for x, _ in seen]
    assert [p[1] for _, p in seen[1:]] == pytest.approx([x[1], x[2], x[3], (x[3] + x[4]) / 2], abs=1e-13)
    assert [p[0] for _, p in seen] == [x[0]] * 5


def test_a_rate_that_decays_and_a_bound_are_each_chains_own():
    """Both gradients are cut to 1 where they are longer; the rates shrink by version, so by the square in a round."""
    local = LocalTraining(SGD(0.1), batch_size=0, steps=1, lr_decay=0.9, max_norm=1.0)
    seen = looked(MCPSGD(1, local, separate_lr=0.4), cyclic((2.0,), (3.0,), (0,)), [(0,)] * 6)
    x = y = 0.0
    for round in range(3):
        cut = [math.copysign(min(1.0, abs(2 * (z - 3))), z - 3) for z in (x, y)]
        x, y = x - 0.1 * 0.81**round * cut[0], y - 0.4 * 0.81**round * cut[1]
    assert (seen[-1][0], seen[-1][2][0]) == pytest.approx((x, y), abs=1e-9)


def test_other_optimisers_work():
    local = LocalTraining(AdamW(0.1), batch_size=0, steps=2)
    (x, _, (y,)), _ = looked(MCPSGD(1, local, separate_lr=0.3), cyclic((2.0,), (3.0,), (0,)), [(0,)] * 2)
    assert 0 < x < y


# Who gets what, and commits that are not of one kind


def test_clients_of_two_blocks_in_one_round():
    seen = looked(MMPSGD(3, full_batch(1, 0.1)), cyclic(*TWO), [(0, 1)], at=4.0)
    x = 4.0 - 0.1 * (4.0 - 6.0) / 2
    assert seen[0] == [pytest.approx(x), [pytest.approx(x)] * 2 + [4.0]]


def test_a_client_gets_its_own_chain_alone():
    population = cyclic(*TWO)
    for resume in (True, False):
        algorithm = MCPSGD(2, resume=resume)
        site = star_of(algorithm, number_model(), population, Cohorts(())).site(1)
        asked = algorithm.fetch(site.whole(), None, None, site)
        assert set(asked) == {"model", "separate"} | (set() if resume else {"rounds"})
        assert isinstance(asked["separate"], Rows)
        assert asked["separate"].held_shape("w") == (1, 1)
        assert asked["separate"].rows["w"].tolist() == [1]
    assert set(MMPSGD().fetch(site.whole(), None, None, site)) == {"model"}


def test_comparing_costs_no_update():
    _, log = run(star_of(MCPSGD(1), number_model(), parabolas(), everybody(parabolas(), 2)))
    assert [record["steps"] for record in log.of("reply")] == [1, 1, 0, 0]


def test_losses_told_by_clients_of_another_block_change_no_predictor():
    """The block has changed between training and comparing; the round that nobody judged is left out."""
    seen = looked(MCPSGD(2, full_batch(1, 0.5)), cyclic(*TWO), [(0,), (1,), (1,), (1,)], at=4.0)
    assert [p for _, p, _ in seen] == [[4, 4], [4, 4], [4, 4], [4, pytest.approx(7.0)]]


def test_what_no_block_is_told_of_is_not_taken():
    algorithm, params = MMPSGD(2), {"w": torch.zeros(1)}
    state = algorithm.init(params, None)
    total = {"model": Update(Whole({"w": (1,)}), {"w": torch.ones(1)})}
    told = [ReplyInfo(i, i, 0, 1, 1, report=r) for i, r in enumerate(({"block": 5.0}, {"block": 0.5}, {}))]
    state = algorithm.commit(state, total, told)
    assert state["predictors"]["w"].flatten().tolist() == [0, 0]


def test_predictors_are_read_off_the_streams():
    population = cyclic(*TWO)
    algorithm = MCPSGD(2, full_batch(1, 0.5))
    states, _ = run(star_of(algorithm, number_model(), population, Cohorts(((0,), (0,), (1,), (1,)))))
    streams = states[SERVER].streams
    assert [float(algorithm.predictor(streams, m)["w"]) for m in (0, 1)] == [0, 5]
    assert [float(algorithm.separate(streams, m)["w"]) for m in (0, 1)] == [0, 5]
    with pytest.raises(ValueError, match=r"MCPSGD\(num_blocks=2\): has models of blocks 0 to 1, got 2. Name one"):
        algorithm.predictor(streams, 2)
    with pytest.raises(ValueError, match=r"MMPSGD\(num_blocks=1\): has models of blocks 0 to 0, got -1"):
        MMPSGD(1).predictor(streams, -1)


# Composition, bad input


@pytest.mark.parametrize(
    "part",
    [
        MMPSGD(3, avg_from_round=1),
        MCPSGD(1, separate_lr=0.2, weights="samples"),
        MCPSGD(resume=False),
        LocalOnly(MMPSGD(), names=("out.bias",)),
    ],
    ids=repr,
)
def test_contract(part):
    check_algorithm(part)


@dataclass(frozen=True)
class Unasked(Around):
    """One that does not say that the algorithm inside needs all of the model."""

    inner: Algorithm

    @property
    def needs_all(self) -> bool:
        return False


def test_the_comparison_needs_the_whole_model():
    """With a wrapper that does not ask, they train, and then cannot compare."""
    population, algorithm = toy_federation.population(2), LocalOnly(Unasked(MCPSGD(1)), names=("out.bias",))
    _, log = run(star_of(algorithm, toy_federation.model(), population, everybody(population, 2)))
    assert len(log.of("commit")) == 1
    assert "MCPSGD(): compares losses of the whole model, but does not see ['out.bias']" in log.of("lost")[0]["reason"]


@pytest.mark.parametrize("make", [MMPSGD, MCPSGD])
def test_a_client_of_a_block_that_is_not_there(make):
    population = cyclic((1.0, 1.0), (0.0, 1.0), (0, 3))
    _, log = run(star_of(make(2), number_model(), population, everybody(population, 1)))
    (lost,) = log.of("lost")
    assert (lost["client"], lost["stage"]) == (1, "select")
    assert (
        f"{make.__name__}(num_blocks=2): clients must belong to blocks 0 to 1, got block 3 of client 1"
        in lost["reason"]
    )


@pytest.mark.parametrize(
    ("make", "settings", "sentence"),
    [
        (MMPSGD, {"num_blocks": 0}, r"MMPSGD\(num_blocks=0\): must be at least 1, got 0"),
        (MMPSGD, {"avg_from_round": -1}, r"MMPSGD\(avg_from_round=-1\): must be at least 0"),
        (MMPSGD, {"weights": "heat"}, r"MMPSGD\(weights='heat'\): must be one of uniform, samples, unbiased"),
        (MCPSGD, {"num_blocks": 0}, r"MCPSGD\(num_blocks=0\): must be at least 1"),
        (MCPSGD, {"separate_lr": -0.1}, r"MCPSGD\(separate_lr=-0.1\): must be at least 0, got -0.1"),
        (MCPSGD, {"weights": "unbiased"}, r"MCPSGD\(weights='unbiased'\): must be 'uniform' or 'samples'"),
    ],
)
def test_wrong_settings(make, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**settings)


# Half precision


@pytest.mark.parametrize("make", [MMPSGD, MCPSGD])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_predictor_of_half_precision_is_the_mean_of_all_rounds(make, dtype):
    """The model is 0 in 10 rounds and 1 in 990: the mean is 0.99."""
    algorithm, index = make(1), Whole({"w": (2,)})
    state = algorithm.init({"w": torch.zeros(2, dtype=dtype)}, Census(3))
    row = Rows({"w": (1, 2)}, {"w": torch.tensor([0])})
    for at in range(1000):
        change = torch.full((2,), float(at == 10), dtype=dtype)
        totals = {"model": Update(index, {"w": change})}
        if make is MCPSGD:
            totals["separate"] = Update(row, {"w": change.unsqueeze(0)})
        trained, told = {"block": 0.0}, {"block": 0.0, "mixed": 1.0, "separate": 2.0}
        state = algorithm.commit(state, totals, [ReplyInfo(0, 1, 0, 5, 7, report=trained)])
        if make is MCPSGD:
            nothing = {name: Update(Whole({}), {}, 0.0) for name in totals}
            state = algorithm.commit(state, nothing, [ReplyInfo(0, 1, 1, 5, 7, report=told)])
    found = algorithm.predictor(state, 0)["w"]
    assert found.dtype == dtype
    assert found.tolist() == pytest.approx([0.99] * 2, abs=0.003)  # 0.99 in bfloat16 is 0.98828125


@pytest.mark.parametrize(
    ("weights", "told", "is_apart"),
    [
        ("uniform", [(3, 1.0, 2.0), (1, 4.0, 2.0)], True),  # 5 and 4
        ("samples", [(3, 1.0, 2.0), (1, 4.0, 2.0)], False),  # 3 + 4 and 6 + 2
        ("uniform", [(1, 1.0, 3.0), (1, 3.0, 1.0)], False),  # equal
    ],
)
def test_the_predictor_takes_in_the_chain_of_the_lower_mean_loss(weights, told, is_apart):
    """x is 0 and y of block 0 is 1; (examples, loss of x, loss of y) of each client."""
    algorithm = MCPSGD(2, weights=weights)
    state = algorithm.init({"w": torch.tensor(0.0)}, Census(2))
    state["separate"]["w"][0], state["rounds"]["open"][0] = 1.0, 1.0
    replies = [
        ReplyInfo(i, i, 1, 0, examples, report={"block": 0.0, "mixed": mixed, "separate": separate})
        for i, (examples, mixed, separate) in enumerate(told)
    ]
    state = algorithm.commit(state, {}, replies)
    assert float(algorithm.predictor(state, 0)["w"]) == float(is_apart)


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(32, 2)

    def forward(self, x):
        return self.out(nn.functional.dropout(x, 0.5, self.training))


def test_losses_are_told_without_dropout():
    model = Model(Dropped, CrossEntropy())
    params = model.init(3)
    x, y = torch.ones(2, 32), torch.tensor([0, 1])
    site = Site(0, model, like(params), Examples({"x": x, "y": y}), Profile(block=0), 3)
    held = {"model": params, "separate": {n: torch.zeros_like(t).unsqueeze(0) for n, t in params.items()}}
    zeros = {n: torch.zeros_like(t) for n, t in params.items()}
    told = MCPSGD(1).report(held, Trained(zeros, 0, 0.0), Task(0, 1, 0, 0), (), site)
    loss = nn.functional.cross_entropy(x @ params["out.weight"].T + params["out.bias"], y)
    assert told == {"block": 0.0, "mixed": pytest.approx(float(loss)), "separate": pytest.approx(math.log(2))}
