"""Models and jobs that executors are compared on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwise.core.model import BinaryCrossEntropy, CrossEntropy, Model, Values
from partwise.core.plan import Executor, Job, LocalPlan, ModelLoss, Trained
from partwise.core.population import Examples
from partwise.local import SGD
from partwise.runtimes.executors import Plain
from partwise.workloads.models import AttentionRecommender, ImageCNN, ImageMLP, NextSymbol, SparseLinear

# Products are summed in another order, which moves the last digit of a step; a few dozen steps add up.
NEAR = {torch.float64: 1e-9, torch.float32: 1e-4}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(limit: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(limit, shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Case:
    """A model, and what client number `client` holds and trains on."""

    model: Model
    columns: Callable[[int, int, torch.dtype], dict[str, Tensor]]  # examples, client, dtype
    table: str = ""

    def rows(self, client: int) -> int:
        return 9 + 5 * ((client * 2) % 5)

    def start(self, client: int, dtype: torch.dtype) -> Values:
        values = {
            n: (t.double() + 0.1 * normal(*t.shape, seed=client)).to(dtype) for n, t in self.model.init(1).items()
        }
        if self.table:
            values[self.table] = values[self.table][: self.rows(client)].clone()
        return values

    def jobs(
        self, examples: Sequence[int] = (7, 12, 3, 20), dtype: torch.dtype = torch.float64, **plan: Any
    ) -> list[Job]:
        plan = {"optimizer": SGD(0.1), "batch_size": 4, **plan}
        return [
            Job(
                LocalPlan(ModelLoss(self.model), **plan),
                self.start(client, dtype),
                Examples(self.columns(n, client, dtype)),
                seed=100 + client,
            )
            for client, n in enumerate(examples)
        ]


def images(n: int, client: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"x": normal(n, 1, 8, 8, seed=client).to(dtype), "y": ids(4, n, seed=client)}


def clicks(n: int, client: int, dtype: torch.dtype) -> dict[str, Tensor]:
    rows = DIN.rows(client)
    return {
        "history": ids(rows, n, 5, seed=client),
        "candidate": ids(rows, n, seed=client + 50),
        "y": ids(2, n, seed=client + 90),
    }


def features(n: int, client: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"features": ids(SPARSE.rows(client), n, 3, seed=client), "y": ids(2, n, seed=client + 50)}


def text(n: int, client: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"history": ids(11, n, 5, seed=client).to(torch.uint8), "y": ids(11, n, seed=client + 50)}


class Scaled(nn.Module):
    """Layer norms, sums and products with parameters, a weight that is used twice and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 6)
        self.again = nn.Linear(6, 6, bias=False)
        self.norm = nn.LayerNorm(6)
        self.gain = nn.Parameter(torch.ones(6))
        self.shift = nn.Parameter(torch.zeros(()))
        self.unused = nn.Parameter(torch.ones(3))
        self.out = nn.Sequential(nn.Tanh(), nn.Dropout(0.0), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(F.gelu(self.inner(x.flatten(1))))
        hidden = self.again(torch.sigmoid(self.again(hidden)))
        result: Tensor = self.out(self.gain * hidden * self.gain + self.shift)
        return result


class Tied(nn.Module):
    """One table for what goes in and what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 11)
        self.out.weight = self.table.weight

    def forward(self, history: Tensor) -> Tensor:
        result: Tensor = self.out(self.table(history.long()).mean(1))
        return result


MLP = Case(Model(lambda: ImageMLP(64, 9, 4), CrossEntropy()), images)
DIN = Case(
    Model(
        lambda: AttentionRecommender(29, 6, 5),
        BinaryCrossEntropy(),
        inputs=("history", "candidate"),
        tables={"items.weight": ("history", "candidate")},
    ),
    clicks,
    "items.weight",
)
SPARSE = Case(
    Model(
        lambda: SparseLinear(29), BinaryCrossEntropy(), inputs=("features",), tables={"weights.weight": ("features",)}
    ),
    features,
    "weights.weight",
)
TEXT = Case(Model(lambda: NextSymbol(11, 4, 6, 2), CrossEntropy(), inputs=("history",)), text)
SCALED = Case(Model(Scaled, CrossEntropy()), images)
TIED = Case(Model(Tied, CrossEntropy(), inputs=("history",)), text)
CNN = Case(Model(lambda: ImageCNN(1, 8, 2, 3, 4, 4), CrossEntropy()), images)
CASES = {"mlp": MLP, "din": DIN, "sparse": SPARSE, "text": TEXT, "scaled": SCALED, "tied": TIED, "cnn": CNN}
FOLDED = {"mlp": MLP, "din": DIN, "sparse": SPARSE, "text": TEXT, "scaled": SCALED, "tied": TIED}


def agree(jobs: Sequence[Job], executor: Executor, near: float = 0.0) -> None:
    """The results are autograd's, relative to the largest entry of a parameter, and nothing given is changed."""
    before = [{n: t.clone() for n, t in job.start.items()} for job in jobs]
    expected, found = Plain(autograd=True).run(jobs), executor.run(jobs)
    assert len(expected) == len(found)
    for job, start, one, other in zip(jobs, before, expected, found, strict=True):
        assert isinstance(one, Trained), one
        assert isinstance(other, Trained), other
        assert other.steps == one.steps
        assert list(other.change) == list(one.change)
        assert all(torch.equal(start[n], t) for n, t in job.start.items())
        near_ = near or NEAR[next(iter(start.values())).dtype]
        assert other.loss == pytest.approx(one.loss, rel=near_)
        for name, value in one.change.items():
            assert other.change[name].dtype == value.dtype
            assert other.change[name].shape == value.shape
            scale = max(float(t.abs().max()) if t.numel() else 0.0 for t in (value, start[name]))
            torch.testing.assert_close(other.change[name], value, rtol=0, atol=near_ * scale)
