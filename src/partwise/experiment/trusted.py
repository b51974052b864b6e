"""Examples that the server itself holds, taken from those that nobody holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from partwise.core.errors import CompositionError
from partwise.core.population import Dataset, Examples
from partwise.core.rng import generator
from partwise.core.workload import Workload
from partwise.populations.arrays import ArrayPopulation

__all__ = ["Trusted"]


@dataclass(frozen=True)
class Trusted:
    """The server holds so many examples of the central test set, and the model is tested on the rest.

    A server that judges updates must hold examples that no client made. In a simulation the central test set is where
    such examples are; those that are taken no longer count in the test.

    Args:
        examples: how many, >= 1, fewer than the test set has.
    """

    examples: int = 100

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ValueError(
                f"Trusted(examples={self.examples}): must be at least 1, got {self.examples}. 100 will do."
            )

    def taken(self, workload: Workload, seed: int) -> tuple[Workload, Dataset]:
        """The workload without them, and the server's examples.

        Raises:
            CompositionError: the workload has no central test set, or one that is too small.
        """
        population, central = workload.population, workload.population.central_test()
        if not isinstance(population, ArrayPopulation) or central is None or len(central) <= self.examples:
            have = "none" if central is None else f"{len(central)} examples"
            raise CompositionError(
                f"{self!r}: takes examples from a larger central test set of an array population, got {have}. "
                "Use a workload with one, or fewer examples."
            )
        order = torch.randperm(len(central), generator=generator(seed, "trusted"))
        mine, rest = order[: self.examples].sort().values, order[self.examples :].sort().values
        left = replace(population, central=Examples(central.batch(rest)))
        return replace(workload, population=left), Examples(central.batch(mine))
