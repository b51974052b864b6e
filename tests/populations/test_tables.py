from __future__ import annotations

import sys
from decimal import Decimal

import pytest
import torch

from partwise.core.errors import DataError
from partwise.populations.tables import from_table

CSV = """user,item,price,clicked
7,30,1.5,1
3,10,2.25,0
7,20,0.5,0
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(CSV)
    return path


def test_csv_with_features_side_by_side(table):
    population = from_table(table, "user", target="clicked")
    assert [population.name(c) for c in population.clients] == ["3", "7"]
    columns = population.data(1).columns()
    assert columns["x"].tolist() == [[30, 1.5], [20, 0.5]]
    assert columns["x"].dtype == torch.float32
    assert columns["y"].tolist() == [1, 0]
    assert columns["y"].dtype == torch.int64


def test_csv_with_chosen_features(table):
    population = from_table(table, "user", ["price"])
    assert population.columns.keys() == {"x"}
    assert population.columns["x"].tolist() == [[2.25], [1.5], [0.5]]


def test_csv_with_named_columns(table):
    population = from_table(table, "user", {"candidate": "item", "both": ["user", "item"]}, target="clicked")
    columns = population.data(0).columns()
    assert columns["candidate"].tolist() == [10]
    assert columns["both"].tolist() == [[3, 10]]
    assert columns["both"].dtype == columns["candidate"].dtype == torch.int64


def test_options_reach_the_population(table):
    population = from_table(table, "user", target="clicked", test_share=0.5, min_examples=2)
    assert population.sizes().tolist() == [1]
    assert population.test_data(0).columns()["y"].tolist() == [0]


def test_tsv_text_keys_quotes_and_byte_order_mark(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_text('who\tx\n"b\tc"\t1\na\t2\n', encoding="utf-8-sig")
    population = from_table(path, "who")
    assert [population.name(c) for c in population.clients] == ["a", "b\tc"]


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "log.parquet"
    parquet.write_table(pa.table({"user": ["b", "a", "b"], "price": [1.5, 2.0, 3.0], "y": [1, 0, 1]}), path)
    population = from_table(str(path), "user", target="y")
    assert population.data(1).columns()["x"].tolist() == [[1.5], [3.0]]
    assert population.data(1).columns()["y"].tolist() == [1, 1]


def test_parquet_with_missing_values(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "log.parquet"
    parquet.write_table(pa.table({"user": [1, 2], "y": [1, None]}), path)
    with pytest.raises(DataError, match=r"every value must be there, got 1 missing in column 'y'\. Fill or drop"):
        from_table(path, "user", target="y", columns={})


def test_numbers_of_a_frames_rows_are_no_feature(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"user": ["a", "b", "a"], "x": [1.5, 2.0, 3.0], "y": [0, 1, 1]})
    frame = frame[frame.x > 1.8]  # keeps rows 1 and 2, and these numbers with them
    frame.to_parquet(tmp_path / "log.parquet")
    population = from_table(tmp_path / "log.parquet", "user", target="y")
    assert population.columns["x"].tolist() == [[3.0], [2.0]]  # those of a, then of b
    frame.to_csv(tmp_path / "log.csv")
    with pytest.raises(DataError, match=r"must have a name, got none for column 1\. Name it, .*index=False"):
        from_table(tmp_path / "log.csv", "user", target="y")
    assert from_table(tmp_path / "log.csv", "user", ["x"], "y").columns["x"].tolist() == [[3.0], [2.0]]


def test_parquet_that_is_none(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "log.parquet"
    path.write_text("no table at all")
    with pytest.raises(DataError, match="must be a Parquet file, got something else"):
        from_table(path, "user")


def test_parquet_that_is_damaged(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "log.parquet"
    parquet.write_table(pa.table({"user": [1, 2], "y": [1, 0]}), path)
    whole = path.read_bytes()
    # The file begins and ends as it should; the header of its first page, or its footer, has been written over.
    for begin, end in ((4, 24), (len(whole) - 60, len(whole) - 20)):
        path.write_bytes(whole[:begin] + b"\xff" * (end - begin) + whole[end:])
        with pytest.raises(DataError, match=r"must be a Parquet file, got something else, or one that is damaged"):
            from_table(path, "user", target="y", columns={})


def test_decimals_of_parquet_are_numbers(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "log.parquet"
    keys = [Decimal(12345678901234567890), Decimal(12345678901234567891)]  # the same float
    parquet.write_table(pa.table({"user": keys, "price": [Decimal("1.50"), Decimal("-2.25")]}), path)
    population = from_table(path, "user")
    assert population.names == list(map(str, keys))
    assert population.columns["x"].tolist() == [[1.5], [-2.25]]


def test_parquet_without_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "log.parquet"
    path.write_text("")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs the package pyarrow.*pip install 'partwise\[tables\]'"):
        from_table(path, "user")


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (CSV, {"client": "usr"}, r"client: must name a column, got 'usr'\. Did you mean 'user'\?"),
        (CSV, {"client": "user", "target": "click"}, r"got 'click'\. Did you mean 'clicked'\?"),
        (CSV, {"client": "user", "columns": ["prize"]}, r"got 'prize'\. Did you mean 'price'\?"),
        (CSV, {"client": "user", "columns": {"x": []}}, "needs at least one column of features, got none"),
        ("user,x\n", {"client": "user"}, "needs a header and at least one row, got 1 lines"),
        ("user,x\n1,2\n1\n", {"client": "user"}, r"every line must have 2 fields, got 1 in line 3\. Correct that line"),
        ("user,x\n1,2\n1, \n", {"client": "user"}, "got an empty one in column 'x', line 3"),
        (
            "user,x\n1,2\n1,red\n",
            {"client": "user"},
            r"columns must hold numbers, got 'red' in column 'x', line 3\. Leave it out",
        ),
        ("user,x\n1,2\n1,nan\n", {"client": "user"}, "numbers must be finite"),
    ],
)
def test_bad_tables(tmp_path, text, arguments, message):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        from_table(path, **arguments)


def test_missing_file_and_unknown_kind(tmp_path):
    with pytest.raises(DataError, match=r"must be a file, got a path where there is none\. Check the path"):
        from_table(tmp_path / "none.csv", "user")
    (tmp_path / "log.xlsx").write_text("")
    with pytest.raises(DataError, match=r"must be a \.csv, \.tsv or \.parquet file, got '\.xlsx'"):
        from_table(tmp_path / "log.xlsx", "user")


@pytest.mark.parametrize(
    "keys",
    [
        ["12345678901234567890", "12345678901234567891"],  # the same float
        ["9234567890123456789", "9234567890123456788"],
        ["007", "7"],
        ["12e3", "12000"],
        ["1_0", "10"],
    ],
)
def test_keys_that_look_like_numbers_stay_what_they_are(tmp_path, keys):
    path = tmp_path / "t.csv"
    path.write_text("who,a\n" + "".join(f"{key},1\n" for key in keys))
    population = from_table(path, client="who")
    assert sorted(population.name(c) for c in population.clients) == sorted(keys)


def test_numbers_as_keys_are_still_in_the_order_of_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("who,a\n10,1\n9,2\n -1,3\n")
    population = from_table(path, client="who")
    assert [population.name(c) for c in population.clients] == ["-1", "9", "10"]


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("who,a,a\n1,2,3\n")
    with pytest.raises(DataError, match="every column must have a name of its own, got 'a' twice"):
        from_table(path, client="who")


def test_the_value_that_is_no_number_is_named_with_its_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("who,a\n1,2.5\n1,NA\n")
    with pytest.raises(DataError, match="got 'NA' in column 'a', line 3"):
        from_table(path, client="who")


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("who,a\nJosé,1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"must be UTF-8, got the byte 0xe9\. Save it as UTF-8"):
        from_table(path, client="who")


def test_a_field_that_is_too_long_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("who,a\n" + "x" * 200_000 + ",1\n")
    with pytest.raises(DataError, match="must be CSV, got: field larger than"):
        from_table(path, client="who")


def test_a_line_is_the_file_s_where_fields_have_several(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text('user,a\n"Jo\nof\nArc",1\nbob,x\n')
    with pytest.raises(DataError, match="got 'x' in column 'a', line 5"):
        from_table(path, "user")
    path.write_text('user,a\n"Jo\nof\nArc",\n')
    with pytest.raises(DataError, match="got an empty one in column 'a', line 2"):
        from_table(path, "user")


def test_digits_with_an_underscore_are_no_number(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,month\n1,3\n2,2024_01\n")
    with pytest.raises(DataError, match="columns must hold numbers, got '2024_01' in column 'month', line 3"):
        from_table(path, "user")


def test_long_integers_stay_integers(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item\n1,1234567890123456789\n2,-9223372036854775808\n")
    column = from_table(path, "user", columns={"item": "item"}).columns["item"]
    assert column.tolist() == [1234567890123456789, -(2**63)]
    assert column.dtype == torch.int64


def test_two_columns_that_would_be_y_are_refused(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,a,b\n1,2,3\n")
    with pytest.raises(DataError, match=r"y must be one thing, got columns\['y'\] = 'a' and target='b'\. Give one"):
        from_table(path, "user", columns={"y": "a"}, target="b")
