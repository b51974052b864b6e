"""What clients remember, and the mean over everybody of it, against values by hand."""

from __future__ import annotations

import torch

from partwise.algorithms.memory import PopulationMean, Remembered
from partwise.core.aggregate import Sum
from partwise.core.index import Rows, Whole

SHAPES = {"a": (4, 1), "b": (4, 1)}


def rows(a: list[int], b: list[int]) -> Rows:
    return Rows(SHAPES, {"a": torch.tensor(a), "b": torch.tensor(b)})


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(-1, 1)


def test_other_rows_of_one_table_of_two_are_placed_with_what_is_on_its_way():
    """Of `a` the same rows are held as before; of `b` row 2 stays, row 0 goes and row 3 comes."""
    value = {"a": column(1.0, 2.0), "b": column(3.0, 4.0)}
    change = {"a": column(5.0, 6.0), "b": column(7.0, 8.0)}
    whole = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    placed = Remembered(rows([0, 1], [0, 2]), value, {9: change}).placed(rows([0, 1], [2, 3]), whole)
    assert {name: t.flatten().tolist() for name, t in placed.value.items()} == {"a": [1.0, 2.0], "b": [4.0, 0.0]}
    assert {n: t.flatten().tolist() for n, t in placed.pending[9].items()} == {"a": [5.0, 6.0], "b": [8.0, 0.0]}


def test_rows_that_nobody_holds_stay_as_they_are():
    """Two of three rows have holders, 2 and 1; the sum of the third is zero, and so is its mean."""
    params = {"a": torch.zeros(3, 1)}
    got = Sum(Whole({"a": (3, 1)}), {"a": column(6.0, 5.0, 0.0)}, {"a": torch.tensor(1.0)}, 2.0, 2)
    found, _ = PopulationMean(by_heat=True).reduce(got, (4, {"a": column(2.0, 1.0, 0.0)}), params)
    assert found.values()["a"].flatten().tolist() == [3.0, 5.0, 0.0]
