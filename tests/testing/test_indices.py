"""Each rule of the contract of indices can be broken."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from partwise.core.index import Index, Rows
from partwise.testing import check


@dataclass(frozen=True, eq=False)
class BrokenIndex:
    """`inner` with one method gone wrong."""

    inner: Index
    fault: str = ""

    @property
    def shapes(self):
        return self.inner.shapes

    def gather(self, params):
        held = {n: params[n] for n in self.shapes} if self.fault == "views" else self.inner.gather(params)
        return dict(list(held.items())[1:]) if self.fault == "names" else held

    def scatter_add_(self, target, values, scale=1.0):
        if self.fault == "transpose":
            values = {n: v.flip(0) for n, v in values.items()}
        self.inner.scatter_add_(target, values, 1.0 if self.fault == "scale" else scale)

    def put_(self, target, values):
        if self.fault == "put adds":
            self.inner.scatter_add_(target, values)
        elif self.fault == "put everywhere":
            for n in self.shapes:
                target[n].zero_()
            self.inner.put_(target, values)
        else:
            self.inner.put_(target, values)

    def cover_(self, target, weight):
        if self.fault == "cover scalar" and isinstance(weight, dict):
            weight = 1.0
        self.inner.cover_(target, 2 * weight if self.fault == "cover twice" else weight)

    def grain(self, name):
        return 0 if self.fault == "grain" else self.inner.grain(name)

    def held_shape(self, name):
        return (99,) if self.fault == "shape" else self.inner.held_shape(name)

    def coords(self, name):
        return self.inner.coords(name).flip(0) if self.fault == "coords" else self.inner.coords(name)


@dataclass(frozen=True, eq=False)
class Columns:
    """Some columns of a matrix W, gathered column after column: a linear map with a transpose all the same."""

    shape: tuple[int, int]
    columns: tuple[int, ...]

    @property
    def shapes(self):
        return {"W": self.shape}

    def gather(self, params):
        return {"W": params["W"][:, self.columns].t().contiguous()}

    def scatter_add_(self, target, values, scale=1.0):
        target["W"][:, self.columns] += scale * values["W"].t()

    def put_(self, target, values):
        target["W"][:, self.columns] = values["W"].t()

    def cover_(self, target, weight):
        target["W"][:, self.columns] += weight["W"].reshape(1, -1) if isinstance(weight, dict) else weight

    def grain(self, name):
        return 2

    def held_shape(self, name):
        return len(self.columns), self.shape[0]

    def coords(self, name):
        rows, width = self.shape
        return (torch.tensor(self.columns)[:, None] + width * torch.arange(rows)).reshape(-1)


def test_values_are_gathered_in_the_order_in_which_they_lie():
    with pytest.raises(AssertionError, match=r"coords\('W'\) must ascend.*, got \[0, 3, 2, 5\]\. Gather"):
        check(Columns((2, 3), (0, 2)))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("names", "must gather exactly the names in `shapes`, got"),
        ("views", "must leave the parameters when gathered values are written to as it is"),
        ("shape", r"must gather 'E' in its held shape \(99,\)"),
        ("coords", r"coords\('E'\) must be the flat positions"),
        ("transpose", "scatter_add_ must be the transpose of gather"),
        ("scale", "scatter_add_ must add scale times the values"),
        ("put adds", "gather must give back what put_ wrote"),
        ("put everywhere", "put_ must write only what is held"),
        ("cover twice", "cover_ must add its weight to 'E' exactly where"),
        ("cover scalar", "cover_ must broadcast weights per row"),
        ("grain", "cover_ must"),
        ("", "an index must have an encoding, got TypeError"),
    ],
)
def test_index_rule_fails(fault, says):
    rows = Rows({"E": (5, 2), "b": (3,)}, {"E": torch.tensor([0, 2, 3]), "b": None})
    everything = Rows({"E": (5, 2), "b": (3,)}, {"E": torch.arange(5), "b": None})
    inner = everything if fault == "views" else rows
    with pytest.raises(AssertionError, match=says):
        check(BrokenIndex(inner, fault))
