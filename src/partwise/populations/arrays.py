"""A population over contiguous columns: one client's data are views, at any number of clients.

Shapes: N clients, n examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partwise.core.errors import DataError
from partwise.core.population import Batch, Client, Counts, Dataset, Examples, Fate, Profile, leaves_time_to
from partwise.populations.availability import Always, Availability
from partwise.populations.profiles import Constant, Profiles, Reals
from partwise.populations.reliability import Reliability, Steady

__all__ = ["ArrayPopulation"]

Ints = NDArray[np.int64]

_NO_TIME = (0.0, math.inf, math.inf)  # a step, and sending a byte each way


@dataclass(frozen=True, eq=False)
class ArrayPopulation:
    """Clients whose examples lie one after another in shared columns.

    Args:
        columns: column name -> tensor (n, ...), the examples of client 0, then 1, and so on.
        offsets: (N + 1,) int64, ascending from 0 to n: client c has the examples offsets[c] .. offsets[c + 1].
        test_columns: like columns, what the clients are tested on. Empty: nothing.
        test_offsets: like offsets; a client may have no test examples.
        central: a test set held by nobody.
        names: one name per client. Empty: the clients' numbers.
        profiles: how fast the clients are.
        availability: when they could answer.
        reliability: what becomes of their tasks.

    Raises:
        DataError: columns of unequal length, offsets that do not fit them, a client without examples or without a
            profile, an availability that never lets anyone in.

    Example:
        >>> two = ArrayPopulation({"x": torch.arange(5.0)}, torch.tensor([0, 2, 5]))
        >>> two.data(1).columns()["x"]
        tensor([2., 3., 4.])
    """

    columns: Batch = field(repr=False)
    offsets: Tensor = field(repr=False)
    test_columns: Batch = field(default_factory=dict, repr=False)
    test_offsets: Tensor | None = field(default=None, repr=False)
    central: Dataset | None = field(default=None, repr=False)
    names: Sequence[str] = field(default=(), repr=False)
    profiles: Profiles = field(default_factory=Constant)
    availability: Availability = field(default_factory=Always)
    reliability: Reliability = field(default_factory=Steady)

    def __post_init__(self) -> None:
        _check_offsets("offsets", self.offsets, self.columns)
        empty = (self.offsets.diff() == 0).nonzero().flatten().tolist()
        if empty:
            some = ", ".join(self.names[c] if self.names else str(c) for c in empty[:3])
            raise DataError(
                f"ArrayPopulation(): every client needs an example, got {len(empty)} without "
                f"({some}{', ...' if len(empty) > 3 else ''}). Leave such clients out."
            )
        if self.test_offsets is not None:
            _check_offsets("test_offsets", self.test_offsets, self.test_columns)
            if len(self.test_offsets) != len(self.offsets):
                raise DataError(
                    f"ArrayPopulation(): test_offsets must be one longer than there are clients, {len(self.offsets)}, "
                    f"got {len(self.test_offsets)}. Repeat an offset for a client without test examples."
                )
        if self.names and len(self.names) != len(self.offsets) - 1:
            raise DataError(
                f"ArrayPopulation(): needs one name per client, {len(self.offsets) - 1}, got {len(self.names)}. "
                "Leave names out to use numbers."
            )
        self.profiles.profile(self.clients[-1])  # a table that is too short is refused now, not in round 500
        if all(self.availability.next_available(client, 0.0) == math.inf for client in self.clients):
            raise DataError(
                f"ArrayPopulation(availability={self.availability}): must let some client in at some time, got none of "
                f"{len(self.clients)}. Check that it numbers the clients from 0 to {len(self.clients) - 1}."
            )

    @cached_property
    def clients(self) -> Sequence[Client]:
        return range(len(self._starts[0]) - 1)

    def data(self, client: Client) -> Examples:
        self._check(client)
        return _slice(self._examples[0], self._starts[0], client)

    def test_data(self, client: Client) -> Examples | None:
        self._check(client)
        starts = self._starts[1]
        if starts is None or starts[client] == starts[client + 1]:
            return None
        return _slice(self._examples[1], starts, client)

    def tests_between(self, first: Client, last: Client) -> Examples:
        """The test examples of the clients from `first` to `last`, without a copy."""
        starts = self._starts[1]
        assert starts is not None
        return _slice(self._examples[1], starts[[first, last + 1]], 0)

    def central_test(self) -> Dataset | None:
        return self.central

    def profile(self, client: Client, now: float = 0.0) -> Profile:
        found, block = self.profiles.profile(client, now), self.availability.block(client)
        return found._replace(block=block) if block else found

    def speeds(self, clients: Sequence[Client], now: float) -> Reals:
        return self.profiles.speeds(clients, now)

    def next_available(self, client: Client, now: float) -> float:
        return self.availability.next_available(client, now)

    def are_there(self, clients: Sequence[Client], now: float) -> list[bool]:
        return self.availability.are_there(clients, now)

    def available_until(self, client: Client, now: float) -> float:
        return self.availability.available_until(client, now)

    def stays(self, clients: Sequence[Client], moments: Reals) -> Reals:
        return self.availability.stays(clients, moments)

    def fate(self, client: Client, task: int) -> Fate:
        return self.reliability.fate(client, task)

    @property
    def is_open(self) -> bool:
        return True

    def counts(self) -> Counts | None:
        return None

    @property
    def is_instant(self) -> bool:
        """Whether nobody takes any time or is ever away, and no task is lost."""
        pace = self.profiles
        takes_none = isinstance(pace, Constant) and (pace.seconds_per_step, pace.uplink, pace.downlink) == _NO_TIME
        takes_none &= isinstance(self.availability, Always) and isinstance(self.reliability, Steady)
        return takes_none and leaves_time_to(type(self), ArrayPopulation)  # who derives from it may say it otherwise

    def name(self, client: Client) -> str:
        self._check(client)
        return self.names[client] if self.names else str(client)

    def sizes(self) -> Tensor:
        """Examples of every client, (N,) int64."""
        return self.offsets.diff()

    def to(self, device: torch.device | str) -> ArrayPopulation:
        """The same population with its clients' columns on `device`; a central test set stays where it is."""
        moved = {name: column.to(device) for name, column in self.columns.items()}
        test = {name: column.to(device) for name, column in self.test_columns.items()}
        return replace(self, columns=moved, test_columns=test)

    @cached_property
    def _starts(self) -> tuple[Ints, Ints | None]:
        """The offsets of examples and test examples as arrays, whose elements are had much sooner than a tensor's."""
        return self.offsets.numpy(), None if self.test_offsets is None else self.test_offsets.numpy()

    @cached_property
    def _examples(self) -> tuple[Examples, Examples]:
        """All examples and test examples, of which clients have slices."""
        return Examples(self.columns), Examples(self.test_columns)

    def _check(self, client: Client) -> None:
        # A negative number would silently give the wrong client's data.
        if not 0 <= client < len(self._starts[0]) - 1:
            raise DataError(
                f"ArrayPopulation(): clients are numbered 0 to {len(self.offsets) - 2}, got {client}. "
                "Take numbers from population.clients."
            )


def _slice(examples: Examples, offsets: Ints, client: Client) -> Examples:
    return examples.slice(int(offsets[client]), int(offsets[client + 1]))


def _check_offsets(which: str, offsets: Tensor, columns: Mapping[str, Tensor]) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(
            f"ArrayPopulation(): columns must have equal length, got {lengths or 'no column'}. "
            "Cut them to the same examples."
        )
    n = next(iter(lengths.values()))
    if offsets.dtype != torch.int64 or offsets.dim() != 1 or len(offsets) < 2:
        raise DataError(
            f"ArrayPopulation(): {which} must be int64 with one entry per client and one more, got "
            f"{tuple(offsets.shape)} {offsets.dtype}. Use torch.tensor([0, *sizes]).cumsum(0)."
        )
    if int(offsets[0]) != 0 or int(offsets[-1]) != n or bool((offsets.diff() < 0).any()):
        raise DataError(
            f"ArrayPopulation(): {which} must ascend from 0 to the number of examples {n}, got {int(offsets[0])} to "
            f"{int(offsets[-1])}. Use torch.tensor([0, *sizes]).cumsum(0)."
        )
