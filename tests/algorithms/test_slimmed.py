"""HeteroFL, Federated Dropout and FjORD, against counts, enumerations and forward passes written out."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partwise.algorithms import FedAvg, FederatedDropout, FjORD, HeteroFL
from partwise.algorithms.widths import thin
from partwise.core.aggregate import sum_updates
from partwise.core.algorithm import Site, Task
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.mean import Mean
from partwise.core.model import CrossEntropy, Model, like
from partwise.core.plan import Trained
from partwise.core.population import Examples, Profile
from partwise.core.update import Update
from partwise.local import SGD, LocalTraining
from toy_star import Clients, Cohorts, everybody, full_batch, run, star_of

TASK = Task(0, 0, 0, 0)


def site_of(model, width=1.0, client=0, seed=3, examples=1):
    rows = Examples({"x": torch.zeros(examples, 1), "y": torch.zeros(examples, dtype=torch.int64)})
    return Site(client, model, like(model.init(seed)), rows, Profile(width=width), seed)


class Convolution(nn.Module):
    """1 x 6 x 6 to three classes: a convolution, a pooling to 2 x 2, a flattening, a hidden layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(1, 5, 3), nn.Linear(20, 6), nn.Linear(6, 3)
        self.double()

    def forward(self, x):
        return self.out(self.fc(F.max_pool2d(self.conv(x).tanh(), 2).flatten(1)).tanh())


WIDTHS = {
    "conv.weight": ("conv", None, None, None),
    "conv.bias": ("conv",),
    "fc.weight": ("fc", "conv*4"),
    "fc.bias": ("fc",),
    "out.weight": (None, "fc"),
}


def convolution():
    return Model(Convolution, CrossEntropy(), widths=WIDTHS)


def images(sizes=(4, 3, 6), widths=(1.0, 0.5, 0.25)):
    rng = torch.Generator().manual_seed(1)
    return Clients(
        [
            {"x": torch.randn(n, 1, 6, 6, generator=rng).double(), "y": torch.randint(3, (n,), generator=rng)}
            for n in sizes
        ],
        {i: Profile(width=w) for i, w in enumerate(widths)},
    )


def final(algorithm, model, population, rounds=2):
    states, log = run(star_of(algorithm, model, population, everybody(population, rounds), seed=4))
    assert not log.of("lost")
    return states[-1].streams["model"]


def slices(conv, fc):
    """What a client that keeps these units holds, by hand."""
    flat = [4 * c + j for c in conv for j in range(4)]
    return {
        "conv.weight": (conv,),
        "conv.bias": (conv,),
        "fc.weight": (fc, flat),
        "fc.bias": (fc,),
        "out.weight": (range(3), fc),
        "out.bias": (range(3),),
    }


def cut(tensor, at):
    for axis, places in enumerate(at):
        tensor = tensor.index_select(axis, torch.tensor(list(places)))
    return tensor


def by_hand(params, batch, *, divide=1.0, dropout=1.0):
    """The loss of a thin model: outputs of hidden maps over `divide`, activations over `dropout`."""
    h = F.conv2d(batch["x"], params["conv.weight"], params["conv.bias"]) / divide
    h = F.max_pool2d(h.tanh(), 2).flatten(1) / dropout
    h = ((h @ params["fc.weight"].T + params["fc.bias"]) / divide).tanh() / dropout
    return F.cross_entropy(h @ params["out.weight"].T + params["out.bias"], batch["y"])


def trained_by_hand(start, at, batch, steps, lr, **how):
    """Update of a client, whole shapes with zeros, and where it held something."""
    held = {n: cut(t, at[n]).clone() for n, t in start.items()}
    before = {n: t.clone() for n, t in held.items()}
    for _ in range(steps):
        leaves = {n: t.clone().requires_grad_() for n, t in held.items()}
        grads = torch.autograd.grad(by_hand(leaves, batch, **how), list(leaves.values()))
        held = {n: t - lr * g for (n, t), g in zip(held.items(), grads, strict=True)}
    delta, mask = {}, {}
    for n, t in start.items():
        delta[n], mask[n] = torch.zeros_like(t), torch.zeros_like(t)
        places = torch.meshgrid(*(torch.tensor(list(p)) for p in at[n]), indexing="ij")
        delta[n][places], mask[n][places] = held[n] - before[n], 1.0
    return delta, mask


# HeteroFL


class Published(nn.Module):
    """The MNIST network of the HeteroFL paper."""

    def __init__(self, hidden=(64, 128, 256, 512)):
        super().__init__()
        sizes = (1, *hidden)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 1, 1) for i, o in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o, momentum=None, track_running_stats=False) for o in hidden)
        self.out = nn.Linear(hidden[-1], 10)

    def forward(self, x):
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x)).relu()
            x = F.max_pool2d(x, 2) if i < 3 else x.mean((2, 3))
        return self.out(x)


def published():
    widths = {"out.weight": (None, "3")}
    for i in range(4):
        widths[f"convs.{i}.weight"] = (str(i), str(i - 1) if i else None, None, None)
        widths |= {
            f"{part}.{i}.{kind}": (str(i),)
            for part, kind in (("convs", "bias"), ("norms", "weight"), ("norms", "bias"))
        }
    return Model(Published, CrossEntropy(), widths=widths)


def test_heterofl_published_parameter_counts():
    model, counts = published(), []
    for ratio in (1.0, 0.5, 0.25, 0.125, 0.0625):
        site = site_of(model, ratio)
        index = HeteroFL().select(TASK, None, site)
        held = {name: index.held_shape(name) for name in index.shapes}
        counts.append(sum(torch.Size(shape).numel() for shape in held.values()))
    assert counts == [1_556_874, 391_370, 98_922, 25_274, 6_594]


def test_heterofl_published_network_runs_at_every_width():
    model = published()
    rows = {"x": torch.arange(1568.0).sin().reshape(2, 1, 28, 28), "y": torch.tensor([1, 7])}
    population = Clients([rows] * 2, {0: Profile(width=0.125), 1: Profile(width=0.0625)})
    _, log = run(star_of(HeteroFL(full_batch(1)), model, population, everybody(population, 1)))
    assert len(log.of("reply")) == 2


class Square(nn.Module):
    """A 4 x 4 weight whose update is the client's number."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.arange(16.0, dtype=torch.float64).reshape(4, 4))

    def forward(self, g):
        return g * self.w.sum()


def minus(outputs, batch):
    return -outputs


def test_heterofl_nested_blocks():
    """A adds 1 everywhere, B adds 3 to its block: 2 in the block, 1 elsewhere."""
    model = Model(Square, minus, inputs=("g",), widths={"w": ("rows", "columns")})
    population = Clients(
        [{"g": torch.tensor([1.0], dtype=torch.float64)}, {"g": torch.tensor([3.0, 3.0], dtype=torch.float64)}],
        {1: Profile(width=0.5)},
    )
    change = final(HeteroFL(full_batch(1, lr=1.0)), model, population, rounds=1)["w"] - Square().w.detach()
    wanted = torch.ones(4, 4, dtype=torch.float64)
    wanted[:2, :2] = 2
    assert torch.equal(change, wanted)


def test_heterofl_what_nobody_holds_is_untouched():
    model = convolution()
    population = images(widths=(0.5, 0.5, 0.25))
    before, after = model.init(4), final(HeteroFL(full_batch(2)), model, population)
    assert torch.equal(after["fc.weight"][3:], before["fc.weight"][3:])
    assert torch.equal(after["conv.bias"][3:], before["conv.bias"][3:])
    assert not torch.equal(after["conv.bias"][:3], before["conv.bias"][:3])


def test_heterofl_at_full_width_is_fedavg_with_uniform_weights():
    local = LocalTraining(SGD(0.1, momentum=0.9), batch_size=2)
    population = images(widths=(1.0, 1.0, 1.0))
    one = final(HeteroFL(local), convolution(), population)
    other = final(FedAvg(local, "uniform"), convolution(), population)
    assert all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("scaler", [True, False])
def test_heterofl_round_equals_slices_by_hand(scaler):
    model, population = convolution(), images()
    start = model.init(4)
    total = {n: torch.zeros_like(t) for n, t in start.items()}
    holders = {n: torch.zeros_like(t) for n, t in start.items()}
    for i, (ratio, conv, fc) in enumerate([(1.0, 5, 6), (0.5, 3, 3), (0.25, 2, 2)]):
        how = {"divide": ratio} if scaler else {}
        at = slices(range(conv), range(fc))
        delta, mask = trained_by_hand(start, at, population.columns[i], 3, 0.1, **how)
        for n in start:
            total[n] += delta[n]
            holders[n] += mask[n]
    got = final(HeteroFL(full_batch(3), scaler), model, population, rounds=1)
    for n, t in start.items():
        torch.testing.assert_close(got[n], t + total[n] / holders[n], rtol=0, atol=1e-13)


def test_heterofl_redraws_widths():
    algorithm = HeteroFL(redraw=(1.0, 0.5, 0.25))
    site = site_of(convolution(), width=0.125)
    drawn = [algorithm.ratio(Task(v, v, 0, 0), site) for v in range(300)]
    assert {r: 60 < drawn.count(r) < 140 for r in (1.0, 0.5, 0.25)} == {1.0: True, 0.5: True, 0.25: True}
    assert drawn == [algorithm.ratio(Task(v, v, 0, 0), site) for v in range(300)]


# Federated Dropout


def test_dropout_that_keeps_all_is_fedavg():
    local = LocalTraining(SGD(0.1), batch_size=2)
    for estimator in ("count", "heat"):
        one = final(FederatedDropout(1.0, local, estimator=estimator), convolution(), images())
        other = final(FedAvg(local), convolution(), images())
        assert all(torch.equal(one[n], other[n]) for n in one)


def test_dropout_masks_follow_from_seed_round_and_client():
    model = convolution()

    def units(client, version, seed=3, **how):
        index = FederatedDropout(0.5, **how).select(
            Task(9, version, 0, 0), None, site_of(model, client=client, seed=seed)
        )
        return tuple(index.axes["conv.bias"][0].tolist()), tuple(index.axes["fc.bias"][0].tolist())

    assert units(0, 0) == units(0, 0)
    assert len({units(c, v) for c in range(5) for v in range(5)}) > 15
    assert len({units(0, v, seed=s) for v in range(3) for s in range(3)}) > 6
    assert len({units(c, 7, shared=True) for c in range(9)}) == 1
    assert len({units(0, v, shared=True) for v in range(9)}) > 5
    assert [len(kept) for kept in units(0, 0)] == [3, 3]


def test_dropout_round_equals_slices_by_hand():
    """Inverted dropout: what a hidden layer gives on is divided by q."""
    model, population, q = convolution(), images(), 0.6
    algorithm = FederatedDropout(q, full_batch(3))
    start = model.init(4)
    total = {n: torch.zeros_like(t) for n, t in start.items()}
    weight = {n: torch.zeros_like(t) for n, t in start.items()}
    for i, rows in enumerate(population.columns):
        index = algorithm.select(Task(i, 0, 0, 0), None, site_of(model, client=i, seed=4))
        conv, fc = index.axes["conv.bias"][0].tolist(), index.axes["fc.bias"][0].tolist()
        assert (len(conv), len(fc)) == (3, 4)
        delta, mask = trained_by_hand(start, slices(conv, fc), rows, 3, 0.1, dropout=q)
        for n in start:
            total[n] += len(rows["y"]) * delta[n]
            weight[n] += len(rows["y"]) * mask[n]
    got = final(algorithm, model, population, rounds=1)
    for n, t in start.items():
        torch.testing.assert_close(got[n], t + total[n] / weight[n].clamp(min=1), rtol=0, atol=1e-13)


def test_dropout_heat_form_is_unbiased_over_all_masks_and_cohorts():
    """One 4 x 3 map; every mask of 2 of 4 outputs and 2 of 3 inputs; every cohort of 2 of 3 clients."""
    model = Model(lambda: nn.Linear(3, 4, bias=False).double(), CrossEntropy(), widths={"weight": ("o", "i")})
    algorithm = FederatedDropout(0.5, estimator="heat", weights="uniform")
    site = site_of(model)
    deltas = [torch.arange(12.0, dtype=torch.float64).reshape(4, 3) * s + s**2 for s in (1, -2, 5)]
    params = {"weight": torch.zeros(4, 3, dtype=torch.float64)}
    masks = [
        thin(model, site.like, {"o": torch.tensor(o), "i": torch.tensor(i)})
        for o, i in product(combinations(range(4), 2), combinations(range(3), 2))
    ]

    def update(client, index):
        held = {"model": index.gather(params)}
        trained = Trained(index.gather({"weight": deltas[client]}), 1, 0.0)
        return algorithm.finish(held, trained, index, TASK, None, site)[0]["model"]

    updates = [[update(client, index) for index in masks] for client in range(3)]
    aggregator, total, cases = algorithm.aggregators()["model"], torch.zeros(4, 3, dtype=torch.float64), 0
    for a, b in combinations(range(3), 2):
        for one, other in product(updates[a], updates[b]):
            mean, _ = aggregator.reduce(sum_updates([one, other], params), (), params)
            mean.index.scatter_add_({"weight": total}, mean.values())
            cases += 1
    torch.testing.assert_close(total / cases, sum(deltas) / 3, rtol=0, atol=1e-12)


def test_dropout_covers_an_entry_with_the_product_of_both_chances():
    model, algorithm = convolution(), FederatedDropout(0.5)
    seen = torch.zeros(6, 20)
    for version in range(400):
        index = algorithm.select(Task(0, version, 0, 0), None, site_of(model))
        index.cover_(
            {n: seen if n == "fc.weight" else torch.zeros(t.shape) for n, t in site_of(model).like.items()}, 1.0
        )
    chance = 3 / 6 * 3 / 5
    assert float((seen / 400 - chance).abs().max()) < 5 * (chance * (1 - chance) / 400) ** 0.5


# FjORD


def test_fjord_with_one_width_is_fedavg():
    local, population = LocalTraining(SGD(0.1), batch_size=2), images(widths=(1.0, 1.0, 1.0))
    one = final(FjORD((1.0,), local), convolution(), population)
    other = final(FedAvg(local), convolution(), population)
    assert all(torch.equal(one[n], other[n]) for n in one)


def fjord_loss(width, distill=False, widths=(0.2, 0.4, 0.6, 0.8, 1.0)):
    model, algorithm = convolution(), FjORD(widths, distill=distill)
    site = site_of(model, width)
    index = algorithm.select(TASK, None, site)
    held = {"model": index.gather(model.init(3))}
    return algorithm.plan(held, index, TASK, None, site).loss, held["model"], images().columns[0]


@pytest.mark.parametrize(
    ("tier", "width", "chance"), [(0.6, 0.6, 1 / 3), (1.0, 0.6, 0.6), (1.0, 0.2, 1.0), (0.4, 0.4, 0.5)]
)
def test_fjord_chance_that_a_batch_covers_a_width(tier, width, chance):
    """P(p >= q) = number of widths in [q, p_max] over the number up to p_max; `conv` has one unit per 0.2."""
    loss, held, batch = fjord_loss(tier)
    rng, unit, draws, hits = torch.Generator().manual_seed(0), round(width * 5) - 1, 400, 0
    leaves = {n: t.requires_grad_() for n, t in held.items()}
    for _ in range(draws):
        (grad,) = torch.autograd.grad(loss(leaves, batch, rng), [leaves["conv.bias"]])
        assert grad.shape == (round(tier * 5),)
        hits += bool(grad[unit] != 0)
    assert hits / draws == pytest.approx(chance, abs=4.5 * (chance * (1 - chance) / draws) ** 0.5)


def test_fjord_output_of_a_width_depends_on_its_prefix_only():
    loss, held, batch = fjord_loss(1.0, widths=(0.4, 1.0))
    seeds = range(20)
    before = [float(loss(held, batch, torch.Generator().manual_seed(s))) for s in seeds]
    at = slices(range(2), range(3))
    torn = {n: t.clone().fill_(7.0) for n, t in held.items()}
    for n, t in torn.items():
        places = torch.meshgrid(*(torch.tensor(list(p)) for p in at[n]), indexing="ij")
        t[places] = held[n][places]
    after = [float(loss(torn, batch, torch.Generator().manual_seed(s))) for s in seeds]
    narrow = float(by_hand({n: cut(t, at[n]) for n, t in held.items()}, batch))
    same = [a == b for a, b in zip(after, before, strict=True)]
    assert all(b == pytest.approx(narrow) for b, kept in zip(before, same, strict=True) if kept)
    assert 4 <= sum(same) <= 16


def test_fjord_distils_the_held_width_into_the_drawn_one():
    loss, held, batch = fjord_loss(1.0, distill=True, widths=(0.4, 1.0))

    def logits(params):
        h = F.max_pool2d(F.conv2d(batch["x"], params["conv.weight"], params["conv.bias"]).tanh(), 2).flatten(1)
        h = (h @ params["fc.weight"].T + params["fc.bias"]).tanh()
        return h @ params["out.weight"].T + params["out.bias"]

    wide = logits(held)
    taught = logits({n: cut(t, slices(range(2), range(3))[n]) for n, t in held.items()})
    soft = [-(wide.softmax(1) * out.log_softmax(1)).sum(1).mean() for out in (taught, wide)]
    wanted = [float(F.cross_entropy(wide, batch["y"]) + s) for s in soft]
    found = {round(float(loss(held, batch, torch.Generator().manual_seed(s))), 12) for s in range(12)}
    assert sorted(found) == pytest.approx(sorted(wanted), abs=1e-11)


def test_fjord_mean_equals_overwriting_from_wide_to_narrow():
    """The order of the authors' code, coordinate by coordinate."""
    model, algorithm = convolution(), FjORD()
    tiers, sizes = (1.0, 0.6, 0.6, 0.2), (3, 1, 4, 2)
    rng = torch.Generator().manual_seed(2)
    updates, whole = [], []
    for tier, n in zip(tiers, sizes, strict=True):
        site = site_of(model, tier, examples=n)
        index = algorithm.select(TASK, None, site)
        value = {name: torch.randn(index.held_shape(name), generator=rng).double() for name in index.shapes}
        updates.append(Update(index, value, algorithm.weight(site)))
        whole.append(value)
    params = model.init(3)
    got, _ = algorithm.aggregators()["model"].reduce(sum_updates(updates, params), (), params)
    ours = {n: torch.zeros_like(t) for n, t in params.items()}
    got.index.scatter_add_(ours, got.values())
    wanted = {n: torch.zeros_like(t) for n, t in params.items()}
    for conv, fc, members in ((5, 6, [0]), (3, 4, [0, 1, 2]), (1, 2, [0, 1, 2, 3])):
        for n, t in wanted.items():
            at = tuple(slice(len(p)) for p in slices(range(conv), range(fc))[n])
            total = sum(sizes[i] * whole[i][n][at] for i in members)
            t[at] = total / sum(sizes[i] for i in members)
    for n in params:
        torch.testing.assert_close(ours[n], wanted[n], rtol=0, atol=1e-13)


def test_fjord_client_of_the_smallest_width_trains_a_thin_model():
    model, population = convolution(), images(sizes=(4,), widths=(0.5,))
    start = model.init(4)
    delta, _ = trained_by_hand(start, slices(range(2), range(3)), population.columns[0], 3, 0.1)
    got = final(FjORD((0.4, 0.9), full_batch(3)), model, population, rounds=1)
    for n, t in start.items():
        torch.testing.assert_close(got[n], t + delta[n], rtol=0, atol=1e-13)


# What they share


def test_means_are_over_holders():
    assert HeteroFL().aggregators() == FjORD().aggregators() == {"model": Mean("holders")}
    assert FederatedDropout().aggregators() == {"model": Mean("holders")}
    assert FederatedDropout(estimator="heat").aggregators() == {"model": Mean("cohort")}
    assert isinstance(HeteroFL().select(TASK, None, site_of(convolution())), Whole)


def test_running_statistics_of_a_thin_batchnorm_move():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm, self.out = nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.norm(self.fc(x)))

    names = [f"norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")]
    widths = {"fc.weight": ("h", None), "fc.bias": ("h",), "out.weight": (None, "h"), **dict.fromkeys(names, ("h",))}
    rows = {"x": torch.arange(16.0).reshape(8, 2) + 9, "y": torch.tensor([0, 1] * 4)}
    for algorithm in (HeteroFL(full_batch(2)), FjORD((0.25, 0.5), full_batch(8)), FederatedDropout(0.5, full_batch(2))):
        model = Model(Normed, CrossEntropy(), widths=widths)
        population = Clients([rows], {0: Profile(width=0.5)})
        after = final(algorithm, model, population, rounds=1)
        assert int((after["norm.running_mean"] != 0).sum()) == 2


def test_messages():
    with pytest.raises(ValueError, match=r"HeteroFL\(redraw=\(1\.5,\)\): must lie in \(0, 1\], got \(1\.5,\)"):
        HeteroFL(redraw=(1.5,))
    with pytest.raises(ValueError, match=r"FederatedDropout\(keep_prob=0\): must lie in \(0, 1\], got 0"):
        FederatedDropout(0)
    with pytest.raises(
        ValueError, match=r"FederatedDropout\(estimator='mean'\): must be 'count' or 'heat', got 'mean'"
    ):
        FederatedDropout(estimator="mean")
    with pytest.raises(ValueError, match=r"FederatedDropout\(weights='n'\): must be 'uniform' or 'samples', got 'n'"):
        FederatedDropout(weights="n")
    for widths in ((), (0.5, 0.2), (0.5, 0.5), (0.0, 1.0)):
        with pytest.raises(ValueError, match=r"FjORD\(widths=.*\): must ascend within \(0, 1\] without repeats, got"):
            FjORD(widths)
    with pytest.raises(ValueError, match=r"client 0 needs a width of at most 0\.1, got none\. Add a smaller width"):
        FjORD().select(TASK, None, site_of(convolution(), 0.1))


def test_a_model_without_widths_cannot_be_thinned():
    model = Model(Convolution, CrossEntropy())
    with pytest.raises(CompositionError, match=r"Model\(widths=\{\}\): a thinner model needs to know .* got none"):
        HeteroFL().select(TASK, None, site_of(model, 0.5))
    assert isinstance(HeteroFL().select(TASK, None, site_of(model)), Whole)


def test_one_cohort_of_many_widths_is_one_round():
    population = images()
    star = star_of(FjORD(local=full_batch(1)), convolution(), population, Cohorts(((0, 2),)))
    _, log = run(star)
    assert [r["client"] for r in log.of("reply")] == [0, 2]
