from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from partwise.core.errors import DataError
from partwise.core.population import Examples, Profile
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.availability import Daily
from partwise.populations.profiles import Constant


def three() -> ArrayPopulation:
    return ArrayPopulation(
        {"x": torch.arange(14.0).reshape(7, 2), "y": torch.tensor([4, 1, 0, 2, 2, 9, 5])},
        torch.tensor([0, 1, 5, 7]),
        {"x": torch.arange(6.0).reshape(3, 2), "y": torch.tensor([8, 6, 7])},
        torch.tensor([0, 0, 2, 3]),
        central=Examples({"y": torch.arange(11)}),
        names=["ann", "bob", "eve"],
        profiles=Constant(seconds_per_step=0.3),
    )


def test_clients_see_their_own_examples():
    population = three()
    assert list(population.clients) == [0, 1, 2]
    assert [population.data(c).columns()["y"].tolist() for c in range(3)] == [[4], [1, 0, 2, 2], [9, 5]]
    assert population.data(2).columns()["x"].tolist() == [[10, 11], [12, 13]]
    assert population.sizes().tolist() == [1, 4, 2]
    assert population.name(1) == "bob"
    assert replace(population, names=()).name(1) == "1"


def test_data_are_views():
    population = three()
    assert population.data(1).columns()["x"].data_ptr() == population.columns["x"][1:].data_ptr()


def test_test_data():
    population = three()
    assert population.test_data(0) is None
    assert population.test_data(1).columns()["y"].tolist() == [8, 6]
    assert replace(population, test_columns={}, test_offsets=None).test_data(1) is None
    assert len(population.central_test()) == 11


def test_profile_and_availability_come_from_their_parts():
    population = replace(three(), availability=Daily(share=0.5, period_seconds=10, seed=3))
    assert population.profile(2) == Profile(seconds_per_step=0.3)
    assert population.next_available(2, 4.0) == Daily(share=0.5, period_seconds=10, seed=3).next_available(2, 4.0)


def test_a_million_clients_cost_two_tensors():
    population = ArrayPopulation({"y": torch.arange(2_000_000)}, torch.arange(0, 2_000_001, 2))
    assert len(population.clients) == 1_000_000
    assert population.data(999_999).columns()["y"].tolist() == [1_999_998, 1_999_999]


def test_to_device():
    moved = three().to("meta")
    assert moved.columns["x"].device.type == moved.test_columns["y"].device.type == "meta"
    assert moved.names == ["ann", "bob", "eve"]


@pytest.mark.parametrize("client", [-1, 3])
def test_unknown_client(client):
    with pytest.raises(DataError, match=rf"clients are numbered 0 to 2, got {client}\. Take numbers from"):
        three().data(client)


def test_client_without_examples():
    with pytest.raises(DataError, match=r"every client needs an example, got 1 without \(b\)\. Leave such clients out"):
        ArrayPopulation({"y": torch.arange(3)}, torch.tensor([0, 2, 2, 3]), names=["a", "b", "c"])


def test_many_clients_without_examples():
    with pytest.raises(DataError, match=r"got 4 without \(1, 2, 3, \.\.\.\)"):
        ArrayPopulation({"y": torch.arange(3)}, torch.tensor([0, 3, 3, 3, 3, 3]))


def test_unequal_columns():
    with pytest.raises(DataError, match=r"columns must have equal length, got \{'x': 2, 'y': 3\}\. Cut them"):
        ArrayPopulation({"x": torch.zeros(2), "y": torch.zeros(3)}, torch.tensor([0, 2]))


def test_no_columns():
    with pytest.raises(DataError, match="got no column"):
        ArrayPopulation({}, torch.tensor([0, 0]))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (torch.tensor([0, 2]), r"must ascend from 0 to the number of examples 3, got 0 to 2\. Use torch\.tensor"),
        (torch.tensor([1, 3]), "got 1 to 3"),
        (torch.tensor([0, 4, 3]), "must ascend"),
        (torch.tensor([0.0, 3.0]), r"must be int64 with one entry per client and one more, got \(2,\) torch.float32"),
        (torch.tensor([3]), r"must be int64 .* got \(1,\)"),
    ],
)
def test_wrong_offsets(offsets, message):
    with pytest.raises(DataError, match=message):
        ArrayPopulation({"y": torch.zeros(3)}, offsets)


def test_test_offsets_of_other_clients():
    with pytest.raises(DataError, match=r"test_offsets must be one longer .* 2, got 3\. Repeat an offset"):
        ArrayPopulation({"y": torch.zeros(3)}, torch.tensor([0, 3]), {"y": torch.zeros(2)}, torch.tensor([0, 1, 2]))


def test_names_of_other_clients():
    with pytest.raises(DataError, match=r"needs one name per client, 1, got 2\. Leave names out"):
        ArrayPopulation({"y": torch.zeros(3)}, torch.tensor([0, 3]), names=["a", "b"])
