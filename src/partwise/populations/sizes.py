"""How many examples the clients have, counted at once where that can be.

Shapes: N clients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from partwise.core.population import Population
from partwise.populations.arrays import ArrayPopulation

__all__ = ["example_counts", "test_example_counts"]

Counts = NDArray[np.int64]


def example_counts(population: Population) -> Counts:
    """Examples of every client, (N,), in the order of `population.clients`."""
    if isinstance(population, ArrayPopulation):  # of a million clients, none is looked at by itself
        return np.diff(population.offsets.numpy())
    return np.array([len(population.data(client)) for client in population.clients], np.int64)


def test_example_counts(population: Population) -> Counts:
    """Test examples of every client, (N,), in the order of `population.clients`; 0 for a client without."""
    if isinstance(population, ArrayPopulation):
        offsets = population.test_offsets
        return np.zeros(len(population.clients), np.int64) if offsets is None else np.diff(offsets.numpy())
    return np.array([len(population.test_data(client) or ()) for client in population.clients], np.int64)
