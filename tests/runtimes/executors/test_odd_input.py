"""Executors against the plain one where jobs are odd: types, shapes, shared and frozen parameters, too little data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwise.core.model import CrossEntropy, Model
from partwise.core.plan import Executor, Job, opened
from partwise.core.population import Examples
from partwise.local import SGD, AdamW, ClipGradient, Rescaled
from partwise.runtimes.executors import Plain, Pool, Stacked
from partwise.testing import check_jobs
from toy_stack import MLP, NEAR, SCALED, Case, ids, images, normal, text

PARTS: Mapping[str, Executor] = {"Plain": Plain(), "Pool": Pool(workers=1), "Stacked": Stacked()}


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with opened(PARTS["Pool"], {}) as found:
        yield found


# modules


class Flat(nn.Module):
    """Layers on flat pixels, and a head."""

    def __init__(self, *layers: nn.Module, width: int = 6) -> None:
        super().__init__()
        self.inner = nn.Linear(64, width)
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(self.inner(x.flatten(1))))


class TwoTypes(nn.Module):
    def __init__(self, first: torch.dtype, second: torch.dtype) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(64, 6).to(first), nn.Linear(6, 4).to(second)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x.flatten(1).to(self.inner.weight.dtype)))
        return self.out(hidden.to(self.out.weight.dtype))


class Scalars(nn.Module):
    """Parameters without an axis; one of them goes through a function."""

    def __init__(self, *, is_plain: bool) -> None:
        super().__init__()
        self.gain, self.heat = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        self.is_plain = is_plain

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :4] * self.gain
        return x if self.is_plain else x * self.heat.exp()


class Writes(Flat):
    """Writes into the batch it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


class Counts(Flat):
    """An integer buffer that `forward` moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return super().forward(x) / self.seen


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.embed, self.cells, self.out = nn.Embedding(11, 4), kind(4, 4, batch_first=True), nn.Linear(4, 11)

    def forward(self, history: Tensor) -> Tensor:
        found = self.cells(self.embed(history.long()))
        return self.out((found[0] if isinstance(found, tuple) else found)[:, -1])


def attention(width: int, hidden: int, *, batch_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(width, 2, hidden, dropout=0.0, batch_first=batch_first)


class SequenceFirst(nn.Module):
    """The examples are not along the first axis of what the linear map sees."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.out = nn.Embedding(11, 4), nn.Linear(4, 4), nn.Linear(4, 11)

    def forward(self, history: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inner(self.embed(history.long()).transpose(0, 1))).mean(0))


def pixels(module: Callable[[], nn.Module]) -> Case:
    return Case(Model(module, CrossEntropy()), images)


def words(module: Callable[[], nn.Module]) -> Case:
    return Case(Model(module, CrossEntropy(), inputs=("history",)), text)


def natural(case: Case, *examples: int, **plan: Any) -> list[Job]:
    """Jobs whose parameters have the model's own types."""
    types = {n: t.dtype for n, t in case.model.init(1).items()}
    return [
        job._replace(start={n: t.to(types[n]) for n, t in job.start.items()})
        for job in case.jobs(examples or (7, 12, 3), **plan)
    ]


def started(change: Callable[[Tensor], Tensor]) -> list[Job]:
    return [job._replace(start={n: change(t) for n, t in job.start.items()}) for job in MLP.jobs((5, 8, 3))]


def fed(change: Callable[[Tensor], Tensor]) -> list[Job]:
    jobs = MLP.jobs((5, 8, 3))
    columns = [job.data.columns() for job in jobs]
    return [j._replace(data=Examples({"x": change(c["x"]), "y": c["y"]})) for j, c in zip(jobs, columns, strict=True)]


def without_examples() -> list[Job]:
    job, other = MLP.jobs((3, 5))
    return [job._replace(data=Examples({n: c[:0] for n, c in job.data.columns().items()})), other]


def narrow_ids(history: torch.dtype) -> Case:
    def columns(n: int, client: int, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"history": ids(11, n, 5, seed=client).to(history), "y": ids(11, n, seed=client + 1)}

    module = lambda: nn.Sequential(nn.Embedding(11, 4), nn.Flatten(1), nn.Linear(20, 11))  # noqa: E731
    return Case(Model(module, CrossEntropy(), inputs=("history",)), columns)


def under_two_names() -> list[Job]:
    jobs = pixels(lambda: Flat(nn.Linear(6, 6))).jobs((5, 8))
    for job in jobs:
        job.start["inner.bias"] = job.start["layers.0.bias"]
    return jobs


def strided(t: Tensor) -> Tensor:
    return torch.stack([t, t + 1], -1)[..., 0]


CASES: Mapping[str, Callable[[], list[Job]]] = {
    # types
    "single then double": lambda: natural(pixels(lambda: TwoTypes(torch.float32, torch.float64))),
    "double then single": lambda: natural(pixels(lambda: TwoTypes(torch.float64, torch.float32))),
    "half then single": lambda: natural(pixels(lambda: TwoTypes(torch.bfloat16, torch.float32))),
    "half": lambda: natural(pixels(lambda: TwoTypes(torch.float16, torch.float16))),
    "an integer among the values": lambda: [
        job._replace(start={**job.start, "count": torch.tensor([3])}) for job in MLP.jobs((3, 4))
    ],
    "32-bit ids": lambda: narrow_ids(torch.int32).jobs((5, 8)),
    "8-bit ids, which no lookup takes": lambda: narrow_ids(torch.uint8).jobs((5, 8)),
    # parameters
    "scalars": lambda: pixels(lambda: Scalars(is_plain=True)).jobs((7, 3)),
    "scalars, Adam": lambda: pixels(lambda: Scalars(is_plain=True)).jobs((7, 3), optimizer=AdamW(0.01)),
    "scalars in a function": lambda: pixels(lambda: Scalars(is_plain=False)).jobs((7, 3), optimizer=SGD(0.1, 0.9)),
    "one tensor under two names": under_two_names,
    "one layer used twice": lambda: pixels(lambda: Flat(*[nn.Linear(6, 6)] * 2, nn.Tanh())).jobs((7, 3)),
    "the first layer frozen": lambda: MLP.jobs((7, 3), trainable=lambda name: name.startswith("head")),
    "the last layer frozen": lambda: MLP.jobs(
        (7, 3), optimizer=SGD(0.1, 0.9), trainable=lambda name: name.startswith("dense1")
    ),
    "weights frozen": lambda: MLP.jobs((7, 3), trainable=lambda name: name.endswith("bias")),
    "nothing trainable": lambda: MLP.jobs((3, 4), trainable=lambda name: False),
    "strided values": lambda: started(strided),
    "expanded values": lambda: started(lambda t: t[:1].expand(t.shape)),
    "parameters as values": lambda: started(lambda t: nn.Parameter(t, requires_grad=False)),
    # data
    "one example": lambda: MLP.jobs((1, 1, 1)),
    "batches larger than the data": lambda: MLP.jobs((3, 1, 5), batch_size=100, epochs=3),
    "no example": without_examples,
    "strided data": lambda: fed(strided),
    "expanded data": lambda: fed(lambda x: x[:1].expand(x.shape)),
    "a batch that is written into": lambda: pixels(Writes).jobs((7, 12)),
    # modules
    "in place": lambda: pixels(lambda: Flat(nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True))).jobs(
        (7, 12)
    ),
    "group norm": lambda: pixels(lambda: Flat(nn.GroupNorm(2, 6), nn.PReLU())).jobs((7, 12)),
    "GRU": lambda: words(lambda: Recurrent(nn.GRU)).jobs((7, 3)),
    "LSTM": lambda: words(lambda: Recurrent(nn.LSTM)).jobs((7, 3)),
    "sequence first": lambda: words(SequenceFirst).jobs((2, 4, 5)),
}


@pytest.mark.parametrize("executor", ["Pool", "Stacked"])
@pytest.mark.parametrize("case", CASES)
def test_odd_jobs(pool, case, executor):
    part = pool if executor == "Pool" else PARTS[executor]
    check_jobs(part, CASES[case](), near=NEAR if executor == "Stacked" else None)


# tables of which clients hold different rows


class Table(nn.Module):
    """A table, what `use` makes of it, and a layer."""

    def __init__(self, use: Callable[[nn.Embedding, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.out, self.use = nn.Embedding(29, 6), nn.Linear(6, 4), use

    def forward(self, history: Tensor, x: Tensor) -> Tensor:
        return self.out(self.use(self.table, history) + x)


class Tied(nn.Module):
    """The next of the items that a client holds: one table for what goes in and what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(29, 6)

    def forward(self, history: Tensor, x: Tensor) -> Tensor:
        return F.linear(self.table(history).mean(1) + x, self.table.weight)


def on_rows(module: Callable[[], nn.Module], *rows: int, width: int = 5) -> list[Job]:
    """One client for each number of rows."""
    model = Model(module, CrossEntropy(), ("history", "x"), tables={"table.weight": ("history",)})
    jobs = Case(model, lambda n, client, dtype: {"x": normal(n, 6, seed=client)}).jobs([6 + r for r in rows])
    found = []
    for client, (job, held) in enumerate(zip(jobs, rows, strict=True)):
        n = len(job.data)
        history = ids(max(1, held), n, width if held else 0, seed=client)
        columns = {**job.data.columns(), "history": history, "y": ids(min(4, held or 4), n, seed=client + 9)}
        start = {**job.start, "table.weight": job.start["table.weight"][:held].clone()}
        found.append(job._replace(start=start, data=Examples(columns)))
    return found


def looked_up(table: nn.Embedding, history: Tensor) -> Tensor:
    found: Tensor = table(history).sum(1)
    return found


def centred(table: nn.Embedding, history: Tensor) -> Tensor:
    return looked_up(table, history) - table.weight.mean(0)


def from_the_end(table: nn.Embedding, history: Tensor) -> Tensor:
    return table.weight[history - 1].sum(1)


def by_index(table: nn.Embedding, history: Tensor) -> Tensor:
    return table.weight[history].sum(1)


def looked_up_by_map(table: nn.Embedding, history: Tensor) -> Tensor:
    """What no fold knows, so that the clients are mapped."""
    return looked_up(table, history).type_as(table.weight)


def with_bad_id(jobs: list[Job]) -> list[Job]:
    """The first client looks for a row that only the others have."""
    columns = dict(jobs[0].data.columns())
    columns["history"] = columns["history"].clone()
    columns["history"][1, 1] = len(jobs[0].start["table.weight"])
    return [jobs[0]._replace(data=Examples(columns)), *jobs[1:]]


def rescaled(jobs: list[Job]) -> list[Job]:
    return [j._replace(plan=replace(j.plan, loss=Rescaled(j.plan.loss, {"table.weight": 2.0}))) for j in jobs]


TABLES: Mapping[str, Callable[[], list[Job]]] = {
    "no rows": lambda: on_rows(lambda: Table(looked_up), 0, 0),
    "no rows beside some": lambda: on_rows(lambda: Table(looked_up), 0, 4, 7),
    "one row": lambda: on_rows(lambda: Table(looked_up), 1, 3),
    "indexed": lambda: on_rows(lambda: Table(by_index), 3, 4, 7),
    "tied to the output": lambda: on_rows(Tied, 9, 7, 12),
    "centred": lambda: on_rows(lambda: Table(centred), 3, 4, 7),
    "indexed from the end": lambda: on_rows(lambda: Table(from_the_end), 3, 4, 7),
    "mapped": lambda: on_rows(lambda: Table(looked_up_by_map), 3, 4, 7),
    "mapped, a bad id": lambda: with_bad_id(on_rows(lambda: Table(looked_up_by_map), 3, 4, 7)),
    "mapped, rescaled": lambda: rescaled(on_rows(lambda: Table(looked_up_by_map), 3, 4, 7)),
    "mapped, rescaled, a bad id": lambda: rescaled(with_bad_id(on_rows(lambda: Table(looked_up_by_map), 3, 4, 7))),
    "indexed, a bad id": lambda: with_bad_id(on_rows(lambda: Table(by_index), 3, 4, 7)),
}


@pytest.mark.parametrize(
    "case",
    TABLES,
)
def test_stacked_tables(case):
    check_jobs(Stacked(), TABLES[case](), near=NEAR)


@pytest.mark.parametrize("case", TABLES)
def test_pooled_tables(pool, case):
    check_jobs(pool, TABLES[case]())


# what looks at a whole batch


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.out(x - x.mean(0))


def batch_norm() -> nn.Module:
    return Flat(nn.BatchNorm1d(6, track_running_stats=False))


@pytest.mark.parametrize(
    ("module", "examples"),
    [
        pytest.param(Centred, (8, 12, 4), id="centred"),
        pytest.param(batch_norm, (8, 12, 4), id="batch norm"),
        pytest.param(Centred, (7, 12, 5), id="centred, short batches"),
        pytest.param(batch_norm, (7, 12, 6), id="batch norm, short batches"),
        pytest.param(batch_norm, (8, 5), id="batch norm, a batch of one, which it refuses"),
    ],
)
def test_batches_as_a_whole(pool, module, examples):
    jobs = pixels(module).jobs(examples)
    check_jobs(pool, jobs)
    check_jobs(Stacked(), jobs, near=NEAR)


# bugs of one kind each


@pytest.mark.parametrize("executor", PARTS)
@pytest.mark.parametrize(
    "module", [Counts, lambda: Flat(nn.BatchNorm1d(6, momentum=None))], ids=["a counter", "batch norm"]
)
def test_integer_buffers_begin_anew_with_every_job(module, executor):
    """A BatchNorm without a momentum takes it from the number of batches that it has seen."""
    case = pixels(module)
    jobs = case.jobs((8, 12, 8), buffers=case.model.buffers())
    Plain().run(jobs[:1])
    check_jobs(PARTS[executor], jobs, near=NEAR if executor == "Stacked" else None)


def test_batch_of_everything_that_is_written_into():
    check_jobs(Stacked(), pixels(Writes).jobs((7, 12), batch_size=0, steps=3), near=NEAR)


def test_values_that_require_a_gradient():
    check_jobs(Stacked(), started(lambda t: t.clone().requires_grad_()), near=NEAR)


def test_scalars_are_clipped_together(caplog):
    jobs = [job._replace(plan=replace(job.plan, gradient=(ClipGradient(0.2),))) for job in SCALED.jobs((7, 3))]
    caplog.set_level(logging.INFO, "partwise")
    executor = Stacked()
    assert "together, folded" in executor.explain(jobs)[0]
    check_jobs(executor, jobs, near=NEAR)
    assert "one after another" not in caplog.text


def test_slow_operations_are_no_warning():
    check_jobs(Stacked(), words(lambda: Recurrent(attention)).jobs((7, 3)), near=NEAR)


class Unreadable:
    """A gradient term that can be pickled, and not unpickled."""

    def __call__(self, params: Mapping[str, Tensor], grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return grads

    def __reduce__(self) -> Any:
        return int, ("seven",)


def test_job_that_cannot_be_unpickled(pool):
    jobs = MLP.jobs((3, 4))
    check_jobs(pool, [jobs[0], jobs[1]._replace(plan=replace(jobs[1].plan, gradient=(Unreadable(),)))])
