"""Training on another device: on one that is played, on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from partwise import Evaluation, Experiment, FedAvg, FedSubAvg, LocalOnly, Synchronous
from partwise.core.aggregate import Accumulator
from partwise.core.errors import CompositionError, DataError
from partwise.core.model import CrossEntropy, Model
from partwise.core.plan import Job, LocalPlan, ModelLoss
from partwise.core.population import Examples
from partwise.local import SGD, AdamW
from partwise.runtimes import Simulate
from partwise.runtimes.devices import found_device
from partwise.runtimes.executors import Auto, OnDevice, Plain, Pool, Stacked, stacked
from partwise.runtimes.executors.adding import added
from partwise.runtimes.executors.on_device import moved
from partwise.testing import check_executor
from partwise.testing.examples import example_jobs
from partwise.testing.executors import _alike, _sum_job
from toy_device import is_there, played
from toy_parts import ALGORITHMS, LOCAL, NEAR, rounds, workload

INNER = [Plain(autograd=True), Plain(), Stacked()]


def same(found, expected):
    """Equal to the last bit, in memory."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert not isinstance(one, Exception), one
        assert (one.steps, one.loss) == (other.steps, other.loss)
        for name, value in other.change.items():
            assert not is_there(one.change[name])
            assert torch.equal(one.change[name], value), name


# A GPU that is played: CUDA's own arithmetic is not tested by it, but that nothing is left behind


def test_what_is_left_behind_is_noticed(monkeypatch):
    @dataclass(frozen=True)
    class Hidden:
        """Holds its tensor where nobody looks."""

        def __call__(self, params, grads, step):
            return {name: g + zero for name, g in grads.items()}

    zero = torch.zeros(1)
    job = example_jobs(torch.float32)[0]
    job = job._replace(plan=replace(job.plan, gradient=(Hidden(),)))
    assert not isinstance(Plain().run([job])[0], Exception)
    with played(monkeypatch):
        (found,) = OnDevice("cuda", Plain()).run([job])
    assert "same device" in str(found)


@pytest.mark.parametrize("inner", INNER, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_that_a_plan_can_say(monkeypatch, inner, dtype):
    jobs = example_jobs(dtype)
    with played(monkeypatch):
        found = OnDevice("cuda", copy.deepcopy(inner)).run(jobs)
    same(found, inner.run(jobs))


class Recurrent(nn.Module):
    """device: of the first state; that of the input by default."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.table, self.cell, self.out = nn.Embedding(9, 4), nn.GRUCell(4, 5), nn.Linear(5, 3)
        self.where = device

    def forward(self, x):
        h = torch.zeros(len(x), 5, device=self.where or x.device)
        for t in range(x.shape[1]):
            h = self.cell(self.table(x[:, t]), h)
        return self.out(h)


def frozen() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.Tanh(), nn.Linear(6, 3))


ROWS, IMAGES, IDS = torch.Size([12, 6]), torch.Size([12, 1, 8, 8]), torch.Size([12, 4])
MODULES = {
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(1), nn.Linear(36, 3)),
        IMAGES,
        "together by torch.func.vmap, for UnstackableError: a convolution",
    ),
    "recurrent": (Recurrent, IDS, "together by torch.func.vmap, for UnstackableError: gru_cell"),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)),
        ROWS,
        "together, folded into the batch",
    ),
    "frozen": (frozen, ROWS, "together, folded into the batch"),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 3)), ROWS, "one after another"),
}


def jobs_with(make, shape, rule) -> list[Job]:
    rng = torch.Generator().manual_seed(5)
    x = torch.randint(9, shape, generator=rng) if shape == IDS else torch.randn(shape, generator=rng)
    data = Examples({"x": x, "y": torch.randint(3, (12,), generator=rng)})
    plan = LocalPlan(ModelLoss(model := Model(make, CrossEntropy())), rule, batch_size=5, epochs=2)
    start = model.init(1)
    return [Job(plan, start, data.slice(0, 12 - number), number) for number in range(3)]


@pytest.mark.parametrize("rule", [SGD(0.1), AdamW(0.01)], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("name", MODULES)
def test_every_way_of_stacked(monkeypatch, caplog, name, rule):
    """Convolutions of many clients go together there, which on a CPU they do not."""
    make, shape, way = MODULES[name]
    jobs = jobs_with(make, shape, rule)
    expected = Plain().run(jobs)
    with played(monkeypatch), caplog.at_level("INFO", "partwise"):
        found = OnDevice("cuda").run(jobs)
    assert f"stacked: {way}" in caplog.text
    for one, other in zip(found, expected, strict=True):
        assert not isinstance(one, Exception), one
        for n, value in other.change.items():
            assert not is_there(one.change[n])
            torch.testing.assert_close(one.change[n], value, rtol=0, atol=1e-6)


def test_what_a_module_leaves_behind_is_noticed_by_every_way(monkeypatch):
    for inner in (Plain(), Stacked()):
        with played(monkeypatch):
            found = OnDevice("cuda", inner).run(jobs_with(lambda: Recurrent("cpu"), IDS, SGD(0.1)))
        assert all("same device" in str(one) for one in found)


@pytest.mark.parametrize("name", ["FashionMNIST", "StdlibCode"])
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm(monkeypatch, name, algorithm):
    if algorithm.endswith("rows") and name == "FashionMNIST":
        pytest.skip("it has no tables, and so no rows to hold")
    jobs = rounds(name, algorithm)[1]
    with played(monkeypatch):
        found = OnDevice("cuda").run(jobs)
    same(found, Stacked().run(jobs))


@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_sums_come_back(monkeypatch, inner):
    for some in _alike(example_jobs(torch.float32)):
        job = _sum_job(some)
        with played(monkeypatch):
            found = OnDevice("cuda", copy.deepcopy(inner)).add(job)
        expected = added(inner, job)
        assert found.outcomes == expected.outcomes
        one, other = (Accumulator(job.params, summed.sums).take() for summed in (found, expected))
        for name, value in other.value.items():
            assert not is_there(one.value[name])
            assert torch.equal(one.value[name], value)


@pytest.mark.parametrize(
    "algorithm", [FedAvg(LOCAL), FedSubAvg("count", LOCAL), LocalOnly(FedAvg(LOCAL), names=("score.2.bias",))], ids=repr
)
def test_an_experiment(monkeypatch, tmp_path, algorithm):
    def run(folder, device):
        return Experiment(
            workload("StdlibCode"),
            algorithm,
            Synchronous(cohort=3, rounds=2),
            evaluation=Evaluation(device=device),
            runtime=Simulate(executor=OnDevice(device)),
        ).run(tmp_path / folder)

    with played(monkeypatch):
        found = run("there", "cuda")
    expected = run("here", "cpu")
    for name, value in expected.params.items():
        assert not is_there(found.params[name])
        assert torch.equal(found.params[name], value)
    for one, other in zip(found.table(), expected.table(), strict=True):  # the CPU's evaluation uses no modules
        assert one.pop("value") == pytest.approx(other.pop("value"), abs=1e-6)
        assert one == other


def test_what_is_frozen_goes_there_once(monkeypatch):
    jobs, copied = jobs_with(frozen, ROWS, SGD(0.1)), []
    body = jobs[0].plan.loss.model.build(1)[0]
    real = Model._frozen_on

    def noted(model, device, tensor):
        copied.append(real(model, device, tensor))
        return copied[-1]

    monkeypatch.setattr(Model, "_frozen_on", noted)
    with played(monkeypatch):
        OnDevice("cuda", Plain()).run(jobs)
    assert len({id(t) for t in copied}) == 2 < len(copied)  # a weight and a bias
    assert all(is_there(t) for t in copied)
    assert not any(is_there(t) for t in body.parameters())


def test_columns_are_kept_on_the_device_as_far_as_there_is_room(monkeypatch):
    whole = {"x": torch.randn(40, 3), "y": torch.zeros(40, dtype=torch.int64)}
    population = Examples(whole)
    template = example_jobs(torch.float32)[0]
    jobs = [template._replace(data=population.slice(at, at + 10)) for at in (0, 10, 30)]
    seen = []

    class Looks:
        def run(self, jobs):
            seen.append([job.data.place()[0] for job in jobs])
            for job, own in zip(jobs, (0, 10, 30), strict=True):
                assert all(is_there(t) for t in job.data.columns().values())
                assert torch.equal(job.data.columns()["x"].to("cpu"), whole["x"][own : own + 10])
            return [RuntimeError("looked")] * len(jobs)

    with played(monkeypatch):
        executor = OnDevice("cuda", Looks(), data_bytes=40 * (3 * 4 + 8))
        executor.run(jobs)
        executor.run(jobs)
        OnDevice("cuda", Looks(), data_bytes=40 * (3 * 4 + 8) - 1).run(jobs)
    first, again, copied = seen
    assert all(columns is first[0] for columns in (*first, *again))
    assert len({id(columns) for columns in copied}) == 3


def test_start_values_in_common_are_copied_once(monkeypatch):
    jobs = example_jobs(torch.float32)[:1] * 3
    starts = []

    class Looks:
        def run(self, jobs):
            starts.extend(job.start for job in jobs)
            return [RuntimeError("looked")] * len(jobs)

    with played(monkeypatch):
        OnDevice("cuda", Looks()).run(jobs)
    for name, t in starts[0].items():
        assert is_there(t)
        assert all(start[name] is t for start in starts)


def test_no_more_are_trained_together_than_there_is_room_for(monkeypatch):
    jobs = example_jobs(torch.float32)[:1] * 7
    tried, real = [], stacked.train

    def train(unit, jobs, *args, **more):
        tried.append(len(jobs))
        if len(jobs) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(unit, jobs, *args, **more)

    monkeypatch.setattr(stacked, "train", train)
    executor = Stacked()
    near = NEAR[torch.float32]
    (expected,) = Plain().run(jobs[:1])
    for _ in range(2):
        for found in executor.run(jobs):
            for name, value in expected.change.items():
                torch.testing.assert_close(found.change[name], value, rtol=near, atol=near)
        tried.append(0)
    first, again = tried[: tried.index(0)], tried[tried.index(0) + 1 : -1]
    assert sum(n for n in first if n <= 2) == sum(again) == 7
    assert first[0] == 7
    assert max(again) <= 2


# What is copied


def test_what_has_no_tensor_is_not_copied():
    plan = LocalPlan(lambda params, batch, rng: None, Stacked(), extra={}, gradient=())
    assert moved(plan, torch.device("meta")) is plan
    things = (1, "a", None, {"a": (1, 2)}, [frozenset("b")])
    assert moved(things, torch.device("meta")) is things


def test_every_tensor_of_a_plan_is_copied():
    for job in example_jobs(torch.float32):
        left = []

        class Finds(pickle.Pickler):
            def persistent_id(self, x, left=left):
                if isinstance(x, torch.Tensor):
                    left.append(x.device.type)
                    return True
                return None

        import io

        Finds(io.BytesIO()).dump(moved((job.plan.gradient, job.plan.extra), torch.device("meta")))
        assert set(left) <= {"meta"}


# Bad input


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:x", "", "meta", "CUDA"])
def test_what_is_no_device(device):
    with pytest.raises(ValueError, match=r"OnDevice\(device='.*must be 'auto', 'cpu', 'cuda'"):
        OnDevice(device)
    with pytest.raises(ValueError, match=r"Evaluation\(device='.*must be 'auto', 'cpu', 'cuda'"):
        Evaluation(device=device)


def test_other_settings():
    with pytest.raises(ValueError, match=r"OnDevice\(precision='tf32'\): must be one of highest, high, medium"):
        OnDevice("cpu", precision="tf32")
    with pytest.raises(ValueError, match=r"OnDevice\(data_bytes=-1\): must be at least 0"):
        OnDevice("cpu", data_bytes=-1)
    for part in (Pool(), Auto()):
        with pytest.raises(CompositionError, match=r"keeps processes or a choice for a run. Use Stacked\(\)"):
            OnDevice("cpu", part)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert found_device("OnDevice", "auto") == found_device("OnDevice", "cpu") == torch.device("cpu")
    with pytest.raises(CompositionError, match=r"OnDevice\(device='cuda'\): needs a GPU .*, got none here. Use .*auto"):
        OnDevice().run(example_jobs(torch.float32)[:1])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert found_device("OnDevice", "auto") == found_device("OnDevice", "cuda") == torch.device("cuda")
    assert found_device("OnDevice", "cuda:1") == torch.device("cuda:1")
    with pytest.raises(CompositionError, match=r"OnDevice\(device='cuda:2'\): needs a GPU .*, got 2 of them here"):
        found_device("OnDevice", "cuda:2")


def test_an_evaluation_without_its_gpu_begins_no_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    experiment = Experiment(workload("StdlibCode"), FedAvg(LOCAL), evaluation=Evaluation(device="cuda"))
    with pytest.raises(CompositionError, match=r"Evaluation\(device='cuda'\): needs a GPU"):
        experiment.run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_has_stopped_ends_the_run():
    @dataclass(frozen=True)
    class Stops:
        def run(self, jobs):
            return [RuntimeError("CUDA error: device-side assert triggered")] * len(jobs)

    job = example_jobs(torch.float32)[0]
    with pytest.raises(DataError, match="got an id or a label that is not, after which a GPU cannot go on"):
        OnDevice("cpu", Stops()).run([job])
    with pytest.raises(DataError, match="device='cpu', where only that client fails"):
        OnDevice("cpu", Stops()).add(_sum_job([job]))


# A GPU


@pytest.mark.gpu
@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_contract_on_a_gpu(inner):
    near = {torch.float32: 1e-3, torch.float64: 1e-8}  # other kernels add in another order
    executor = OnDevice("cuda", inner)
    for dtype in (torch.float32, torch.float64):
        jobs = example_jobs(dtype)
        for found, expected in zip(executor.run(jobs), Plain().run(jobs), strict=True):
            for name, value in expected.change.items():
                assert found.change[name].is_cpu
                most = near[dtype] * max(1.0, float(value.abs().max()))
                torch.testing.assert_close(found.change[name], value, rtol=0, atol=most)


@pytest.mark.gpu
def test_an_experiment_on_a_gpu(tmp_path):
    def run(folder, device):
        return Experiment(
            workload("StdlibCode"),
            FedSubAvg("count", LOCAL),
            Synchronous(cohort=3, rounds=3),
            evaluation=Evaluation(device=device),
            runtime=Simulate(executor=OnDevice(device)),
        ).run(tmp_path / folder)

    found, expected = run("there", "cuda"), run("here", "cpu")
    for name, value in expected.params.items():
        torch.testing.assert_close(found.params[name], value, rtol=1e-3, atol=1e-3)


def test_contract_on_the_cpu():
    check_executor(OnDevice("cpu", Plain()))
