from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from partwise.core.model import CrossEntropy, Model, Values
from partwise.core.plan import Job, LocalPlan, Trained
from partwise.core.population import Examples
from partwise.runtimes.executors import Plain, Stacked
from toy_stack import CNN, DIN, MLP, Case, agree, clicks, ids, images, text

# what cannot be folded


class BatchMixer(nn.Module):
    """Looks at the whole batch, which a fold would mix with other clients' batches."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        result: Tensor = self.out(x - x.mean(0))
        return result


class Matmul(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        result: Tensor = self.out(-x if x[0, 0] > 0 else x)
        return result


class Padded(nn.Module):
    """A table with a row that never moves, whose ids may be computed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6, padding_idx=0)
        self.out = nn.Linear(6, 11)

    def forward(self, history: Tensor) -> Tensor:
        ids = history.long() * 3 % 11
        result: Tensor = self.out((self.table(ids) * (ids != 0).unsqueeze(2)).sum(1))
        return result


class Listed(nn.Module):
    """Looks at all rows of its table, which it gives to a function in a list or by name."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.out = nn.Linear(6, 4)
        self.table = nn.Embedding(29, 6)
        self.way = way

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.table.weight
        everything = torch.cat([rows, rows]) if self.way == "cat" else torch.tanh(input=rows)
        result: Tensor = self.out(self.table(ids).mean(1) + everything.mean(0))
        return result


def with_(module: Callable[[], nn.Module]) -> Case:
    return Case(Model(module, CrossEntropy()), images)


def dense(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(1), nn.Linear(64, 6), *layers, nn.Linear(6, 4))


OTHERS = {
    "mixer": (with_(BatchMixer), "torch.func.vmap, for an example's loss depends on the other examples"),
    "matmul": (with_(Matmul), "torch.func.vmap, for UnstackableError: matmul is not known for many clients"),
    "padded": (
        Case(Model(Padded, CrossEntropy(), inputs=("history",)), text),
        "torch.func.vmap, for UnstackableError: an embedding with special settings",
    ),
    "branching": (with_(Branching), "one after another, for torch.func.vmap refuses it"),
    "dropout": (with_(lambda: dense(nn.Dropout(0.5))), "one after another, for torch.func.vmap refuses it"),
    "batch norm": (with_(lambda: dense(nn.BatchNorm1d(6))), "one after another, for the model has buffers"),
    "convolution": (CNN, "one after another, for convolutions of many clients at once take longer"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_be_folded(name):
    case, expected = OTHERS[name]
    # Batches of equal length: what looks at the whole batch would also see the padding.
    jobs = case.jobs((8, 8, 12), buffers=case.model.buffers())
    (line,) = Stacked().explain(jobs)
    assert expected in line
    agree(jobs, Stacked())


@dataclass(frozen=True)
class Summed:
    """A loss that is known as a function only."""

    model: Model
    power: float = 1.0

    def __call__(self, params: Mapping[str, Tensor], batch: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        return self.model.losses(params, batch).pow(self.power).sum() / 8


@dataclass(frozen=True)
class Noisy:
    model: Model

    def __call__(self, params: Mapping[str, Tensor], batch: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        return self.model.losses(params, batch).mean() * torch.rand((), generator=rng, dtype=torch.float64)


def with_loss(jobs: Sequence[Job], loss: Callable[[], Any]) -> list[Job]:
    return [job._replace(plan=LocalPlan(loss(), job.plan.optimizer, 4)) for job in jobs]


def test_a_loss_of_its_own_is_mapped_where_batches_are_alike():
    jobs = with_loss(MLP.jobs((8, 10, 8, 10, 5)), lambda: Summed(MLP.model, 1.5))
    lines = Stacked().explain(jobs)
    assert lines == [
        "2 jobs: together by torch.func.vmap, for its loss is known as a function only",
        "2 jobs: together by torch.func.vmap, for its loss is known as a function only",
        "1 job: one after another, for no other job has its loss",
    ]
    agree(jobs, Stacked())


def test_a_loss_that_draws_is_run_alone():
    jobs = with_loss(MLP.jobs((8, 8)), lambda: Noisy(MLP.model))
    (line,) = Stacked().explain(jobs)
    assert "one after another" in line
    agree(jobs, Stacked())


@dataclass(frozen=True)
class Signs:
    """An optimiser of its own, which looks at all entries together."""

    lr: float = 0.1

    def init(self, params: Any) -> Any:
        return ()

    def step_(self, params: Any, grads: Any, state: Any) -> Any:
        largest = max(float(g.abs().max()) for g in grads.values())
        for name, grad in grads.items():
            params[name].sub_(grad / largest, alpha=self.lr)
        return state


@dataclass(frozen=True)
class Halved:
    def __call__(self, params: Any, grads: Values, step: int) -> Values:
        return {n: g / (2 + step) for n, g in grads.items()}


@pytest.mark.parametrize(
    ("plan", "why"),
    [({"optimizer": Signs()}, "the optimiser Signs is"), ({"gradient": (Halved(),)}, "the gradient term Halved is")],
)
def test_parts_of_other_makes_are_run_alone(plan, why):
    jobs = MLP.jobs(**plan)
    (line,) = Stacked().explain(jobs)
    assert line.startswith(f"4 jobs: one after another, for {why}")
    agree(jobs, Stacked())


@dataclass(frozen=True)
class Streamed:
    """A data set that is not columns in memory."""

    inner: Examples

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, at: Tensor) -> Mapping[str, Tensor]:
        return self.inner.batch(at)

    def columns(self) -> Mapping[str, Tensor]:
        raise MemoryError


def test_other_data_sets_are_run_alone():
    jobs = [job._replace(data=Streamed(job.data)) for job in MLP.jobs()]
    assert Stacked().explain(jobs) == ["4 jobs: one after another, for its data are not columns in memory"]
    agree(jobs, Stacked())


# exceptions


@pytest.mark.parametrize("table", ["named", "unnamed"])
@pytest.mark.parametrize("bad", [-1, 22, 31])
def test_bad_ids_spoil_their_own_job_only(table, bad):
    """Client 1 holds 19 rows beside client 2's 29: a wrong id is a row of padding or of another client."""
    model = DIN.model
    if table == "unnamed":  # everybody holds all 29 rows
        model = Model(model.module, model.loss, model.inputs)
        bad = bad if bad != 22 else 29
    jobs = Case(model, clicks, "items.weight" if table == "named" else "").jobs((6, 7, 8))
    columns = {n: t.clone() for n, t in jobs[1].data.columns().items()}
    columns["history"][2, 1] = bad
    jobs[1] = jobs[1]._replace(data=Examples(columns))
    expected, found = Plain().run(jobs), Stacked().run(jobs)
    assert type(found[1]) is type(expected[1]) is IndexError
    assert str(found[1]) == str(expected[1])
    for i in (0, 2):
        torch.testing.assert_close(found[i].change, expected[i].change, rtol=1e-9, atol=1e-12)


def test_bad_ids_under_vmap():
    jobs = with_loss(DIN.jobs((8, 8)), lambda: Summed(DIN.model))
    jobs = [job._replace(start=DIN.start(0, torch.float64), data=Examples(clicks(8, 0, torch.float64))) for job in jobs]
    columns = {n: t.clone() for n, t in jobs[0].data.columns().items()}
    columns["candidate"][3] = 11  # of 9
    executor = Stacked()
    assert "vmap" in executor.explain(jobs)[0]
    jobs[0] = jobs[0]._replace(data=Examples(columns))
    found = executor.run(jobs)
    assert isinstance(found[0], IndexError)
    assert isinstance(found[1], Trained)


@pytest.mark.parametrize("way", ["cat", "named"])
def test_rows_that_a_client_does_not_have_are_no_part_of_its_model(way):
    """Clients hold 9, 19 and 29 rows: where the table is used as a whole, nobody must see rows of padding."""
    model = Model(lambda: Listed(way), CrossEntropy(), inputs=("ids",), tables={"table.weight": ("ids",)})
    case = Case(model, lambda n, c, dtype: {"ids": ids(9, n, 3, seed=c), "y": ids(4, n, seed=c + 9)}, "table.weight")
    executor, jobs = Stacked(), case.jobs((8, 8, 8))
    assert "used by more than lookups" in executor.explain(jobs)[0]
    agree(jobs, executor)


def test_a_bad_job_is_not_remembered_against_others(caplog):
    caplog.set_level(logging.INFO, "partwise")
    executor = Stacked()
    jobs = MLP.jobs((6, 8))
    bad = jobs[0]._replace(data=Examples({"x": jobs[0].data.columns()["x"], "y": torch.full((6,), 17)}))
    found = executor.run([bad, jobs[1]])
    assert isinstance(found[0], IndexError)
    assert isinstance(found[1], Trained)
    assert "folded" in executor.explain(jobs)[0]
    assert "together, folded" in caplog.text


def test_wrong_shapes_and_missing_names_are_told_as_by_plain():
    jobs = MLP.jobs((6, 8, 5, 7))
    jobs[1] = jobs[1]._replace(start={n: t for n, t in jobs[1].start.items() if n != "head.bias"})
    jobs[2] = jobs[2]._replace(data=Examples({}))
    jobs[3] = jobs[3]._replace(start={**jobs[3].start, "head.bias": torch.zeros(3, dtype=torch.float64)})
    expected, found = Plain().run(jobs), Stacked().run(jobs)
    assert isinstance(found[0], Trained)
    for one, other in zip(expected[1:], found[1:], strict=True):
        assert (type(one), str(one)) == (type(other), str(other))


def test_a_client_that_diverges_does_not_spoil_the_others():
    jobs = MLP.jobs((6, 8, 7))
    columns = jobs[1].data.columns()
    jobs[1] = jobs[1]._replace(data=Examples({"x": columns["x"] * float("nan"), "y": columns["y"]}))
    executor = Stacked()
    executor.explain([jobs[0], jobs[2]])
    found = executor.run(jobs)
    assert np.isnan(found[1].loss)
    agree([jobs[0], jobs[2]], executor)
    alone = Plain().run(jobs)
    torch.testing.assert_close(found[0].change, alone[0].change, rtol=1e-9, atol=1e-12)
