"""Trees in shared memory: what is copied, what is inherited, and what stays as it was."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from partwise.core.model import CrossEntropy, Model
from partwise.core.plan import Job, LocalPlan, ModelLoss
from partwise.core.population import Examples
from partwise.core.spool import owned
from partwise.local import SGD, Proximal
from partwise.runtimes.executors.slots import Inherited, Slot, UnsendableError, pickles


def there_and_back(tree: Any) -> Any:
    slot = Slot()
    try:
        return owned(slot.read(slot.write(tree, NONE), NONE))
    finally:
        slot.close()


NONE = Inherited()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(7.0),
        torch.tensor(3),
        torch.empty(0, 4),
        torch.arange(12).reshape(3, 4).t(),
        torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last),
        torch.arange(12.0)[2:9:3],
        torch.tensor([True, False]),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor([1 + 2j]),
        torch.ones(2, requires_grad=True),
        nn.Parameter(torch.arange(3.0)),
    ],
    ids=lambda x: f"{x.dtype} {tuple(x.shape)} {x.stride()}",
)
def test_tensors_come_back_with_type_and_strides(tensor):
    found, again = there_and_back({"x": tensor, "y": (1, [tensor, "text"])})["x"], tensor.clone()
    assert torch.equal(found, again)
    assert (found.dtype, found.shape, found.stride()) == (again.dtype, again.shape, again.stride())


def job(of: Model | None = None) -> Job:
    of = of or Model(lambda: nn.Linear(50, 2).train(), CrossEntropy())
    shared = torch.arange(2000.0).reshape(40, 50)
    data = Examples({"x": shared[10:30], "y": torch.zeros(40, dtype=torch.int64)[10:30]})
    start = {"weight": torch.ones(2, 50), "bias": torch.zeros(2)}
    return Job(LocalPlan(ModelLoss(of), SGD(), gradient=(Proximal(0.1, start),)), start, data, 3)


def test_model_and_shared_columns_are_inherited():
    inherited, slot, given = Inherited(), Slot(), job()
    with pytest.raises(UnsendableError):
        slot.write(given, inherited)
    assert inherited.learn(given)
    place = slot.write(given, inherited)
    assert place.start == 448 + 64  # 100 weights, which two places name, and the bias; none of the 20 examples
    found = slot.read(place, inherited)
    assert found.plan.loss.model is given.plan.loss.model
    assert found.data.columns()["x"].data_ptr() == given.data.columns()["x"].data_ptr()
    assert found.plan.gradient[0].anchor["weight"].data_ptr() == found.start["weight"].data_ptr()
    assert found.start["bias"].data_ptr() % 64 == 0
    slot.close()


def test_columns_of_a_client_alone_are_copied():
    inherited, slot, given = Inherited(), Slot(), job()
    inherited.learn(given)
    other = given._replace(data=Examples({"x": torch.ones(20, 50), "y": torch.zeros(20, dtype=torch.int64)}))
    place = slot.write(other, inherited)
    assert place.start > 4000
    assert torch.equal(slot.read(place, inherited).data.columns()["x"], torch.ones(20, 50))
    slot.close()


def test_what_cannot_be_pickled_can_be_inherited_and_forgotten():
    inherited, slot, given = Inherited(), Slot(), job()
    odd = given._replace(plan=replace(given.plan, trainable=lambda name: True))
    assert not inherited.learn(odd)
    with pytest.raises(UnsendableError, match="lambda"):
        slot.write(odd, inherited)
    inherited.add(odd)
    assert slot.read(slot.write(odd, inherited), inherited) is odd
    inherited.forget([odd])
    with pytest.raises(UnsendableError):
        slot.write(odd, inherited)
    slot.close()


def test_slot_grows_on_either_side_and_leaves_no_file():
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - of this very moment
    slot, small, large = Slot(), {"x": torch.ones(10)}, {"x": torch.arange(50_000.0)}
    first = slot.write(small, NONE)
    second = slot.write(large, NONE)
    assert second.capacity > 200_000 > first.capacity
    assert torch.equal(slot.read(second, NONE)["x"], large["x"])
    assert torch.equal(slot.read(slot.write(small, NONE), NONE)["x"], small["x"])
    slot.close()
    slot.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@dataclass
class StubbornError(Exception):
    """Refuses to be pickled."""

    why: str

    def __reduce__(self) -> Any:
        raise TypeError("no")


def test_errors_that_do_not_survive_become_sentences():
    error = ValueError("seven", 7)
    assert pickles(error) is error
    assert repr(pickles(StubbornError("because"))) == "RuntimeError('StubbornError: because')"
