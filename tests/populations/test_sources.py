from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from partwise.core.errors import DataError
from partwise.core.population import Examples
from partwise.populations.availability import Daily
from partwise.populations.partitions import Dirichlet, LinearSizes, NaturalKey
from partwise.populations.profiles import Constant
from partwise.populations.reliability import Unreliable
from partwise.populations.sources import from_arrays, from_dataset, from_hugging_face, from_partition
from partwise.populations.tables import from_table

KEYS = ["eve", "ann", "eve", "bob", "eve", "ann", "eve", "eve"]


def held(population) -> dict[str, list[int]]:
    return {population.name(c): population.data(c).columns()["y"].tolist() for c in population.clients}


def held_out(population) -> dict[str, list[int]]:
    found = {population.name(c): population.test_data(c) for c in population.clients}
    return {name: data.columns()["y"].tolist() for name, data in found.items() if data is not None}


def test_examples_are_grouped_by_key_in_their_order():
    population = from_arrays({"y": list(range(8)), "x": np.eye(8)}, KEYS)
    assert held(population) == {"ann": [1, 5], "bob": [3], "eve": [0, 2, 4, 6, 7]}
    assert population.data(2).columns()["x"].argmax(1).tolist() == [0, 2, 4, 6, 7]
    assert held_out(population) == {}


@pytest.mark.parametrize("keys", [torch.tensor([30, 10, 30, 20]), np.array([30, 10, 30, 20]), [30, 10, 30, 20]])
def test_numeric_keys_are_ordered_as_numbers(keys):
    assert held(from_arrays({"y": [0, 1, 2, 3]}, keys)) == {"10": [1], "20": [3], "30": [0, 2]}


def test_object_keys():
    assert held(from_arrays({"y": [0, 1, 2]}, np.array(["b", "a", "b"], object))) == {"a": [1], "b": [0, 2]}


def test_last_examples_are_the_test_set():
    population = from_arrays({"y": list(range(8))}, KEYS, test_share=0.5)
    assert held(population) == {"ann": [1], "bob": [3], "eve": [0, 2, 4]}
    assert held_out(population) == {"ann": [5], "eve": [6, 7]}


def test_random_test_set_follows_the_seed():
    columns, keys = {"y": list(range(300))}, [i % 3 for i in range(300)]
    one, same, other = (from_arrays(columns, keys, test_share=0.2, test="random", seed=s) for s in (1, 1, 2))
    assert held_out(one) == held_out(same) != held_out(other)
    for name in ("0", "1", "2"):
        assert len(held_out(one)[name]) == 20
        assert sorted(held_out(one)[name] + held(one)[name]) == list(range(int(name), 300, 3))
        assert held_out(one)[name] != held(one)[name][-20:]


def test_a_client_always_trains_on_something():
    population = from_arrays({"y": [5, 6, 7]}, ["a", "b", "b"], test_share=0.99)
    assert held(population) == {"a": [5], "b": [6]}
    assert held_out(population) == {"b": [7]}


def test_small_clients_are_left_out():
    assert held(from_arrays({"y": list(range(8))}, KEYS, min_examples=2)).keys() == {"ann", "eve"}
    with pytest.raises(DataError, match=r"at least min_examples=6 examples, got at most 5\. Lower min_examples"):
        from_arrays({"y": list(range(8))}, KEYS, min_examples=6)


def test_columns_already_in_order_are_not_copied():
    column = torch.arange(4.0)
    assert from_arrays({"x": column}, [1, 1, 2, 3]).columns["x"].data_ptr() == column.data_ptr()


def test_other_options_reach_the_population():
    central = Examples({"y": torch.arange(5)})
    population = from_arrays(
        {"y": [1, 2]},
        [0, 1],
        central_test=central,
        profiles=Constant(0.5),
        availability=Daily(seed=7),
        reliability=Unreliable(train=1.0),
    )
    assert population.fate(1, 8).stage == "train"
    assert population.central_test() is central
    assert population.profile(1).seconds_per_step == 0.5
    assert population.availability == Daily(seed=7)


class Unknown:
    """As pandas' NA: not even equal or unequal to itself."""

    def __ne__(self, other: object) -> Unknown:
        return self

    def __bool__(self) -> bool:
        raise TypeError("neither")

    def __repr__(self) -> str:
        return "nobody knows"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([1, 2], r"client must give one key per example, 3, got shape \(2,\)\. Repeat the key"),
        ([[1], [2], [3]], r"got shape \(3, 1\)"),
        ([1.0, float("nan"), 2.0], r"every example needs a client, got nan for example 1\. Fill or drop"),
        (np.array(["a", "b", None], object), "every example needs a client, got None for example 2"),
        (["a", float("nan"), "b"], "every example needs a client, got nan for example 1"),
        (np.array(["2024-03-31", "NaT", "NaT"], "M8[ns]"), "every example needs a client, got NaT for example 1"),
        (np.array(["a", Unknown(), "b"], object), "every example needs a client, got nobody knows for example 1"),
        (np.ma.masked_array([4, 5, 6], [False, True, False]), "every example needs a client, got 5 for example 1"),
        ([2**63 + 1, 2**63 + 3, -1], r"keys of clients must differ as numbers, got 9223372036854775809 among others"),
        ([2**53 + 1, 2**53, 0.5], r"must differ as numbers, got 9007199254740993 .*\. Give all of them as text"),
        ([1, "1", "b"], r"keys of clients must differ when they are written, got several that are '1'\. Give all of"),
        (np.array([1, "1", 2], object), r"must differ when they are written, got several that are '1'\."),
    ],
)
def test_bad_keys(keys, message):
    with pytest.raises(DataError, match=message):
        from_arrays({"y": [1, 2, 3]}, keys)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"test_share": 1.0}, ValueError, r"test_share must be in \[0, 1\), got 1\.0\. Use 0\.2"),
        ({"test": "first"}, ValueError, r"test must be 'last' or 'random', got 'first'\. Use 'last'"),
        ({"test_shar": 0.5}, TypeError, r"takes the options of Options, got 'test_shar'\. Did you mean 'test_share'\?"),
        ({"zzz": 0.5}, TypeError, r"got 'zzz'\. Options are test_share, "),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        from_arrays({"y": [1, 2]}, [0, 1], **options)


def test_nan_in_data():
    with pytest.raises(DataError, match=r"from_arrays\(\): numbers must be finite, got NaN or infinity in column 'x'"):
        from_arrays({"x": [1.0, float("nan")]}, [0, 1])


def test_partition():
    columns = {"x": torch.arange(60.0), "y": torch.arange(60) % 3}
    parts = Dirichlet(4, alpha=0.5, min_partition_size=2).split(columns, 9)
    population = from_partition(columns, Dirichlet(4, alpha=0.5, min_partition_size=2), seed=9)
    assert [population.data(c).columns()["x"].int().tolist() for c in range(4)] == [p.tolist() for p in parts]
    assert population.name(3) == "3"


def test_partition_by_an_unknown_column():
    with pytest.raises(DataError, match=r"NaturalKey\(partition_by='user'\): must name a column, got 'user'"):
        from_partition({"y": [1, 2]}, NaturalKey("user"))


def test_partition_with_a_test_share():
    population = from_partition({"y": list(range(30))}, LinearSizes(4), test_share=0.34)
    assert population.sizes().tolist() == [2, 4, 6, 8]
    assert [len(population.test_data(c)) for c in range(4)] == [1, 2, 3, 4]


def test_torch_data_set_of_tuples():
    data = TensorDataset(torch.arange(8.0).reshape(4, 2), torch.tensor([3, 1, 4, 2]))
    population = from_dataset(data, [1, 0, 1, 1])
    assert held(population) == {"0": [1], "1": [3, 4, 2]}
    assert population.data(0).columns()["x"].tolist() == [[2, 3]]


class Mappings:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> dict[str, object]:
        return {"user": ["b", "a", "b"][i], "y": i, "x": [float(i), 0.5]}


def test_torch_data_set_of_mappings():
    population = from_dataset(Mappings(), "user")
    assert held(population) == {"a": [1], "b": [0, 2]}
    assert population.columns.keys() == {"x", "y"}


@pytest.mark.parametrize("odd", [{"u": 1}, {"u": 1, "x": 2.0, "z": 3.0}])
def test_items_that_are_not_alike_are_refused(odd):
    with pytest.raises(DataError, match=r"must have the fields of the first, 'u', 'x', got 'u'.* in item 1\. Give all"):
        from_dataset([{"u": 0, "x": 1.0}, odd], "u")


def test_torch_data_set_with_tensor_keys():
    data = TensorDataset(torch.tensor([5, 3, 5]), torch.tensor([0, 1, 2]))
    assert held(from_dataset(data, "user", columns=("user", "y"))) == {"3": [1], "5": [0, 2]}


@pytest.mark.parametrize(
    ("data", "client", "columns", "message"),
    [
        ([], [], ("x",), "needs at least one example, got an empty data set"),
        ([(1, 2)], [0], ("x",), r"needs one name per entry of an item, got 2 entries\. Name them all"),
        ([(1, 2)], [0], ("x", "x"), r"every entry of an item must have a name of its own, got 'x' twice\. Rename one"),
        ([(1, 2)], "usr", ("user", "y"), r"got 'usr'\. Did you mean 'user'\?"),
        ([1, 2], [0], ("x",), r"one key per example, 2, got shape \(1,\)"),
    ],
)
def test_bad_torch_data_sets(data, client, columns, message):
    with pytest.raises(DataError, match=message):
        from_dataset(data, client, columns)


class Table:
    """As much of a Hugging Face data set as is used."""

    column_names = ("user", "pixels", "y")

    def __getitem__(self, name: str) -> list[object]:
        columns = {"user": ["b", "a", "b"], "pixels": [[1, 2], [3, 4], [5, 6]], "y": [0, 1, 2]}
        return columns[name]


def test_hugging_face_data_set():
    population = from_hugging_face(Table(), "user", test_share=0.5)
    assert held(population) == {"a": [1], "b": [0]}
    assert held_out(population) == {"b": [2]}
    assert population.columns.keys() == {"pixels", "y"}
    assert from_hugging_face(Table(), "user", ["y"]).columns.keys() == {"y"}


def test_hugging_face_unknown_columns():
    with pytest.raises(DataError, match=r"got 'users'\. Did you mean 'user'\?"):
        from_hugging_face(Table(), "users")
    with pytest.raises(DataError, match=r"got 'pixel'\. Did you mean 'pixels'\?"):
        from_hugging_face(Table(), "user", ["pixel"])


def test_hugging_face_by_name_loads_the_extra(monkeypatch):
    class Fake:
        @staticmethod
        def load_dataset(name, split):
            assert (name, split) == ("some/name", "test")
            return Table()

    monkeypatch.setitem(sys.modules, "datasets", Fake)
    assert held(from_hugging_face("some/name", "user", ["y"], split="test")) == {"a": [1], "b": [0, 2]}


def test_hugging_face_by_name_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the package datasets.*pip install 'partwise\[datasets\]'"):
        from_hugging_face("some/name", "user")


@pytest.mark.parametrize("made_by", [from_table, from_dataset])
def test_a_data_frame_is_sent_to_from_arrays(made_by):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": ["a", "b"], "age": [40.0, 50.0], "y": [0, 1]})
    with pytest.raises(DataError, match=rf"^{made_by.__name__}\(\): .*got a DataFrame\. .*from_arrays"):
        made_by(frame, client="id")
    made = from_arrays({"x": frame[["age"]], "y": frame["y"]}, client=frame["id"])
    assert made.data(1).columns()["x"].tolist() == [[50.0]]


@pytest.mark.parametrize("make", [list, np.array, lambda keys: np.array(keys, object)])
@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["zoë".encode(), b"bob", "zoë".encode()], ["bob", "zoë"]),
        ([b"\xff\x01", b"\x0a\x62", b"\xff\x01"], ["0a62", "ff01"]),  # hashes, which are no text
    ],
)
def test_keys_of_bytes_are_named_after_what_they_are(make, keys, names):
    population = from_arrays({"x": [1.0, 2.0, 3.0]}, make(keys))
    assert [population.name(c) for c in population.clients] == names
    assert population.columns["x"].tolist() == [2.0, 1.0, 3.0]


def test_bytes_are_not_the_text_that_they_spell():
    keys = np.array(["a", b"a", "a"], object)
    population = from_arrays({"x": [1.0, 2.0, 3.0]}, keys)
    assert population.sizes().tolist() == [2, 1]
