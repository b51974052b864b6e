"""Counts of all clients, whatever kind of population they are in."""

from __future__ import annotations

import torch

from partwise.core.population import Examples
from partwise.populations import ArrayPopulation
from partwise.populations.sizes import clients_with_tests, counts_of_test_examples, example_counts


class Loose:
    """The same clients, one by one, numbered with gaps."""

    def __init__(self, of: ArrayPopulation) -> None:
        self.of, self.clients = of, (3, 5, 40)

    def data(self, client: int) -> Examples:
        return self.of.data(self.clients.index(client))

    def test_data(self, client: int) -> Examples | None:
        return self.of.test_data(self.clients.index(client))


def array() -> ArrayPopulation:
    y = torch.arange(11)
    return ArrayPopulation({"y": y}, torch.tensor([0, 2, 9, 11]), {"y": y[:4]}, torch.tensor([0, 1, 1, 4]))


def test_counts_are_those_of_the_clients_one_by_one():
    for population in (array(), Loose(array())):
        assert example_counts(population).tolist() == [2, 7, 2]
        assert counts_of_test_examples(population).tolist() == [1, 0, 3]
    assert list(clients_with_tests(array())) == [0, 2]
    assert list(clients_with_tests(Loose(array()))) == [3, 5, 40]


def test_nobody_is_tested_without_test_examples():
    population = ArrayPopulation({"y": torch.arange(3)}, torch.tensor([0, 2, 3]))
    assert counts_of_test_examples(population).tolist() == [0, 0]
    assert list(clients_with_tests(population)) == []
