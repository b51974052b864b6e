"""What a client has at hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.core.algorithm import Site
from partwise.core.errors import CompositionError, DataError
from partwise.core.index import Rows, Whole
from partwise.core.model import MeanSquaredError, Model, like
from partwise.core.population import Examples, Profile

MODEL = Model(lambda: nn.Embedding(5, 1), MeanSquaredError(), inputs=("item",), tables={"weight": ("item",)})


def rows(ids: torch.Tensor) -> list[int]:
    site = Site(3, MODEL, like(MODEL.init(0)), Examples({"item": ids}), Profile(), 0)
    return site.table_rows("weight").tolist()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_rows_are_those_that_the_ids_name(dtype):
    assert rows(torch.tensor([4, 1, 4, 0], dtype=dtype)) == [0, 1, 4]


@pytest.mark.parametrize("ids", [torch.tensor([0.7, 1.0]), torch.tensor([True, False])])
def test_ids_that_are_no_whole_numbers_are_not_made_some(ids):
    with pytest.raises(DataError, match=rf"client 3: ids of 'weight' must be whole numbers, got {ids.dtype}\. Number"):
        rows(ids)


class Block(Whole):
    """Rows 1 and 2, by an index that is not known to hold rows."""

    def held_shape(self, name):
        return (2, *self.shapes[name][1:])


def test_ids_are_not_taken_for_rows_of_which_nobody_knows_which_are_held():
    """Of ids 1 and 2 in rows 1 and 2, the first would be looked up in row 2, and the second nowhere."""
    site = Site(3, MODEL, like(MODEL.init(0)), Examples({"item": torch.tensor([1, 2])}), Profile(), 0)
    with pytest.raises(CompositionError, match=r"only Rows tells, got Block with 2 of 5\. Select Rows, or give"):
        site.localized(Block({"weight": (5, 1)}))
    found = site.localized(Rows({"weight": (5, 1)}, {"weight": torch.tensor([1, 2])}))
    assert found.columns()["item"].tolist() == [0, 1]
