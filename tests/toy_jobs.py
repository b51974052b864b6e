"""Jobs that leave nothing out: strides, running statistics, dropout, an unused layer, clients of five sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from partwise.core.model import CrossEntropy, Model
from partwise.core.plan import Job, LocalPlan, ModelLoss, Trained
from partwise.local import AdamW
from partwise.populations import ArrayPopulation


def same(some: Sequence[Trained | Exception], others: Sequence[Trained | Exception]) -> bool:
    """Equal to the last bit, errors by type and sentence."""
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        if isinstance(a, Exception) or isinstance(b, Exception):
            if type(a) is not type(b) or str(a) != str(b):
                return False
        elif not (
            list(a.change) == list(b.change)
            and all(torch.equal(a.change[n], b.change[n]) and a.change[n].stride() == b.change[n].stride() for n in a.change)
            and (a.steps, a.loss) == (b.steps, b.loss)
        ):
            return False
    return True


class Net(nn.Module):
    """Convolution, running statistics, dropout, and a layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.4)
        self.spare = nn.Linear(2, 2)
        self.out = nn.Linear(6 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.norm(self.conv(x)).relu().flatten(1)))


def model() -> Model:
    return Model(Net, CrossEntropy())


def people() -> ArrayPopulation:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(60, 1, 8, 8, generator=draw)
    return ArrayPopulation({"x": x, "y": torch.randint(3, (60,), generator=draw)}, torch.tensor([0, 7, 30, 31, 48, 60]))


def jobs(of: Model | None = None, **more: Any) -> list[Job]:
    of, population = of or model(), people()
    start = of.init(4)
    start["out.weight"] = start["out.weight"].t().contiguous().t()  # strides are kept: kernels depend on them
    plan = LocalPlan(ModelLoss(of), AdamW(0.02), batch_size=4, steps=3, buffers=of.buffers())
    plan = replace(plan, **more)
    return [Job(plan, start, population.data(c), 10 + c) for c in population.clients]
