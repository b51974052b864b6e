"""Federated rank learning: submodels.md §H."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from partwise.algorithms import FedRank
from partwise.attacks import Hostile, ReversedVote, SignFlip
from partwise.channels import Masked, Plain
from partwise.core.algorithm import Site, Task
from partwise.core.errors import CompositionError
from partwise.core.metrics import Accuracy
from partwise.core.model import CrossEntropy, Model, like
from partwise.core.plan import Trained
from partwise.core.population import Examples, Profile
from partwise.core.program import SERVER
from partwise.core.workload import Workload
from partwise.experiment.evaluate import Evaluation
from partwise.experiment.experiment import Experiment
from partwise.local import SGD, LocalTraining
from partwise.populations import Dirichlet, from_partition
from partwise.programs.star import Star
from partwise.runtimes import Processes, Simulate
from partwise.schedulers import FedBuff, Synchronous
from toy_federation import LOCAL, play, star
from toy_star import Clients, Log

VOTES = ([2, 3, 0, 5, 1, 4], [3, 2, 5, 0, 4, 1], [0, 2, 3, 1, 5, 4])
REVERSE = [4, 1, 5, 0, 3, 2]
TASK = Task(0, 0, 0, 0)


def six_edges() -> Site:
    """A client of a layer with six edges."""
    model = Model(lambda: nn.Linear(3, 2, bias=False), CrossEntropy())
    return site_of(model, {"x": torch.ones(1, 3), "y": torch.zeros(1, dtype=torch.int64)})


def site_of(model: Model, columns: dict[str, torch.Tensor], seed: int = 3) -> Site:
    return Site(0, model, like(model.init(seed)), Examples(columns), Profile(), seed)


def asked(part: FedRank, state, site: Site):
    """What a client gets."""
    index = part.select(TASK, None, site)
    streams = part.fetch(index, TASK, None, site)
    held = part.receive({s: at.gather(state[s]) for s, at in streams.items()}, index, TASK, None, site)
    return index, held


def voted(part: FedRank, state, site: Site, orders):
    """The state after clients have ended with scores of these orders, given from the lowest edge to the highest."""
    updates = []
    for order in orders:
        index, held = asked(part, state, site)
        ends = torch.empty(6)
        ends[torch.tensor(order)] = torch.tensor([-7.0, -2.5, -2.0, 0.3, 0.4, 90.0])
        change = {"weight": ends.reshape(2, 3) - held["model"]["weight"]}
        given, own = part.finish(held, Trained(change, 1, 0.0), index, TASK, None, site)
        assert own is None
        assert given["places"].weight == 1.0
        updates.append(given["places"])
    rule = part.aggregators()["places"]
    total, _ = rule.reduce(updates, rule.init(state["places"], None), state["places"])
    return part.commit(state, {"places": total}, [])


def fresh(part: FedRank, site: Site):
    return part.init(site.model.init(site.seed), None)


def order_of(state) -> list[int]:
    return state["places"]["weight"].reshape(-1).argsort().tolist()


def used(state) -> list[int]:
    return state["model"]["weight"].reshape(-1).nonzero().reshape(-1).tolist()


@pytest.mark.parametrize("orders", [VOTES, VOTES[::-1], (*VOTES, REVERSE)])
def test_votes_of_the_table(orders):
    """Of three clients in any order; an adversary with the reverse vote changes nothing."""
    site = six_edges()
    after = voted(FedRank(), fresh(FedRank(), site), site, orders)
    assert order_of(after) == [2, 3, 0, 5, 1, 4]
    assert used(after) == [1, 4, 5]


def test_by_the_size_of_scores_both_ends_are_used():
    """Sigma's sizes are 1, 3, 5, 3, 5, 1 by edge: of the two 3s the edge with the higher number is used."""
    site, part = six_edges(), FedRank(abs_scores=True)
    after = voted(part, fresh(part, site), site, VOTES)
    assert order_of(after) == [2, 3, 0, 5, 1, 4]
    assert used(after) == [2, 3, 4]


def test_one_client_decides_alone_and_nobody_changes_nothing():
    site, part = six_edges(), FedRank()
    assert order_of(voted(part, fresh(part, site), site, [VOTES[1]])) == VOTES[1]
    assert order_of(voted(part, fresh(part, site), site, [VOTES[1]] * 5)) == VOTES[1]
    before = fresh(part, site)
    places = before["places"]["weight"].clone()
    index, held = asked(part, before, site)
    nothing = Trained({"weight": torch.zeros(2, 3)}, 0, 0.0)
    given, _ = part.finish(held, nothing, index, TASK, None, site)
    assert not given["places"].values()["weight"].any()
    assert torch.equal(before["places"]["weight"], places)


def test_scores_are_sigma_at_the_places_before_and_after_a_vote():
    site, part = six_edges(), FedRank()
    state = fresh(part, site)
    sigma = [(2 * p - 5) / 6 / math.sqrt(3) for p in range(6)]
    for orders in (VOTES[:1], VOTES, [REVERSE]):
        _, held = asked(part, state, site)
        assert sorted(held["model"]["weight"].reshape(-1).tolist()) == pytest.approx(sigma)
        state = voted(part, state, site, orders)
        scores = asked(part, state, site)[1]["model"]["weight"].reshape(-1)
        assert scores.argsort().tolist() == order_of(state)


class Two(nn.Module):
    """Two layers of five and eight edges, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 5, bias=False), nn.Linear(5, 2)

    def forward(self, x):
        return self.second(self.first(x).relu())


def some(n: int = 12) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(n)
    x = torch.randn(n, 1, generator=draw)
    return {"x": x, "y": (x[:, 0] > 0).long()}


def test_the_fixed_network():
    """Signs of the model's first weights, one size for each layer; all of it with keep = 1; biases as they begin."""
    model = Model(Two, CrossEntropy())
    first = model.init(3)
    whole = FedRank(keep=1.0).init(first, None)["model"]
    for name, fan_in in (("first.weight", 1), ("second.weight", 5)):
        wanted = [math.copysign(math.sqrt(2 / fan_in), w) for w in first[name].reshape(-1).tolist()]
        assert whole[name].reshape(-1).tolist() == pytest.approx(wanted)
    assert torch.equal(whole["second.bias"], first["second.bias"])
    half = FedRank(gain=3.0).init(first, None)["model"]
    sizes = first["second.weight"].abs().reshape(-1).tolist()
    largest = sorted(range(10), key=sizes.__getitem__)[5:]
    kept = half["second.weight"].reshape(-1)
    assert kept.nonzero().reshape(-1).tolist() == sorted(largest)
    assert kept.abs().max() == pytest.approx(3 / math.sqrt(5))
    other = Model(Two, CrossEntropy()).init(4)
    assert not torch.equal(FedRank().init(other, None)["model"]["second.weight"], half["second.weight"])


def test_ranks_are_of_each_layer():
    state = FedRank(keep=0.4).init(Model(Two, CrossEntropy()).init(3), None)
    assert sorted(state["places"]["first.weight"].reshape(-1).tolist()) == list(range(5))
    assert sorted(state["places"]["second.weight"].reshape(-1).tolist()) == list(range(10))
    assert [int(state["model"][n].count_nonzero()) for n in ("first.weight", "second.weight")] == [2, 4]


def run(part: FedRank, columns, rounds: int):
    star = Star(part, Synchronous(len(columns), rounds=rounds), Model(Two, CrossEntropy()), Clients(columns), Plain())
    states, reason = Simulate().run(star.programs(), star.population, Log())
    assert reason == "done"
    return star, states[SERVER].streams


def test_one_client_is_trained_as_by_hand():
    """Two steps on all examples, with momentum and decay: plain loops over scores, and what they are ranked by."""
    columns = some()
    local = LocalTraining(SGD(0.3, momentum=0.9, weight_decay=0.01), batch_size=0, steps=2)
    star, streams = run(FedRank(local), [columns], 1)
    first = {n: t.double() for n, t in star.initial().items()}
    theta, scores, moments = {}, {}, {}
    for name, fan_in in (("first.weight", 1), ("second.weight", 5)):
        w = first[name].reshape(-1).tolist()
        n = len(w)
        by_size = sorted(range(n), key=lambda e, w=w: abs(w[e]))
        theta[name] = [math.copysign(math.sqrt(2 / fan_in), v) for v in w]
        scores[name] = [(2 * by_size.index(e) + 1 - n) / n / math.sqrt(fan_in) for e in range(n)]
        moments[name] = [0.0] * n
    x, y, bias = columns["x"][:, 0].tolist(), columns["y"].tolist(), first["second.bias"].tolist()
    for _ in range(2):
        net = {}
        for name, s in scores.items():
            top = sorted(range(len(s)), key=s.__getitem__)[len(s) - round(len(s) / 2) :]
            net[name] = [t * (e in top) for e, t in enumerate(theta[name])]
        grads = gradients(net["first.weight"], net["second.weight"], bias, x, y)
        for name, s in scores.items():
            for e in range(len(s)):
                moments[name][e] = 0.9 * moments[name][e] + grads[name][e] * theta[name][e] + 0.01 * s[e]
                s[e] -= 0.3 * moments[name][e]
    for name, s in scores.items():
        wanted = sorted(range(len(s)), key=s.__getitem__)
        assert streams["places"][name].reshape(-1).argsort().tolist() == wanted


def gradients(one, two, bias, x, y):
    by_one, by_two = [0.0] * 5, [0.0] * 10
    for value, label in zip(x, y, strict=True):
        hidden = [max(0.0, w * value) for w in one]
        logits = [sum(two[5 * c + j] * hidden[j] for j in range(5)) + bias[c] for c in range(2)]
        norm = sum(map(math.exp, logits))
        slope = [(math.exp(logits[c]) / norm - (c == label)) / len(x) for c in range(2)]
        for j in range(5):
            for c in range(2):
                by_two[5 * c + j] += slope[c] * hidden[j]
                by_one[j] += slope[c] * two[5 * c + j] * value * (hidden[j] > 0)
    return {"first.weight": by_one, "second.weight": by_two}


def test_what_is_not_a_vote_does_not_count():
    """Flipped signs are no places: the others decide."""
    columns = [some(12), some(9), some(15)]
    local = LocalTraining(SGD(0.3), batch_size=4)
    star = Star(
        FedRank(local),
        Synchronous(3, rounds=2),
        Model(Two, CrossEntropy()),
        Clients(columns),
        Plain(),
        hostile=Hostile(SignFlip(5.0), clients=(1,)),
    )
    states, _ = Simulate().run(star.programs(), star.population, Log())
    places = states[SERVER].streams["places"]
    assert sorted(places["second.weight"].reshape(-1).tolist()) == list(range(10))


def test_processes_come_to_the_same_bits():
    of = [star("fedavg", algorithm=FedRank(LOCAL)) for _ in range(2)]
    here, _ = play(Simulate(), of[0])
    there, _ = play(Processes(workers=2), of[1])
    assert here == there


# ---- it learns ------------------------------------------------------------------------------------------------------


def groups(seed: int) -> Workload:
    """Ten clusters in 24 dimensions, two for each of five classes; a fifth of them is chance."""
    draw = torch.Generator().manual_seed(7)
    centres = torch.randn(10, 24, generator=draw)

    def examples(n: int) -> dict[str, torch.Tensor]:
        at = torch.randint(10, (n,), generator=draw)
        return {"x": centres[at] + torch.randn(n, 24, generator=draw), "y": at % 5}

    train, test = examples(600), Examples(examples(500))
    people = from_partition(train, Dirichlet(10, alpha=1.0), seed=seed, central_test=test)
    layers = lambda: nn.Sequential(nn.Linear(24, 48, bias=False), nn.ReLU(), nn.Linear(48, 5))  # noqa: E731
    return Workload(Model(layers, CrossEntropy()), people, (Accuracy(),))


def accuracies(folder, seed: int, **more) -> list[float]:
    made = Experiment(
        groups(seed), FedRank(), Synchronous(10, rounds=8), seed=seed, evaluation=Evaluation(every=8), **more
    )
    return [row["value"] for row in made.run(folder).table("accuracy", "central")]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_network_learns_without_a_weight_being_trained(tmp_path, seed):
    begin, end = accuracies(tmp_path / "clean", seed)
    assert begin < 0.45
    assert end > 0.75
    _, attacked = accuracies(tmp_path / "attacked", seed, hostile=Hostile(ReversedVote(), share=0.2))
    assert attacked > 0.65


def test_what_is_saved_is_the_network(tmp_path):
    """The result's parameters are the model's own, half of each layer's edges 0 and the others of one size."""
    made = Experiment(groups(1), FedRank(), Synchronous(10, rounds=1))
    weight = made.run(tmp_path / "run").params["0.weight"]
    assert int(weight.count_nonzero()) == 24 * 48 // 2
    assert weight.abs().unique().tolist() == pytest.approx([0.0, math.sqrt(2 / 24)])


# ---- what is refused ------------------------------------------------------------------------------------------------


class Zeros(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head(x)


def test_refusals():
    for make, says in (
        (lambda: FedRank(keep=0.0), r"FedRank\(keep=0\.0\): must lie in \(0, 1\], got 0\.0\. 0\.5 is usual\."),
        (lambda: FedRank(keep=1.1), r"FedRank\(keep=1\.1\): must lie in \(0, 1\]"),
        (lambda: FedRank(gain=0.0), r"FedRank\(gain=0\.0\): must be above 0, got 0\.0\."),
        (
            lambda: FedRank().init({"bias": torch.ones(3)}, None),
            r"FedRank\(\): needs a parameter of two axes or more to rank, got \['bias'\]\. Use FedAvg\.",
        ),
        (
            lambda: FedRank().init(Model(Zeros, CrossEntropy()).init(0), None),
            r"takes the signs of its fixed weights .* got 'head\.weight', which begins at 0 everywhere\.",
        ),
        (
            lambda: FedRank().init({"w": torch.ones(1).expand(1 << 12, (1 << 12) + 1)}, None),
            r"ranks parameters of 1 to 16777216 edges, got 'w' with 16781312\. Divide the layer",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            make()


def test_running_statistics_are_named_by_every_client():
    layers = lambda: nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))  # noqa: E731
    site = site_of(Model(layers, CrossEntropy()), some())
    index, held = asked(FedRank(), fresh(FedRank(), site), site)
    with pytest.raises(ValueError, match=r"got the buffers \['1\.running_mean', '1\.running_var'\]\. Build the model"):
        FedRank().plan(held, index, TASK, None, site)


def test_a_client_that_diverges_does_not_vote():
    site, part = six_edges(), FedRank()
    index, held = asked(part, fresh(part, site), site)
    wild = Trained({"weight": torch.full((2, 3), math.nan)}, 1, 0.0)
    with pytest.raises(ValueError, match=r"client 0: scores must be finite, got others\. Lower the learning rate\."):
        part.finish(held, wild, index, TASK, None, site)


def test_votes_are_of_one_version_and_seen_by_the_server():
    model, people = Model(Two, CrossEntropy()), Clients([some(), some(9)])
    with pytest.raises(CompositionError, match="can only add what was begun from the version that it is added to"):
        Star(FedRank(), FedBuff(1, 2), model, people, Plain())
    with pytest.raises(CompositionError, match=r"RankVote\(\): needs each update of stream 'places'"):
        Star(FedRank(), Synchronous(2), model, people, Masked())
