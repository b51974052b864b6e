"""Distillation against plain loops, and what is sent."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from partwise.algorithms import Distillation, FedAvg, LocalOnly
from partwise.algorithms.distillation import Taught
from partwise.channels import Masked
from partwise.core.algorithm import Task
from partwise.core.codec import decode, encode, encoded_size
from partwise.core.errors import CompositionError
from partwise.core.metrics import Accuracy
from partwise.core.model import BinaryCrossEntropy, CrossEntropy, Model
from partwise.core.plan import Trained
from partwise.core.population import Census, Examples, Profile
from partwise.core.probe import ModelProbe
from partwise.core.program import SERVER
from partwise.core.workload import Workload
from partwise.experiment import Evaluation, Experiment, Trusted
from partwise.experiment.spec import dump, loads
from partwise.local import SGD, LocalTraining
from partwise.populations.arrays import ArrayPopulation
from partwise.runtimes import Processes, Simulate
from partwise.runtimes.executors import Stacked
from partwise.schedulers import Overlapped, Synchronous
from partwise.testing.examples import example_probe
from partwise.transforms import Clip, Quantize
from toy_star import (
    Clients,
    Cohorts,
    Eager,
    Log,
    Saving,
    everybody,
    full_batch,
    number_model,
    parabolas,
    run,
    server,
    star_of,
)

X = ([[1.0, -0.5], [0.2, 2.0], [-1.5, 0.3]], [[0.7, 0.1], [-0.4, -2.5]])
Y = ([0, 2, 1], [1, 1])
PUBLIC = [[0.5, 0.5], [-2.0, 1.0], [0.3, -1.2]]
STEPS, LR, PULL, T = 2, 0.3, 0.7, 2.0


def linear() -> Model:
    return Model(lambda: nn.Linear(2, 3).double(), CrossEntropy())


def two_clients() -> Clients:
    return Clients(
        [{"x": torch.tensor(x, dtype=torch.float64), "y": torch.tensor(y)} for x, y in zip(X, Y, strict=True)]
    )


def public(rows=PUBLIC) -> Examples:
    return Examples({"x": torch.tensor(rows, dtype=torch.float64), "y": torch.zeros(len(rows), dtype=torch.int64)})


def part(**more) -> Distillation:
    settings = {"pull": PULL, "temperature": T, "rows": 2, "batch": 0, **more}
    return Distillation(settings.pop("local", full_batch(STEPS, LR)), **settings)


def softmax(scores):
    most = max(scores)
    parts = [math.exp(s - most) for s in scores]
    return [p / sum(parts) for p in parts]


def scores(w, b, x):
    return [b[c] + sum(w[c][j] * x[j] for j in range(2)) for c in range(3)]


def step(w, b, xs, ys, known):
    """One step down the gradient, worked out by hand: own examples, and (example, target) pairs."""
    down = [[0.0] * 3 for _ in range(3)]  # per class: two weights and the bias
    for x, y in zip(xs, ys, strict=True):
        p = softmax(scores(w, b, x))
        for c in range(3):
            error = (p[c] - (c == y)) / len(xs)
            for j, entry in enumerate([*x, 1.0]):
                down[c][j] += error * entry
    for x, target in known:
        p = softmax([s / T for s in scores(w, b, x)])
        for c in range(3):
            # T² times the derivative of the cross-entropy by the logit, which is divided by T.
            error = PULL * T**2 * (sum(target) * p[c] - target[c]) / T / len(known)
            for j, entry in enumerate([*x, 1.0]):
                down[c][j] += error * entry
    return (
        [[w[c][j] - LR * down[c][j] for j in range(2)] for c in range(3)],
        [b[c] - LR * down[c][2] for c in range(3)],
    )


def by_hand(start, rows_of_rounds, cohorts):
    """Targets and both models after each round."""
    models = [(start["weight"].tolist(), start["bias"].tolist()) for _ in range(2)]
    targets = [[0.0] * 3 for _ in PUBLIC]
    found = []
    for number, (rows, cohort) in enumerate(zip(rows_of_rounds, cohorts, strict=True)):
        known = [(PUBLIC[p], targets[p]) for p in rows_of_rounds[number - 1]] if number else []
        said = []
        for i in cohort:
            for _ in range(STEPS):
                models[i] = step(*models[i], X[i], Y[i], known)
            said.append([softmax([s / T for s in scores(*models[i], PUBLIC[p])]) for p in rows])
        for at, p in enumerate(rows):
            targets[p] = [sum(q[at][c] for q in said) / len(said) for c in range(3)]
        found.append(([list(t) for t in targets], list(models)))
    return found


ROUNDS = ([0, 1], [0, 2], [1, 2], [0, 1])  # two of three, in turn
COHORTS = ((0, 1), (1,), (0, 1), (0, 1))


def look(world):
    own = {i: world.state(i).own for i in (0, 1)}
    return server(world).streams["targets"]["public"].clone(), own, world


def test_rounds_equal_the_plain_loop():
    star = star_of(part(), linear(), two_clients(), Cohorts(COHORTS), trusted=public(), seed=2)
    initial = linear().init(2)
    seen = run(star, look)[1].seen
    expected = by_hand(initial, ROUNDS, COHORTS)
    assert len(seen) == len(expected) == 4
    for (targets, own, _), (by_rows, models) in zip(seen, expected, strict=True):
        torch.testing.assert_close(targets, torch.tensor(by_rows, dtype=torch.float64), rtol=1e-12, atol=1e-14)
        for i, (w, b) in enumerate(models):
            exact = torch.tensor(w, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
            torch.testing.assert_close(own[i]["weight"], exact[0], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(own[i]["bias"], exact[1], rtol=1e-12, atol=1e-14)
    assert all(torch.equal(t, initial[n]) for n, t in server(seen[-1][2]).streams["model"].items())


class Wide(nn.Module):
    """Three classes from two inputs, through a hidden layer of any width."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(2, hidden), nn.Linear(hidden, 3)
        self.double()

    def forward(self, x):
        return self.out(self.first(x).tanh())


WIDTHS = {"first.weight": ("h", None), "first.bias": ("h",), "out.weight": (None, "h"), "out.bias": (None,)}


def wide(hidden: int) -> Model:
    return Model(lambda: Wide(hidden), CrossEntropy(), widths=WIDTHS)


class Traffic(Log):
    def ended(self, world, reason):
        self.bytes = world.traffic.uplink, world.traffic.downlink


def slow() -> Clients:
    return Clients(two_clients().columns, {0: Profile(1.0), 1: Profile(2.6)})


def star(rounds=4, hidden=6, chain=None, examples=None, population=None, **more):
    population = population or two_clients()
    given = {"client_chain": {"targets": chain}} if chain is not None else {}
    scheduler = more.pop("scheduler", everybody(population, rounds))
    return star_of(part(**more), wide(hidden), population, scheduler, trusted=examples or public(), seed=2, **given)


def played(of, log=None, runtime=None, **more):
    log = log or Traffic()
    states, reason = (runtime or Simulate()).run(of.programs(), of.population, log, **more)
    assert (reason, log.of("lost"), log.of("skipped")) == ("done", [], [])
    return states, log


def cost(rounds=4, **more):
    return played(star(rounds, **more))[1].bytes


def test_bytes_are_those_of_predictions_and_not_of_the_model():
    """Of seven public examples of three classes in float64, five a round, to and from two clients."""
    seven = public([[0.1 * i, 1.0 - i] for i in range(7)])
    small, large = (cost(hidden=h, examples=seven, rows=5) for h in (2, 500))
    assert small == large
    per_row = 3 * 8
    up, down = (b - a for a, b in zip(cost(examples=seven, rows=2), cost(examples=seven, rows=5), strict=True))
    # Three rows more, in four rounds and of two clients; down in three rounds, since before the first none are known.
    # Beside the values, a row has its number, of 8 bytes, in a reply and in a fetch.
    assert up == 4 * 2 * 3 * (per_row + 8) + 3 * 2 * 3 * 8
    assert down == 3 * 2 * 3 * per_row


def test_one_update_is_rows_times_classes_long():
    of = star(hidden=500)
    site, task = of.site(0), Task(1, 5, 0, 1)
    own = of.algorithm.client_init(site)
    still = Trained({n: torch.zeros_like(t) for n, t in own.items()}, 0, 0.0)
    updates, _ = of.algorithm.finish({}, still, of.algorithm.select(task, own, site), task, own, site)
    (update,) = updates.values()
    assert {n: (tuple(v.shape), v.dtype) for n, v in update.values().items()} == {"public": ((2, 3), torch.float64)}
    assert update.weight == 1.0
    torch.testing.assert_close(update.values()["public"].sum(1), torch.ones(2, dtype=torch.float64))
    assert encoded_size(updates) < 2 * 3 * 8 + 400 < sum(t.nbytes for t in own.values())


def test_clients_have_models_of_their_own_widths():
    population = Clients(two_clients().columns, {0: Profile(width=1.0), 1: Profile(width=0.5)})
    states, log = played(star(hidden=6, population=population))
    shapes = [{n: tuple(t.shape) for n, t in states[i].own.items()} for i in (0, 1)]
    assert shapes[0] == {"first.weight": (6, 2), "first.bias": (6,), "out.weight": (3, 6), "out.bias": (3,)}
    assert shapes[1] == {"first.weight": (3, 2), "first.bias": (3,), "out.weight": (3, 3), "out.bias": (3,)}
    equal = Clients(two_clients().columns, {0: Profile(width=1.0), 1: Profile(width=1.0)})
    assert log.bytes == played(star(hidden=6, population=equal))[1].bytes


def test_without_pull_everybody_trains_alone():
    states, log = played(star(pull=0.0))
    for i in (0, 1):
        alone, _ = run(
            star_of(
                FedAvg(full_batch(STEPS, LR)),
                wide(6),
                Clients(two_clients().columns[i : i + 1]),
                Cohorts(((0,),) * 4),
                seed=2,
            )
        )
        for n, t in alone[SERVER].streams["model"].items():
            torch.testing.assert_close(states[i].own[n], t, rtol=1e-12, atol=1e-14)
    assert log.bytes[1] < cost()[1]  # the targets, of which nobody has use, are not fetched


DRAWN = {"local": LocalTraining(SGD(LR), batch_size=2, steps=3), "batch": 1}


def ends(states):
    return [encode(states[SERVER].streams), *(encode(states[i].own) for i in (0, 1))]


def test_a_resumed_run_ends_in_the_same_bits():
    states, log = played(star(**DRAWN), Saving())
    assert len(log.saved) > 6
    for saved in log.saved[::3]:
        again, _ = played(star(**DRAWN), entries={name: decode(data) for name, data in saved.items()})
        assert ends(again) == ends(states)


def test_other_executors_train_the_same():
    states, _ = played(star(**DRAWN))
    assert ends(played(star(**DRAWN), Log(), Processes())[0]) == ends(states)
    stacked, _ = played(star(**DRAWN), Log(), Simulate(Stacked()))
    for i in (0, 1):
        for n, t in states[i].own.items():
            torch.testing.assert_close(stacked[i].own[n], t, rtol=1e-12, atol=1e-13)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(2), nn.Linear(2, 3)
        self.double()

    def forward(self, x):
        return self.out(self.norm(x))


def test_running_statistics_follow_the_clients_own_examples():
    found = []
    for pull in (0.0, PULL):
        population = two_clients()
        of = star_of(
            part(pull=pull), Model(Normed, CrossEntropy()), population, everybody(population, 3), trusted=public()
        )
        found.append(played(of)[0][0].own)
    for name in ("norm.running_mean", "norm.running_var"):
        assert torch.equal(found[0][name], found[1][name])
    assert not torch.equal(found[0]["out.weight"], found[1]["out.weight"])


def test_scores_may_have_more_axes():
    """Classes at each of two places, as a language model tells them: the mean over examples and places."""
    draw = torch.Generator().manual_seed(4)
    logits, own = torch.randn(2, 3, 2, generator=draw).double(), torch.tensor([[0, 2]])
    targets = torch.rand(2, 3, 2, generator=draw).double().softmax(1)
    model = Model(nn.Identity(), CrossEntropy())
    taught = Taught(model, {"x": logits}, targets, T, PULL)
    found = float(taught({}, {"x": logits[:1], "y": own}, torch.Generator()))
    places = [(e, at) for e in (0, 1) for at in (0, 1)]
    cross = 0.0
    for e, at in places:
        p = softmax([s / T for s in logits[e, :, at].tolist()])
        cross -= sum(t * math.log(q) for t, q in zip(targets[e, :, at].tolist(), p, strict=True)) / len(places)
    loss = -sum(math.log(softmax(logits[0, :, at].tolist())[c]) for at, c in enumerate((0, 2))) / 2
    assert found == pytest.approx(loss + PULL * T**2 * cross, rel=1e-12)


class Doubled(nn.Module):
    def forward(self, x):
        return x.mul_(2.0)


def test_a_model_that_writes_to_its_input_leaves_the_public_examples_as_they_are():
    logits = torch.tensor([[0.5, -1.0, 0.25], [0.0, 2.0, -0.5]])
    taught = Taught(Model(Doubled(), CrossEntropy()), {"x": logits.clone()}, logits.softmax(1), T, PULL)
    losses = [float(taught({}, {"x": logits.clone(), "y": torch.tensor([0, 1])}, torch.Generator())) for _ in range(2)]
    assert losses[0] == losses[1]


def test_a_drawn_batch_is_of_the_rounds_examples():
    """Of three a round; as many as there are, or more, are not drawn."""
    found = [encode(played(star(rows=0, batch=b))[0][0].own) for b in (0, 1, 2, 3, 9)]
    assert found[0] == found[3] == found[4]
    assert len(set(found)) == 3


def test_late_replies_put_the_rows_of_their_own_round():
    """Each reply is committed alone; damped by its staleness, it pulls less."""
    _, log = run(star(scheduler=Eager(busy=2, commits=6), rows=1, population=slow()), look)
    before, stale = torch.zeros(3, 3, dtype=torch.float64), []
    for number, ((targets, _, _), fields) in enumerate(zip(log.seen, log.of("commit"), strict=True)):
        (late,), (scale,) = fields["staleness"], fields["scales"]
        at = (number - late) % 3  # the one row of the round that the reply is of
        assert float(targets[at].sum()) == pytest.approx(scale)
        others = [row for row in range(3) if row != at]
        assert torch.equal(targets[others], before[others])
        before = targets
        stale.append(late)
    assert len(stale) == 6
    assert max(stale) > 1


def _targets(world):
    return server(world).streams["targets"]["public"].clone()


def test_a_commit_between_a_task_and_its_fetch_wipes_no_targets():
    """Tasks take a while to come, so that many a client fetches from a later version than it was asked at."""
    links = {0: Profile(0.1, 400.0, 100.0), 1: Profile(0.3, 1e6, 1e6)}
    population = Clients(two_clients().columns, links)
    _, log = run(star(scheduler=Eager(busy=2, commits=24), rows=1, population=population), _targets)
    before = torch.zeros(3, 3, dtype=torch.float64)
    for targets, fields in zip(log.seen, log.of("commit"), strict=True):
        (changed,) = (targets != before).any(1).nonzero().reshape(-1).tolist()  # the one row that was sent
        assert float(targets[changed].sum()) == pytest.approx(fields["scales"][0])
        before = targets


def test_under_masks_targets_are_those_in_the_clear():
    population = Clients([*two_clients().columns, {"x": torch.ones(1, 2).double(), "y": torch.tensor([0])}])
    masked = Masked(limit=4.0, bits=24, max_weight=1, min_contributors=3, binds_model=False)
    found = []
    for more in ({}, {"channel": masked}):
        of = replace(star(chain=Clip(4.0), population=population), **more)
        found.append(played(of)[0][SERVER].streams["targets"]["public"])
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=0)
    assert float(found[0].abs().min()) > 0.01


def test_predictions_go_through_compressors():
    many, eight = public([[0.01 * i, 1.0] for i in range(64)]), Quantize(8, scale_by="max", rounding="nearest")
    found = [played(star(examples=many, rows=0, chain=chain)) for chain in (None, eight)]
    assert found[1][1].bytes[0] < 0.4 * found[0][1].bytes[0]
    plain, rounded = (states[SERVER].streams["targets"]["public"] for states, _ in found)
    assert 0 < float((plain - rounded).abs().max()) < 0.02


def test_rounds_may_overlap():
    states, _ = played(star(scheduler=Overlapped(rounds=4)))
    assert states[SERVER].streams["targets"]["public"].sum(1).tolist() == pytest.approx([1.0, 1.0, 1.0])


def arrays(central=20, lacking=False) -> Workload:
    """Two clients; `lacking`: the first has none of class 2, and the second none of class 0."""
    draw = torch.Generator().manual_seed(1)

    def columns(n, without=-1):
        x = torch.randn(5 * n, 2, generator=draw).double()
        y = (x[:, 0] > -0.5).long() + (x[:, 0] > 0.5).long()
        at = (y != without).nonzero().flatten()[:n]
        return {"x": x[at], "y": y[at]}

    each = (columns(40, 2), columns(40, 0)) if lacking else (columns(40), columns(40))
    data = {name: torch.cat([part[name] for part in each]) for name in ("x", "y")}
    ends = torch.tensor([0, 40, 80])
    test = Examples(columns(central)) if central else None
    population = ArrayPopulation(data, ends, columns(80), ends, central=test)
    return Workload(wide(6), population, (Accuracy(),))


def experiment(**more) -> Experiment:
    settings = {"trusted": Trusted(12), "evaluation": Evaluation(every=6), **more}
    algorithm = settings.pop("algorithm", distilled())
    return Experiment(settings.pop("workload", arrays()), algorithm, Synchronous(cohort=2, rounds=6), **settings)


def distilled(pull=1.0) -> Distillation:
    return Distillation(LocalTraining(SGD(0.5), steps=20), pull)


def test_an_experiment_scores_the_clients_own_models(tmp_path):
    of = experiment()
    result = of.run(tmp_path / "run")
    pooled, central = (result.table("accuracy", scope) for scope in ("pooled", "central"))
    assert pooled[-1]["value"] > 0.8
    assert central[0]["value"] == central[-1]["value"]  # of the model that the seed makes
    assert of.algorithm.public is None  # parts are not changed


def test_clients_learn_of_classes_that_only_others_have(tmp_path):
    found = []
    for pull in (0.0, 1.0):
        of = experiment(algorithm=distilled(pull), workload=arrays(400, lacking=True), trusted=Trusted(200))
        found.append(of.run(tmp_path / str(pull)).table("accuracy", "pooled")[-1]["value"])
    assert found[1] > found[0] + 0.1


def test_a_specification_says_where_public_examples_come_from():
    text = """
        [workload]
        name = "LeafSynthetic"
        [algorithm]
        name = "Distillation"
        temperature = 2.0
        rows = 50
        [trusted]
        examples = 200
    """
    of = loads(text)
    assert (of.algorithm, of.trusted) == (Distillation(temperature=2.0, rows=50), Trusted(200))
    assert loads(dump(of)).algorithm == of.algorithm


REFUSED = {
    "none": (
        lambda: experiment(trusted=None).build(),
        r"Star\(trusted=None\): a part needs examples that no client made, got none\. Give",
    ),
    "no central set": (
        lambda: experiment(workload=arrays(0)).build(),
        r"Trusted\(examples=12\): takes examples from a larger .*got none",
    ),
    "no classes": (
        lambda: star_of(
            part(), number_model(), parabolas(), Cohorts(()), trusted=Examples({"a": torch.ones(2).double()})
        ),
        r"Distillation\(.*\): needs a model that gives each class a score, got outputs of shape \(1,\) for one ",
    ),
    "one logit": (
        lambda: part().probed(
            lambda n: ModelProbe(Model(lambda: nn.Linear(2, 1).double(), BinaryCrossEntropy()), public())
        ),
        r"needs a model that gives each class a score, got outputs of shape \(1, 1\)",
    ),
    "another probe": (
        lambda: part().probed(lambda n: example_probe()),
        r"needs the server's examples themselves, got _Quadratic",
    ),
    "inside another": (
        lambda: LocalOnly(part()).init(linear().init(1), Census(2)),
        r"Distillation\(.*\): needs public examples, got none\. Give the experiment Trusted\(examples=100\), and",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_compositions_that_are_refused(case):
    make, sentence = REFUSED[case]
    with pytest.raises(CompositionError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pull": -1.0}, r"Distillation\(pull=-1.0\): must be at least 0 and finite, got -1.0\. 1 is usual\."),
        ({"pull": math.inf}, r"Distillation\(pull=inf\): must be at least 0 and finite"),
        ({"temperature": 0.0}, r"Distillation\(temperature=0.0\): must be above 0 and finite, got 0.0\. 1 is usual\."),
        ({"temperature": math.nan}, r"Distillation\(temperature=nan\): must be above 0 and finite"),
        ({"rows": -1}, r"Distillation\(rows=-1\): must be at least 0, got -1"),
        ({"batch": -1}, r"Distillation\(batch=-1\): must be at least 0, got -1"),
    ],
)
def test_settings_that_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Distillation(**settings)
