"""How many examples the clients have, counted at once where that can be.

Shapes: N clients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from partwise.core.population import Client, Population
from partwise.populations.arrays import ArrayPopulation

__all__ = ["clients_with_tests", "counts_of_test_examples", "example_counts"]

Counts = NDArray[np.int64]


def example_counts(population: Population) -> Counts:
    """Examples of every client, (N,), in the order of `population.clients`."""
    if isinstance(population, ArrayPopulation):  # of a million clients, none is looked at by itself
        return np.diff(population.offsets.numpy())
    return np.array([len(population.data(client)) for client in population.clients], np.int64)


def counts_of_test_examples(population: Population) -> Counts:
    """Test examples of every client, (N,), in the order of `population.clients`; 0 for a client without."""
    if isinstance(population, ArrayPopulation):
        offsets = population.test_offsets
        return np.zeros(len(population.clients), np.int64) if offsets is None else np.diff(offsets.numpy())
    return np.array([len(population.test_data(client) or ()) for client in population.clients], np.int64)


def clients_with_tests(population: Population) -> Sequence[Client]:
    """The clients that may have test examples: no others need to be asked for them."""
    if isinstance(population, ArrayPopulation):
        found: list[Client] = counts_of_test_examples(population).nonzero()[0].tolist()
        return found
    return population.clients
