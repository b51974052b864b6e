from __future__ import annotations

import numpy as np
import pytest
import torch

from partwise.core.errors import DataError
from partwise.populations.columns import as_columns, known


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], torch.int64),
        ([1.5, 2.0], torch.float32),
        ([True, False], torch.bool),
        (np.array([1.0, 2.0]), torch.float32),
        (np.array([1.0, 2.0], np.longdouble), torch.float32),
        (np.array([1, 2], np.uint8), torch.uint8),
        (np.array([1, 2], np.uint32), torch.int64),
        (np.array([1, 2], ">i4"), torch.int32),
        (torch.tensor([1.0, 2.0], dtype=torch.float64), torch.float64),
        ([np.array([1, 2]), np.array([3, 4])], torch.int64),
        ([torch.tensor([1.5]), torch.tensor([2.5])], torch.float32),
        ([torch.tensor([1.5], dtype=torch.bfloat16), torch.tensor([2.5], dtype=torch.bfloat16)], torch.float32),
        (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.bfloat16),
        ([[1, 2], [3, 4]], torch.int64),
        (range(2), torch.int64),
    ],
)
def test_types(values, dtype):
    column = as_columns("f()", {"a": values})["a"]
    assert column.dtype == dtype
    assert len(column) == 2


def test_values_are_kept():
    columns = as_columns("f()", {"a": np.array([[1, 2], [3, 4]])[::-1], "b": [7.25, -1.0]})
    assert columns["a"].tolist() == [[3, 4], [1, 2]]
    assert columns["b"].tolist() == [7.25, -1.0]


def test_a_data_frame_is_a_column_of_its_rows():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([[1.5, 2.0], [3.0, 4.5]])  # as many rows as columns, which are called 0 and 1
    assert as_columns("f()", {"x": frame})["x"].tolist() == [[1.5, 2.0], [3.0, 4.5]]
    named = pandas.DataFrame({"age": [30, 40, 50], "sex": [0, 1, 1]})
    assert as_columns("f()", {"x": named})["x"].tolist() == [[30, 0], [40, 1], [50, 1]]
    with pytest.raises(DataError, match="columns must hold numbers, got object in column 'x'"):
        as_columns("f()", {"x": named.assign(name=["a", "b", "c"])})


def test_what_a_network_made_is_taken_without_its_gradient():
    made = torch.nn.Linear(3, 2)(torch.ones(4, 3))
    columns = as_columns("f()", {"a": made, "b": list(made)})
    for column in columns.values():
        assert not column.requires_grad
        assert column.tolist() == made.tolist()


def test_read_only_arrays_are_copied():
    array = np.array([1, 2])
    array.flags.writeable = False
    as_columns("f()", {"a": array})["a"][0] = 9
    assert array.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"f\(\): columns must have equal length, at least 1, got no column\. Cut them"),
        ({"a": []}, r"at least 1, got \{'a': 0\}"),
        ({"a": [1, 2], "b": [1]}, r"equal length, at least 1, got \{'a': 2, 'b': 1\}"),
        (
            {"a": [1.0, float("nan"), float("nan")]},
            r"must be finite, got NaN or infinity in column 'a' of 2 examples, the first at 1\. Fill",
        ),
        ({"a": np.array([[1.0, 2.0], [np.inf, 0.0]])}, "of 1 examples, the first at 1"),
        ({"a": ["x", "y"]}, r"columns must hold numbers, got <U1 in column 'a'\. Encode text as integers"),
        ({"a": np.array([{}, None])}, "columns must hold numbers, got object in column 'a'"),
        ({"a": [[1, 2], [3]]}, r"all examples must have the same shape, got different ones in column 'a'\. Pad or cut"),
        ({"a": [1, [2, 3]]}, r"all examples must have the same shape, got different ones in column 'a'\. Pad or cut"),
        (
            {"a": np.ma.masked_array([1.0, 2.0, 3.0], [False, True, True])},
            r"every value must be there, got 2 masked ones in column 'a'\. Fill or drop",
        ),
        (
            {"a": torch.ones(2, dtype=torch.complex64)},
            r"must be dense tensors of real numbers, got torch\.complex64 in column 'a'",
        ),
        (
            {"a": torch.eye(2).to_sparse()},
            r"dense tensors of real numbers, got torch\.sparse_coo in column 'a'\. Convert it",
        ),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, r"got torch\.float8_e4m3fn in column 'a'"),
        ({"a": torch.tensor(3.0)}, "one row per example, got a single number for 'a'"),
        ({"a": np.array(3.0)}, "one row per example, got a single number for 'a'"),
    ],
)
def test_bad_columns(columns, message):
    with pytest.raises(DataError, match=message):
        as_columns("f()", columns)


def test_known_names_the_nearest():
    assert known("f()", "user", ["user", "item"]) == "user"
    with pytest.raises(DataError, match=r"f\(\): must name a column, got 'usr'\. Did you mean 'user'\?"):
        known("f()", "usr", ["user", "item"])
    with pytest.raises(DataError, match=r"got 'zzz'\. The columns are 'user', 'item'\."):
        known("f()", "zzz", ["user", "item"])


def test_a_number_that_int64_cannot_hold_is_refused_and_not_wrapped():
    with pytest.raises(DataError, match=r"must be below 2\*\*63, got 9223372036854775813 in column 'x'"):
        as_columns("here", {"x": np.array([1, 2**63 + 5], np.uint64)})


def test_a_frame_of_numbers_and_flags_is_refused_with_the_way_to_make_it_one_type():
    pandas = pytest.importorskip("pandas")
    frame = pandas.get_dummies(pandas.DataFrame({"age": [40.0, 50.0], "ward": ["a", "b"]}))  # ward_a, ward_b are bool
    with pytest.raises(DataError, match=r"got object in column 'x'\. .*\.astype\(\"float32\"\)"):
        as_columns("here", {"x": frame})
    wards = [[40.0, 1.0, 0.0], [50.0, 0.0, 1.0]]
    assert as_columns("here", {"x": frame.astype("float32")})["x"].tolist() == wards
