"""What a client has at hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.core.algorithm import Site
from partwise.core.errors import DataError
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
