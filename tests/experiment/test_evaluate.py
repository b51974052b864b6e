from __future__ import annotations

import math
import re
import sys
import weakref
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn

import toy_parts
from partwise.algorithms import FedAvg, LocalOnly
from partwise.algorithms.personal import PersonalState
from partwise.core.errors import DataError
from partwise.core.metrics import AUC, Accuracy, Loss
from partwise.core.model import BinaryCrossEntropy, CrossEntropy, Model
from partwise.core.population import Examples, Population
from partwise.core.workload import Workload
from partwise.experiment import evaluate as module
from partwise.experiment.evaluate import ClientScore, evaluate, summarize
from partwise.experiment.experiment import Experiment
from partwise.experiment.recorder import Recorder
from partwise.local import SGD, LocalTraining
from partwise.populations import ArrayPopulation
from partwise.runtimes import Simulate
from partwise.schedulers import Synchronous
from toy_scores import Toy, experiment


@dataclass(frozen=True)
class Groups(Population):
    """Clients with test sets of unequal size; client 2 has none."""

    sizes: tuple[int, ...] = (3, 7, 0, 1, 12)
    central: bool = False
    clients: range = field(default=range(5))

    def test_data(self, client: int) -> Examples | None:
        if not self.sizes[client]:
            return None
        rng = torch.Generator().manual_seed(client)
        n = self.sizes[client]
        return Examples({"x": torch.randn(n, 3, generator=rng), "y": torch.randint(0, 4, (n,), generator=rng)})

    def data(self, client: int) -> Examples:
        return Examples({"x": torch.zeros(1, 3), "y": torch.zeros(1, dtype=torch.int64)})

    def central_test(self) -> Examples | None:
        rng = torch.Generator().manual_seed(99)
        x, y = torch.randn(9, 3, generator=rng), torch.randint(0, 4, (9,), generator=rng)
        return Examples({"x": x, "y": y}) if self.central else None


def workload(**changes: object) -> Workload:
    model = Model(lambda: nn.Linear(3, 4), CrossEntropy())
    return Workload(model, Groups(**changes), (Accuracy(), Loss(CrossEntropy())))


def by_hand(work: Workload, params: dict[str, torch.Tensor]) -> dict[int, tuple[float, float, int]]:
    """Client -> accuracy, loss, examples; plain loops in float64."""
    found = {}
    for client in work.population.clients:
        data = work.population.test_data(client)
        if data is None:
            continue
        hits, losses = [], []
        for x, y in zip(data.columns()["x"].tolist(), data.columns()["y"].tolist(), strict=True):
            z = [
                sum(w * v for w, v in zip(row, x, strict=True)) + b
                for row, b in zip(params["weight"].tolist(), params["bias"].tolist(), strict=True)
            ]
            hits.append(z.index(max(z)) == y)
            losses.append(math.log(sum(map(math.exp, z))) - z[y])
        found[client] = (sum(hits) / len(hits), sum(losses) / len(losses), len(hits))
    return found


@pytest.mark.parametrize("chunk", [1, 8, 8192])
def test_scores_are_those_of_plain_loops_however_clients_are_grouped(chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    work = workload()
    params = work.model.init(3)
    scores, rows = evaluate(work, FedAvg(), params, {}, per_client=True)
    expected = by_hand(work, params)
    assert {(r.client, r.examples) for r in rows} == {(c, n) for c, (_, _, n) in expected.items()}
    for row in rows:
        assert row.value == pytest.approx(expected[row.client][0 if row.name == "accuracy" else 1], abs=1e-6)
    total = sum(n for _, _, n in expected.values())
    found = {(s.name, s.scope): s.value for s in scores}
    for at, name in ((0, "accuracy"), (1, "loss")):
        values = [v[at] for v in expected.values()]
        pooled = sum(v[at] * v[2] for v in expected.values()) / total
        assert found[name, "pooled"] == pytest.approx(pooled, abs=1e-6)
        assert found[name, "weighted"] == pytest.approx(pooled, abs=1e-6)  # a mean over examples, so these agree
        assert found[name, "mean"] == pytest.approx(sum(values) / len(values), abs=1e-6)
        assert found[name, "worst"] == pytest.approx((min if name == "accuracy" else max)(values), abs=1e-6)


def calls_to_join(clients):
    """How many calls of the evaluation's functions join so many clients of one example each."""
    population, seen = Groups(sizes=(1,) * clients, clients=range(clients)), []
    sys.setprofile(lambda frame, event, _: seen.append(event) if frame.f_code.co_filename == module.__file__ else None)
    try:
        groups = [group for group, _ in module._groups(population, alone=False)]
    finally:
        sys.setprofile(None)
    assert groups == [[(client, 1) for client in range(clients)]]
    return len(seen)


def test_clients_are_joined_with_work_that_grows_as_they_do():
    assert calls_to_join(400) < 5 * calls_to_join(100)


def test_percentiles_interpolate_and_undefined_clients_are_left_out():
    rows = [ClientScore(c, "accuracy", v, 1) for c, v in enumerate([0.0, 0.5, math.nan, 1.0, 0.25])]
    found = {s.scope: s.value for s in summarize(Accuracy(), rows)}
    assert found["p10"] == pytest.approx(0.075)  # 0.3 of the way from the first to the second of 0, .25, .5, 1
    assert found["p90"] == pytest.approx(0.85)
    assert found["mean"] == pytest.approx(0.4375)
    assert summarize(Accuracy(), [ClientScore(0, "accuracy", math.nan, 1)]) == []


def test_percentiles_of_clients_for_whom_the_model_has_diverged():
    rows = [ClientScore(c, "loss", v, 1) for c, v in enumerate([1.0, math.inf, 2.0, math.inf, 3.0])]
    found = {s.scope: s.value for s in summarize(Loss(CrossEntropy()), rows)}
    assert found["p10"] == pytest.approx(1.4)  # 0.4 of the way from 1 to 2
    assert found["p90"] == math.inf  # between the two that are infinite


def test_a_central_test_set_is_measured_and_clients_only_when_asked_for():
    work = workload(central=True)
    params = work.model.init(3)
    scores, rows = evaluate(work, FedAvg(), params, {}, per_client=False)
    assert rows == []
    assert {s.scope for s in scores} == {"central"}
    x, y = (work.population.central_test().columns()[n] for n in ("x", "y"))
    expected = float(((x @ params["weight"].T + params["bias"]).argmax(1) == y).double().mean())
    assert scores[0].value == pytest.approx(expected)


class Shifted(nn.Linear):
    """Of the input less 1, which it takes off where the input lies."""

    def forward(self, x):
        return super().forward(x.sub_(1.0))


def test_a_model_that_writes_to_its_input_leaves_the_test_sets_as_they_are():
    rng = torch.Generator().manual_seed(8)
    columns = {"x": torch.randn(9, 3, generator=rng), "y": torch.randint(0, 4, (9,), generator=rng)}
    given = {name: t.clone() for name, t in columns.items()}
    ends = torch.tensor([0, 4, 9])
    people = ArrayPopulation(columns, ends, columns, ends, central=Examples(columns))
    work = Workload(Model(lambda: Shifted(3, 4), CrossEntropy()), people, (Loss(CrossEntropy()),))
    params = work.model.init(3)
    logits = (given["x"] - 1.0) @ params["weight"].T + params["bias"]
    expected = float((logits.logsumexp(1) - logits[torch.arange(9), given["y"]]).mean())
    for _ in range(2):
        found = {s.scope: s.value for s in evaluate(work, FedAvg(), params, {}, per_client=True)[0]}
        assert found["central"] == pytest.approx(expected, abs=1e-6)
        assert found["pooled"] == pytest.approx(expected, abs=1e-6)
    assert torch.equal(columns["x"], given["x"])


class Counted(nn.Linear):
    def __init__(self):
        super().__init__(3, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Cut(nn.Linear):
    def __init__(self):
        super().__init__(3, 4)

    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


@pytest.mark.parametrize("module", [Counted, Cut])
def test_a_model_that_writes_to_its_parameters_is_not_changed_by_being_measured(module):
    work = Workload(Model(module, CrossEntropy()), Groups(central=True), (Accuracy(),))
    params = work.model.init(3)
    before = {name: t.clone() for name, t in params.items()}
    evaluate(work, FedAvg(), params, {}, per_client=True)
    assert all(torch.equal(params[name], t) for name, t in before.items())


class Rated(nn.Module):
    """A table that takes a row's number however it is written, as indexing does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 3))

    def forward(self, item):
        return self.weight[item.long()].sum(1)


@pytest.mark.parametrize(
    ("item", "got", "client"),
    [
        ([0, 4, 2, 4, 1, 5], r"0\.\.5", r"3 \(d\)"),
        ([0, 4, -1, 4, 1, 3], r"-1\.\.4", r"2 \(c\)"),
        ([0.0, 4.0, 2.0, 4.0, 1.0, 0.7], "torch.float32", r"0 \(a\)"),
    ],
)
@pytest.mark.parametrize("is_central", [False, True])
def test_ids_of_test_examples_that_are_no_rows_are_refused(item, got, client, is_central):
    columns = {"item": torch.tensor(item), "y": torch.tensor([0, 1, 0, 1, 0, 1])}
    good = {"item": torch.tensor([0, 1, 2, 3]), "y": torch.tensor([0, 1, 0, 1])}
    offsets = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 2, 2, 3, 6])
    population = (
        ArrayPopulation(good, offsets[0], central=Examples(columns))
        if is_central
        else ArrayPopulation(good, offsets[0], columns, offsets[1], names=["a", "b", "c", "d"])
    )
    model = Model(Rated, BinaryCrossEntropy(), inputs=("item",), tables={"weight": ("item",)})
    work = Workload(model, population, (Accuracy(),))
    whose = "the central test set" if is_central else f"the test examples of client {client}"
    message = rf"'item'.*: ids must be whole numbers in 0\.\.4, got {got}, first in {whose}\. Make the table larger"
    with pytest.raises(DataError, match=message):
        evaluate(work, FedAvg(), model.init(1), {}, per_client=True)


def test_a_client_is_measured_with_what_it_keeps_for_itself():
    work = workload()
    params = work.model.init(3)
    algorithm = LocalOnly(FedAvg(), names=("bias",), normalization=False)
    plain = {r.client: r.value for r in evaluate(work, FedAvg(), params, {}, per_client=True)[1] if r.name == "loss"}
    kept = {"bias": torch.tensor([5.0, 0.0, 0.0, 0.0])}
    own = {1: PersonalState(None, kept)}
    personal = {
        r.client: r.value for r in evaluate(work, algorithm, params, own, per_client=True)[1] if r.name == "loss"
    }
    assert personal[0] == pytest.approx(plain[0])
    expected = by_hand(work, {**params, **kept})
    assert personal[1] == pytest.approx(expected[1][1], abs=1e-6)
    assert personal[1] != pytest.approx(plain[1], abs=1e-3)


# the same scores, however they are had


def one_after_another(work, params):
    """Client -> metric -> value: every client's test set by itself, in one pass."""
    found = {}
    for client in work.population.clients:
        data = work.population.test_data(client)
        if data is not None and len(data):
            batch = data.batch(torch.arange(len(data)))
            outputs = work.model.outputs(params, batch)
            found[client] = {m.name: m.reduce(m.measure(outputs, batch)) for m in work.metrics}
    return found


@pytest.mark.parametrize(("chunk", "num_bytes"), [(1, 1 << 20), (60, 500), (8192, 1 << 20)])
@pytest.mark.parametrize("name", ["StdlibCode", "ClickLog"])
def test_scores_of_workloads_are_those_of_each_client_by_itself(name, chunk, num_bytes, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    monkeypatch.setattr(module, "_PASS_BYTES", num_bytes)
    work = toy_parts.workload(name)
    params = work.model.init(2)
    _, rows = evaluate(work, FedAvg(), params, {}, per_client=True)
    expected = one_after_another(work, params)
    assert len(rows) == sum(map(len, expected.values())) > 0
    for row in rows:
        assert row.value == pytest.approx(expected[row.client][row.name], rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("chunk", [1, 8, 8192])
def test_clients_in_a_row_are_measured_as_each_by_itself(chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    rng = torch.Generator().manual_seed(5)
    sizes = torch.tensor([0, 0, 3, 7, 0, 1, 0, 12, 0])
    total, ends = int(sizes.sum()), torch.tensor([0, *sizes]).cumsum(0)
    tests = {"x": torch.randn(total, 3, generator=rng), "y": torch.randint(0, 4, (total,), generator=rng)}
    data = {"x": torch.zeros(9, 3), "y": torch.zeros(9, dtype=torch.int64)}
    population = ArrayPopulation(data, torch.arange(10), tests, ends)
    work = replace(workload(), population=population)
    params = work.model.init(3)
    _, rows = evaluate(work, FedAvg(), params, {}, per_client=True)
    expected = one_after_another(work, params)
    assert [(r.client, r.examples) for r in rows if r.name == "loss"] == [(c, int(sizes[c])) for c in expected]
    for row in rows:
        assert row.value == pytest.approx(expected[row.client][row.name], rel=1e-6)


def test_tests_between_two_clients_are_not_copied():
    tests = {"x": torch.arange(12.0).reshape(6, 2)}
    population = ArrayPopulation({"x": torch.zeros(4, 2)}, torch.arange(5), tests, torch.tensor([0, 2, 2, 5, 6]))
    found = population.tests_between(1, 2).columns()["x"]
    assert found.tolist() == [[4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]
    assert found.data_ptr() == tests["x"][2:].data_ptr()


def test_a_batch_is_aligned_as_a_tensor_of_its_own():
    data = Examples({"x": torch.arange(30.0).reshape(10, 3)})
    views = [module._batch(data, start, start + 2)["x"] for start in range(8)]
    assert all(view.data_ptr() % 64 == 0 for view in views)
    assert [view[0, 0].item() for view in views] == [3.0 * start for start in range(8)]
    assert views[0].data_ptr() == data.columns()["x"].data_ptr()


def test_what_clients_keep_is_read_one_after_another_when_they_are_measured(tmp_path, monkeypatch):
    made, alive = [], []

    class Own(LocalOnly):
        def personalize(self, params, own):
            if own is not None and measuring:
                made.append(weakref.ref(own.value["0.weight"]))
                alive.append(sum(ref() is not None for ref in made))
            return super().personalize(params, own)

    measuring = []
    real = Recorder._measure

    def measure(self, world):
        measuring.append(True)
        found = real(self, world)
        measuring.clear()
        return found

    monkeypatch.setattr(Recorder, "_measure", measure)
    x, y = torch.randn(60, 40, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 2
    people = ArrayPopulation({"x": x, "y": y}, torch.arange(0, 61, 6), {"x": x, "y": y}, torch.arange(0, 61, 6))
    model = Model(lambda: nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 2)), CrossEntropy())
    Experiment(
        Workload(model, people, (Loss(CrossEntropy()),)),
        algorithm=Own(FedAvg(LocalTraining(SGD(0.1), steps=1)), names=("0.weight",)),
        scheduler=Synchronous(10, 2),
        runtime=Simulate(memory_bytes=0),
    ).run(tmp_path / "run")
    assert len(made) == 20
    assert max(alive) <= 2  # one beside the state at hand, which lies in no file


class Untargeted(Toy):
    """Clients whose test examples have no labels, or none at all; and a central test set."""

    def _make(self, client, purpose):
        columns = super()._make(client, purpose).columns()
        return Examples(columns if purpose == 1 else {"ids": columns["ids"]})

    def test_data(self, client):
        return None if self.highest_id == 9 else super().test_data(client)

    def central_test(self):
        return self._make(0, 2) if self.highest_id == 9 else None


@pytest.mark.parametrize(
    ("population", "metric", "says"),
    [
        (Toy(), AUC("liked"), r"Workload\(metrics=\(AUC\(target='liked', .*\): must name a column, got 'liked'"),
        (Toy(), Loss(BinaryCrossEntropy("yy")), r"must name a column, got 'yy'\. Did you mean 'y'\?"),
        (Untargeted(), AUC(), r"must name a column, got 'y'\. The columns are 'ids'\."),
        (Untargeted(highest_id=9), AUC(), r"must name a column, got 'y'\. The columns are 'ids'\."),
    ],
)
def test_a_column_that_a_metric_reads_and_the_test_examples_lack_is_named(population, metric, says, tmp_path):
    made = experiment(population)
    with pytest.raises(DataError, match=says):
        replace(made, workload=replace(made.workload, metrics=(metric,))).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class OfBatches:
    """The share that is right, of a whole batch at once."""

    by: str
    name: str = "share"
    higher_is_better: bool = True

    def measure(self, outputs, batch):
        hit = (outputs.argmax(1) == batch["y"]).double()
        return {"hit": {"mean": hit.mean(), "one": hit.mean().reshape(1), "list": hit.tolist(), "each": hit}[self.by]}

    def reduce(self, columns):
        return float(columns["hit"].mean())


@pytest.mark.parametrize(("by", "got"), [("mean", "got ()"), ("one", "got (1,)"), ("list", "got a list")])
@pytest.mark.parametrize("per_client", [True, False])
def test_a_metric_that_measures_no_value_per_example_is_named(by, got, per_client):
    """With the central set alone, a value per batch was taken for one per example."""
    work = workload(central=True)
    params = work.model.init(1)

    def scored(by):
        return evaluate(replace(work, metrics=(OfBatches(by),)), FedAvg(), params, {}, per_client=per_client)

    test = Groups(central=True).central_test().columns()
    right = work.model.outputs(params, test).argmax(1) == test["y"]
    assert scored("each")[0][0].value == pytest.approx(int(right.sum()) / 9)
    with pytest.raises(ValueError, match=rf"^OfBatches\(by='{by}', .*{re.escape(got)} as 'hit' for 9 examples\."):
        scored(by)


@dataclass(frozen=True)
class Comes:
    """A metric that comes to whatever it is told."""

    to: object
    name: str = "comes"
    higher_is_better: bool = True

    def measure(self, outputs, batch):
        return {"any": outputs[:, 0]}

    def reduce(self, columns):
        return self.to


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize(
    ("to", "got"), [(None, "None"), ("0.5", "a str"), ([0.5], "a list"), (torch.ones(2), "a Tensor")]
)
def test_a_metric_that_comes_to_no_number_is_named(to, got, central):
    model = Model(lambda: nn.Linear(3, 4), CrossEntropy())
    work = Workload(model, Groups(central=central), (Comes(to),))
    with pytest.raises(
        TypeError, match=rf"Comes\(.*\): reduce must give a number, or nan where there is none, got {got}\."
    ):
        evaluate(work, FedAvg(LocalTraining(SGD(0.1))), model.init(1), {}, per_client=not central)


def test_a_metric_may_come_to_a_tensor_of_one_number():
    model = Model(lambda: nn.Linear(3, 4), CrossEntropy())
    work = Workload(model, Groups(), (Comes(torch.tensor(0.5)),))
    scores, rows = evaluate(work, FedAvg(LocalTraining(SGD(0.1))), model.init(1), {}, per_client=True)
    assert {type(each.value) for each in (*scores, *rows)} == {float}
    assert {each.value for each in (*scores, *rows)} == {0.5}
