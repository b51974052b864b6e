"""Parameters that never leave a client."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from partwise.algorithms import (
    CSER,
    AdaAlter,
    Deniable,
    Downlink,
    FedAvg,
    FedProx,
    FedRank,
    FedSubAvg,
    Ferret,
    HeteroFL,
    LocalOnly,
    Mirrored,
    OneByte,
    Scaffold,
    SignMomentum,
)
from partwise.algorithms.answers import Level
from partwise.algorithms.personal import PersonalState
from partwise.core.algorithm import Algorithm
from partwise.core.codec import decode, encode
from partwise.core.errors import CompositionError
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Profile
from partwise.core.transform import Identity
from partwise.local import SGD, LocalTraining
from partwise.schedulers import FedBuff, Synchronous
from partwise.transforms import Quantize, Sign
from toy_star import Clients, Cohorts, everybody, full_batch, number_model, parabolas, run, server, star_of


class Normed(nn.Module):
    """A BatchNorm whose name does not say so, and a LayerNorm named `bn`."""

    def __init__(self):
        super().__init__()
        self.first, self.downsample, self.bn, self.out = (
            nn.Linear(3, 4),
            nn.BatchNorm1d(4),
            nn.LayerNorm(4),
            nn.Linear(4, 2),
        )
        self.double()

    def forward(self, x):
        return self.out(self.bn(self.downsample(self.first(x)).relu()))


LOCAL = {f"downsample.{n}" for n in ("weight", "bias", "running_mean", "running_var")}


def shifted(sizes=(6, 4, 8)):
    rng = torch.Generator().manual_seed(0)
    return Clients(
        [
            {
                "x": (torch.randn(n, 3, generator=rng) * (i + 1) + 3 * i).double(),
                "y": torch.randint(2, (n,), generator=rng),
            }
            for i, n in enumerate(sizes)
        ]
    )


def normed():
    return Model(Normed, CrossEntropy())


def played(algorithm, cohorts, population=None, seed=2):
    population = population or shifted()
    states, log = run(star_of(algorithm, normed(), population, Cohorts(cohorts), seed=seed))
    assert not log.of("lost")
    return states, log


def test_normalization_is_told_by_type():
    states, _ = played(LocalOnly(FedAvg(full_batch(1))), ((0, 1),))
    assert states[0].own.value.keys() == LOCAL
    assert type(states[0].own) is PersonalState


def test_numbers_of_the_method_notes():
    """Clients end with (1, 2) and (3, 6): the shared layer is averaged to (2, 4), the kept one stays."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Parameter(torch.zeros(2, dtype=torch.float64))
            self.kept = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, to):
            return ((self.shared - to) ** 2 + (self.kept - to) ** 2).sum(1) / 2

    rows = [{"to": torch.tensor([ends], dtype=torch.float64)} for ends in ((1.0, 2.0), (3.0, 6.0))]
    model = Model(Two, lambda outputs, batch: outputs, inputs=("to",))
    algorithm = LocalOnly(FedAvg(full_batch(1, lr=1.0)), names=("kept",))
    population = Clients(rows)
    states, _ = run(star_of(algorithm, model, population, everybody(population, 1)))
    assert states[-1].streams["model"]["shared"].tolist() == [2, 4]
    assert states[-1].streams["model"]["kept"].tolist() == [0, 0]
    assert [states[i].own.value["kept"].tolist() for i in (0, 1)] == [[1, 2], [3, 6]]


def plain_training(values, rows, steps, lr):
    """Full-batch steps of the module itself."""
    module = Normed()
    module.load_state_dict({**module.state_dict(), **values})
    module.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(module(rows["x"]), rows["y"])
        grads = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for p, g in zip(module.parameters(), grads, strict=True):
                p -= lr * g
    return {n: t.detach().clone() for n, t in module.state_dict().items() if t.is_floating_point()}


def test_rounds_equal_the_plain_loop():
    """Non-normalisation values equal on all; each client's own values are those of its last local training."""
    population, cohorts = shifted(), ((0, 1, 2), (0, 2), (1, 2), (0, 1, 2))
    shared = normed().init(2)
    own = [{n: shared[n].clone() for n in LOCAL} for _ in range(3)]
    sizes = (6, 4, 8)
    for cohort in cohorts:
        total = {n: torch.zeros_like(t) for n, t in shared.items()}
        for i in cohort:
            end = plain_training({**shared, **own[i]}, population.columns[i], 3, 0.1)
            own[i] = {n: end[n] for n in LOCAL}
            for n in shared.keys() - LOCAL:
                total[n] += sizes[i] / sum(sizes[j] for j in cohort) * (end[n] - shared[n])
        shared = {n: t + total[n] for n, t in shared.items()}
    states, _ = played(LocalOnly(FedAvg(full_batch(3))), cohorts, population)
    for n, t in shared.items():
        torch.testing.assert_close(states[-1].streams["model"][n], t, rtol=0, atol=1e-12)
    for i in range(3):
        for n in LOCAL:
            torch.testing.assert_close(states[i].own.value[n], own[i][n], rtol=0, atol=1e-12)


def test_own_values_never_travel():
    population = shifted()
    star = star_of(LocalOnly(FedAvg(full_batch(1))), normed(), population, Cohorts(((0, 1),)))
    states, log = run(star, server)
    initial = normed().init(0)
    for name in LOCAL:
        assert torch.equal(states[-1].streams["model"][name], initial[name])
        assert not torch.equal(states[0].own.value[name], states[1].own.value[name])
    index = star.algorithm.select(None, star.algorithm.client_init(star.site(2)), star.site(2))
    assert not LOCAL & index.shapes.keys()
    assert log.of("commit")


@pytest.mark.parametrize(
    "inner",
    [
        FedAvg(LocalTraining(SGD(0.1), batch_size=2)),
        FedProx(0.5, LocalTraining(SGD(0.1), batch_size=2)),
        Scaffold(LocalTraining(SGD(0.1), batch_size=2)),
    ],
)
def test_without_batchnorm_it_is_the_inner_algorithm(inner):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 2).double()

        def forward(self, x):
            return self.out(x)

    model, population = Model(Plain, CrossEntropy()), shifted()
    ends = [
        run(star_of(a, model, population, everybody(population, 2)))[0][-1].streams for a in (inner, LocalOnly(inner))
    ]
    for stream in ends[0]:
        assert all(torch.equal(ends[0][stream][n], ends[1][stream][n]) for n in ends[0][stream])


@pytest.mark.parametrize("inner", [FedProx(0.5, full_batch(3)), Scaffold(full_batch(3))])
def test_own_values_are_neither_pulled_nor_shifted(inner):
    """In the second round the two terms differ from zero; a run with everything else frozen shows only kept values."""
    population = shifted()
    states, _ = played(LocalOnly(inner), ((0, 1, 2), (0, 1, 2)), population)
    assert all(bool(torch.isfinite(t).all()) for t in states[0].own.value.values())
    number = LocalOnly(inner, names=("w",))
    alone = parabolas()
    states, _ = run(star_of(number, number_model(), alone, everybody(alone, 2)))
    v = 0.0
    for _ in range(6):
        v -= 0.1 * 3 * (v - 4)
    assert float(states[1].own.value["w"]) == pytest.approx(v, abs=1e-13)


@dataclass(frozen=True)
class Spiked(Algorithm):
    """FedAvg with a parameter that one client's gradient is not finite in, in one version."""

    inner: FedAvg
    name: str

    def plan(self, held, index, task, own, site):
        plan = self.inner.plan(held, index, task, own, site)
        bad = task.version == 1 and site.client == 0
        return replace(plan, gradient=(lambda p, g, step: {**g, self.name: g[self.name] * math.inf},)) if bad else plan


@pytest.mark.parametrize(("name", "is_refused"), [("shared", True), ("kept", False)])
def test_a_task_without_a_finite_result_leaves_what_stays_as_it_was(name, is_refused):
    """Each number is halfway to 8 after a step: 4, 6, 7; a client that lost one is a step behind."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Parameter(torch.zeros(1, dtype=torch.float64))
            self.kept = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, to):
            return ((self.shared - to) ** 2 + (self.kept - to) ** 2).sum(1) / 2

    model = Model(Two, lambda outputs, batch: outputs, inputs=("to",))
    population = Clients([{"to": torch.tensor([[8.0]], dtype=torch.float64)} for _ in range(2)])
    algorithm = LocalOnly(Spiked(FedAvg(full_batch(1, lr=0.5)), name), names=("kept",))
    star = star_of(algorithm, model, population, everybody(population, 3))
    states, log = run(star, lambda world: [float(world.state(i).own.value["kept"]) for i in (0, 1)])
    assert log.seen == [[4, 4], [4, 6], [6, 7]]
    assert [event["version"] for event in log.of("refused")] == [1] * is_refused
    assert len(log.of("reply")) == 6 - is_refused
    assert states[-1].streams["model"]["shared"].tolist() == [7]


def test_personalize_is_what_is_used():
    algorithm = LocalOnly(FedAvg(full_batch(2)))
    states, _ = played(algorithm, ((0,), (0, 1)))
    params = states[-1].streams["model"]
    used = algorithm.personalize(dict(params), states[0].own)
    assert used.keys() == params.keys()
    assert all(torch.equal(used[n], states[0].own.value[n]) for n in LOCAL)
    assert torch.equal(used["out.weight"], params["out.weight"])
    never_asked = algorithm.personalize(dict(params), None)
    assert all(torch.equal(never_asked[n], normed().init(2)[n]) for n in LOCAL)


def test_with_submodels():
    class Recommender(nn.Module):
        def __init__(self):
            super().__init__()
            self.items, self.norm, self.out = nn.Embedding(9, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, ids):
            return self.out(self.norm(self.items(ids)))

    rows = [{"ids": torch.tensor(i), "y": torch.tensor([0, 1, 1])} for i in ([1, 1, 4], [4, 7, 7])]
    model = Model(Recommender, CrossEntropy(), inputs=("ids",), tables={"items.weight": ("ids",)})
    population = Clients(rows)
    star = star_of(LocalOnly(FedSubAvg("heat", full_batch(1))), model, population, everybody(population, 2))
    states, log = run(star)
    assert not log.of("lost")
    moved = (states[-1].streams["model"]["items.weight"] != model.init(0)["items.weight"]).any(1)
    assert moved.nonzero().flatten().tolist() == [1, 4, 7]


def test_state_survives_the_codec():
    states, _ = played(LocalOnly(Scaffold(full_batch(1))), ((0,),))
    again = decode(encode(states[0].own))
    assert again.value.keys() == LOCAL
    assert torch.equal(again.value["downsample.running_var"], states[0].own.value["downsample.running_var"])
    assert type(again.inner) is type(states[0].own.inner)


def test_messages():
    population = shifted()
    star = star_of(LocalOnly(FedAvg(), names=("out.wieght",)), normed(), population, Cohorts(((0,),)))
    with pytest.raises(
        ValueError, match=r"must name parameters of the model, got 'out.wieght'. Did you mean 'out.weight'\?"
    ):
        star.algorithm.client_init(star.site(0))
    star = star_of(LocalOnly(FedAvg(), names=("zzz",)), normed(), population, Cohorts(((0,),)))
    with pytest.raises(ValueError, match=r"got 'zzz'. The model has \['bn.bias'"):
        star.algorithm.client_init(star.site(0))


def test_a_thinned_layer_cannot_stay():
    widths = {
        "first.weight": ("h", None),
        "first.bias": ("h",),
        **dict.fromkeys(LOCAL, ("h",)),
        "out.weight": (None, "h"),
    }
    population = shifted()
    population.profiles = {0: Profile(width=0.5)}
    star = star_of(LocalOnly(HeteroFL()), Model(Normed, CrossEntropy(), widths=widths), population, Cohorts(((0,),)))
    _, log = run(star)
    assert (
        "LocalOnly(HeteroFL): what stays on a client is whole, but 'downsample.bias' belongs"
        in log.of("lost")[0]["reason"]
    )


def test_what_the_algorithm_inside_needs_holds_around_it():
    with pytest.raises(CompositionError, match="can only add what was begun from the version that it is added to"):
        star_of(LocalOnly(Ferret()), number_model(), parabolas(), FedBuff(buffer=1, concurrency=2))
    deniable = Deniable(FedAvg())
    assert deniable.discloses()
    assert LocalOnly(deniable).discloses() == deniable.discloses()
    assert LocalOnly(FedAvg()).is_personal
    assert not LocalOnly(FedAvg()).sends_change


class WideAndDeep(nn.Module):
    """Two tables that one column of ids, or each its own, looks up."""

    def __init__(self):
        super().__init__()
        self.wide, self.deep = nn.Embedding(9, 2), nn.Embedding(9, 2)

    def forward(self, ids, again):
        return self.wide(ids) + self.deep(again)


def wide_and_deep(names, inner, deep="ids"):
    """A round of two clients with the rows 5 and 7, and 7 and 8: the world at its end, and what was lost."""
    tables = {"wide.weight": ("ids",), "deep.weight": (deep,)}
    model = Model(WideAndDeep, CrossEntropy(), inputs=("ids", deep), tables=tables)
    rows = [{"ids": torch.tensor(i), "again": torch.tensor(i), "y": torch.tensor([0, 1])} for i in ([5, 7], [7, 8])]
    population = Clients(rows)
    states, log = run(star_of(LocalOnly(inner, names=names), model, population, everybody(population, 1)))
    first = model.init(0)
    moved = [
        {name: (t != first[name]).any(1).nonzero().flatten().tolist() for name, t in states[i].own.value.items()}
        for i in (0, 1)
    ]
    return moved, [event["reason"] for event in log.of("lost")]


def test_a_table_that_stays_is_looked_up_by_its_own_ids():
    by_rows, both = FedSubAvg("count", full_batch(1)), ("wide.weight", "deep.weight")
    for names, inner, deep in (
        (("wide.weight",), FedAvg(full_batch(1)), "ids"),
        (("wide.weight",), by_rows, "again"),
        (both, by_rows, "ids"),
    ):
        moved, lost = wide_and_deep(names, inner, deep)
        assert not lost
        assert moved == [dict.fromkeys(names, own) for own in ([5, 7], [7, 8])]


@pytest.mark.parametrize(("names", "deep"), [(("wide.weight",), "again"), (("wide.weight", "deep.weight"), "ids")])
def test_a_table_that_stays_needs_no_denial(names, deep):
    """Who says what it holds, and nothing else, trains the rows that its examples touch."""
    moved, lost = wide_and_deep(names, Deniable(FedSubAvg("count", full_batch(1)), (Level(1, 0, 1, 0),)), deep)
    assert not lost
    assert moved == [dict.fromkeys(names, own) for own in ([5, 7], [7, 8])]


def test_a_table_that_stays_shares_no_ids_with_one_held_by_rows():
    """They would be renumbered to the rows that are held, 0 and 1, which are others of the table that is whole."""
    _, lost = wide_and_deep(("wide.weight",), FedSubAvg("count", full_batch(1)))
    assert len(lost) == 2
    said = r"LocalOnly\(FedSubAvg\): .* is whole, but the ids 'ids' of 'wide.weight' are those of 'deep.weight' too"
    assert all(re.search(said, reason) for reason in lost)


@pytest.mark.parametrize(
    "inner",
    [Ferret(), OneByte(2), FedRank(), Downlink(FedAvg(), Sign()), Mirrored(SignMomentum(FedAvg(), 0.1), Sign())],
    ids=lambda part: type(part).__name__,
)
def test_who_makes_the_model_alone_keeps_nothing_of_it(inner):
    star = star_of(LocalOnly(inner, names=("first.weight",)), normed(), shifted(), Synchronous(cohort=1))
    said = rf"LocalOnly\({type(inner).__name__}\): keeps 'downsample.bias' from an algorithm whose clients make"
    with pytest.raises(CompositionError, match=said):
        star.algorithm.client_init(star.site(0))


def test_what_is_fetched_compressed_may_be_less_than_the_model():
    population, inner = shifted(), LocalOnly(FedAvg(full_batch(2)))
    star = star_of(Downlink(inner, Quantize(8)), normed(), population, everybody(population, 3))
    states, log = run(star)
    assert not log.of("lost")
    assert states[0].own.inner.value.keys() == LOCAL


@pytest.mark.parametrize("gradient", [None, Identity()])
def test_cser_drifts_in_what_is_shared(gradient):
    """One step in a round, without loss: each client's shared and own values are those of local SGD."""
    population, cohorts = shifted(), ((0, 1), (0, 1))
    part = CSER(gradient, Identity(), every=2, local=full_batch(1))
    states, log = played(LocalOnly(part), cohorts, population)
    first, own = normed().init(2), [{n: normed().init(2)[n] for n in LOCAL} for _ in range(2)]
    shared, steps = [dict(first), dict(first)], 1 if gradient else 2
    for _ in range(2 // steps):
        ends = [plain_training({**shared[i], **own[i]}, population.columns[i], steps, 0.1) for i in (0, 1)]
        own = [{n: end[n] for n in LOCAL} for end in ends]
        mean = {n: (ends[0][n] + ends[1][n]) / 2 for n in first.keys() - LOCAL}
        shared = [mean, mean]
    assert not log.of("lost")
    for n in first.keys() - LOCAL:
        torch.testing.assert_close(states[-1].streams["model"][n], shared[0][n], rtol=0, atol=1e-12)
    used = LocalOnly(part).personalize(dict(states[-1].streams["model"]), states[1].own)
    for n in LOCAL:
        torch.testing.assert_close(used[n], own[1][n], rtol=0, atol=1e-12)


def test_adaalter_has_no_squares_of_what_stays():
    _, log = run(star_of(LocalOnly(AdaAlter()), normed(), shifted(), Cohorts(((0,),))))
    said = log.of("lost")[0]["reason"]
    assert "LocalOnly(AdaAlter): keeps 'downsample.bias' from an algorithm whose clients need all of the model." in said
