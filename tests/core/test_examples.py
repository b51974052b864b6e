"""Examples as columns, and slices of them."""

from __future__ import annotations

import pickle

import pytest
import torch

from partwise.core.population import Examples


def numbered() -> Examples:
    return Examples({"x": torch.arange(20.0).view(10, 2), "y": torch.arange(10)})


@pytest.mark.parametrize(
    ("start", "stop", "held"),
    [(2, 5, [2, 3, 4]), (0, 10, list(range(10))), (4, 4, []), (7, 99, [7, 8, 9]), (6, 2, []), (-3, -1, [7, 8])],
)
def test_slices_are_as_those_of_a_list(start, stop, held):
    examples = numbered().slice(start, stop)
    assert len(examples) == len(held)
    assert examples.columns()["y"].tolist() == held
    assert examples.columns()["x"][:, 0].tolist() == [2.0 * i for i in held]
    at = torch.arange(len(held)).flip(0)
    assert examples.batch(at)["y"].tolist() == held[::-1]


def test_a_slice_of_a_slice_counts_from_where_that_begins():
    whole = numbered()
    inner = whole.slice(3, 9).slice(1, 3)
    assert inner.columns()["y"].tolist() == [4, 5]
    columns, begin = inner.place()
    assert columns is whole.columns()
    assert begin == 4


def test_a_slice_is_views_and_is_the_same_ones_each_time():
    whole = numbered()
    part = whole.slice(2, 5)
    part.columns()["y"][0] = 77
    assert whole.columns()["y"][2] == 77
    assert part.columns()["x"] is part.columns()["x"]


def test_a_slice_is_sent_as_its_own_columns():
    part = numbered().slice(5, 8)
    sent = pickle.loads(pickle.dumps(part))
    assert sent.columns()["y"].tolist() == [5, 6, 7]
    assert len(sent.place()[0]["y"]) == 3


def test_an_example_outside_a_slice_is_refused():
    with pytest.raises(IndexError):
        numbered().slice(2, 5).batch(torch.tensor([3]))


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"equal length, got \{'x': 3, 'y': 2\}"):
        Examples({"x": torch.zeros(3), "y": torch.zeros(2)})


def test_says_how_many_and_of_what():
    assert repr(numbered().slice(2, 5)) == "Examples(3 of x, y)"


def test_no_columns_are_no_examples():
    assert len(Examples({})) == 0
    assert Examples({}).columns() == {}
