from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from partwise.core.renumber import different, positions


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(31, 400))
def test_different_ids_are_those_of_a_set(ids, size):
    """Of short and of long tables."""
    found = different(torch.tensor(ids), size)
    assert found.dtype == torch.int64
    assert found.tolist() == sorted(set(ids))


@pytest.mark.parametrize("ids", [[3, -1, 3, 0], [3, 9, 3, 0], [3, 500, 3]])
def test_ids_beyond_the_table_are_told_too(ids):
    assert different(torch.tensor(ids), 9).tolist() == sorted(set(ids))


@given(st.sets(st.integers(0, 60), min_size=1), st.data())
def test_positions_are_those_of_a_list(rows, data):
    rows = sorted(rows)
    ids = data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=40))
    found = positions(torch.tensor(rows), torch.tensor(ids))
    assert found is not None
    assert found.dtype == torch.int64
    assert found.tolist() == [rows.index(i) for i in ids]


@pytest.mark.parametrize("many", [1, 50])
@pytest.mark.parametrize("odd", [-1, 3, 8, 1000])
def test_an_id_that_is_not_held(odd, many):
    assert positions(torch.tensor([2, 5, 7]), torch.tensor([5] * many + [odd])) is None


def test_nothing_held_and_nothing_asked():
    none = torch.zeros(0, dtype=torch.int64)
    assert positions(none, torch.tensor([1])) is None
    found = positions(none, none.view(0, 3))
    assert found is not None
    assert found.shape == (0, 3)
    assert different(none, 7).tolist() == []


@pytest.mark.parametrize("many", [4, 4000])
def test_shapes_and_memory_in_any_order(many):
    rows = torch.arange(1, 1000, 3)
    ids = rows[torch.from_numpy(np.random.default_rng(1).integers(len(rows), size=(many, 6)))].t()
    found = positions(rows, ids)
    assert found is not None
    assert torch.equal(rows[found], ids)
    assert torch.equal(different(ids.reshape(-1), 1000), torch.unique(ids))
