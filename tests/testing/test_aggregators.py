"""Each rule of the contract of aggregators can be broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from partwise.core.index import Whole, shapes_of
from partwise.core.update import Update, to_dense
from partwise.testing import check


def spoiled(total, got, params):
    for update in got:
        for value in update.value.values():
            value.zero_()
    return total


FAULTS = {
    "first wins": lambda total, got, params: to_dense(got[0], params) if got else total,
    "weights": lambda total, got, params: {n: t * sum(u.weight for u in got) for n, t in total.items()},
    "own push": lambda total, got, params: {n: t + 1e-3 for n, t in total.items()},
    "decay": lambda total, got, params: {n: t - 0.01 * params[n] * (t != 0).any() for n, t in total.items()},
    "in place": spoiled,
    "zeros": lambda total, got, params: {n: t * (0 // int(total["E"].any() or not got)) for n, t in total.items()},
    "type": lambda total, got, params: {n: t.half() for n, t in total.items()},
}


@dataclass(frozen=True)
class BrokenAggregator:
    """A tenth of the sum, with one fault."""

    fault: str = ""
    needs: ClassVar[str] = "each"

    def init(self, params, census):
        return [0]

    def reduce(self, got, state, params, replies=()):
        if self.fault == "crash on few" and len(got) < 2:
            raise IndexError("list index out of range")
        if self.fault == "nameless" and len(got) < 2:
            raise ValueError("too few")
        total = {n: torch.zeros_like(t) for n, t in params.items()}
        for update in got:
            update.index.scatter_add_(total, update.values(), 0.1)
        if self.fault in FAULTS:
            total = FAULTS[self.fault](total, got, params)
        return Update(Whole(shapes_of(params)), total), object() if self.fault == "forgets" else state


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("", None),
        ("first wins", "must not depend on the order of the clients, got a difference of"),
        ("weights", "must not depend on the unit of the weights"),
        ("own push", "must give zero where every client sends zero, got 0.001"),
        ("zeros", "must take updates that are zero, got ZeroDivisionError"),
        ("decay", "must leave alone what nobody holds, to the last bit"),
        ("in place", "must leave the updates and parameters it is given as it is"),
        ("forgets", "the state must have an encoding"),
        ("type", "must keep dtype and device"),
        ("crash on few", "must take 0 updates, or refuse them with a ValueError, got IndexError"),
        ("nameless", "must take 0 updates, or refuse them in a sentence that names the part"),
    ],
)
def test_aggregator_rule_fails(fault, says):
    if says is None:
        check(BrokenAggregator())
    else:
        with pytest.raises(AssertionError, match=says):
            check(BrokenAggregator(fault))


@dataclass(frozen=True)
class NeedsMore:
    needs: ClassVar[str] = "all"
    init = BrokenAggregator.init
    reduce = BrokenAggregator.reduce


def test_aggregator_must_say_what_it_needs():
    with pytest.raises(AssertionError, match=r"NeedsMore\(\): needs 'sum' or 'each', got 'all'\. Say which it reads\."):
        check(NeedsMore())


def test_a_class_inside_a_function_does_not_rebuild():
    @dataclass(frozen=True)
    class Inside:
        def init(self, params):
            return ()

        def apply(self, update, state, rng):
            return update, state

    with pytest.raises(AssertionError, match="a part rebuilds from its repr"):
        check(Inside())


@dataclass(frozen=True)
class Talkative(BrokenAggregator):
    """Tells what cannot be recorded, or hides what is."""

    told_: str = ""

    def told(self, state):
        return {"": {"kept": 3}, "tensor": {"kept": torch.tensor(3)}, "nothing": None, "hides": {"version": 7}}[
            self.told_
        ]


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("tensor", "must tell facts by name, got TypeError: Object of type Tensor"),
        ("nothing", "must tell facts by name, got TypeError"),
        ("hides", r"must tell facts by name, which is none of \('stream', 'version'\), got \['version'\]"),
    ],
)
def test_what_is_told_can_be_recorded(told, says):
    check(Talkative())
    with pytest.raises(AssertionError, match=rf"^Talkative\(fault='', told_='{told}'\): {says}"):
        check(Talkative(told_=told))
